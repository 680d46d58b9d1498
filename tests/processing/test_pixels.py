"""Which pictures open, what they look like, and what is said of those that do not."""

import base64
import io
import random
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from internvl2.processing.fetch import MediaError
from internvl2.processing.pixels import PictureOptions, open_picture, picture_size

OFFICIAL = PictureOptions(official=True)
NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def encoded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def fault(source, options=None):
    """The message, which must be one line."""
    with pytest.raises(MediaError) as caught:
        open_picture(source, options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def png_header(width, height):
    """A valid start of a PNG that claims a size, with hardly any data."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_every_accepted_format_opens_from_a_path_bytes_and_data_url(form, tmp_path):
    content = encoded(Image.fromarray(NOISE), form)
    path = tmp_path / "picture.of.any.name"
    path.write_bytes(content)
    url = "data:image/any;base64," + base64.b64encode(content).decode()
    opened = [open_picture(source) for source in (path, str(path), content, url)]
    assert all(image.mode == "RGB" and image.size == (60, 40) for image in opened)
    assert all((np.asarray(image) == np.asarray(opened[0])).all() for image in opened)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    image = Image.new("RGB", (64, 32), "black")
    image.paste("white", (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = open_picture(encoded(image, "PNG", exif=exif))
    corner = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "tl", 6: "tr", 7: "br", 8: "bl"}[orientation]
    x = 0 if corner[1] == "l" else opened.width - 1
    y = 0 if corner[0] == "t" else opened.height - 1
    assert opened.size == ((64, 32) if orientation < 5 else (32, 64))
    assert opened.getpixel((x, y)) == (255, 255, 255)


def test_an_opened_picture_is_not_turned_again():
    exif = Image.Exif()
    exif[0x0112] = 6
    once = open_picture(encoded(Image.new("RGB", (30, 20)), "JPEG", exif=exif))
    assert open_picture(once).size == once.size == (20, 30)


def test_a_tiff_is_turned_once():
    exif = Image.Exif()
    exif[0x0112] = 6
    opened = open_picture(encoded(Image.new("RGB", (64, 32)), "TIFF", exif=exif))
    assert opened.size == (32, 64)


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 8])
def test_the_size_from_the_header_is_that_of_the_opened_picture(orientation, official):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.new("RGB", (64, 32)), "JPEG", exif=exif)
    options = PictureOptions(official=official)
    assert picture_size(content, options) == open_picture(content, options).size
    assert picture_size(Image.new("L", (3, 2))) == (3, 2)


def test_the_official_treatment_ignores_exif_orientation():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(Image.new("RGB", (64, 32)), "JPEG", exif=exif)
    assert open_picture(content, OFFICIAL).size == (64, 32)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(mode):
    content = encoded(Image.new(mode, (4, 4), 0), "PNG")
    assert open_picture(content).getpixel((0, 0)) == (255, 255, 255)
    assert open_picture(content, OFFICIAL).getpixel((0, 0)) == (0, 0, 0)


def test_half_transparency_mixes_with_white():
    content = encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG")
    assert open_picture(content).getpixel((0, 0)) == (127, 127, 127)


def test_a_transparent_palette_entry_is_white():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert open_picture(encoded(image, "PNG", transparency=1)).getpixel((0, 0)) == (255,) * 3
    assert open_picture(encoded(image, "PNG")).getpixel((0, 0)) == (10, 20, 30)


def test_a_transparent_colour_of_a_grey_png_is_white():
    content = encoded(Image.new("L", (4, 4), 7), "PNG", transparency=7)
    assert open_picture(content).getpixel((0, 0)) == (255, 255, 255)


def test_16_bit_grey_is_scaled():
    values = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    content = encoded(Image.fromarray(values), "PNG")
    assert np.asarray(open_picture(content))[0, :, 0].tolist() == [0, 100, 255]
    assert np.asarray(open_picture(content, OFFICIAL))[0, :, 0].tolist() == [0, 255, 255]


def test_float_pictures_are_scaled():
    values = np.array([[0.0, 0.5, 1.0]], dtype=np.float32)
    content = encoded(Image.fromarray(values), "TIFF")
    assert np.asarray(open_picture(content))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_other_modes_open(mode):
    image = Image.fromarray(NOISE).convert(mode)
    content = encoded(image, "TIFF" if mode in ("CMYK", "YCbCr") else "PNG")
    assert np.asarray(open_picture(content)).shape == (40, 60, 3)


@pytest.mark.parametrize("form", ["GIF", "WEBP"])
def test_an_animation_is_its_first_frame(form):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    options = {"lossless": True} if form == "WEBP" else {}
    content = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert open_picture(content).getpixel((0, 0)) == (255, 0, 0)


def test_a_picture_given_by_the_caller_is_left_as_it_was():
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert open_picture(image).getpixel((0, 0)) == (255, 255, 255)
    assert image.mode == "RGBA"


def test_a_missing_path_is_named(tmp_path):
    assert fault(tmp_path / "no.jpg") == f"picture {tmp_path / 'no.jpg'} does not exist"


def test_a_directory_is_not_a_picture(tmp_path):
    assert "is a directory" in fault(tmp_path)


def test_an_empty_file_is_said_to_be_empty(tmp_path):
    (tmp_path / "a.jpg").touch()
    assert "is empty (0 bytes)" in fault(tmp_path / "a.jpg")
    assert fault(b"") == "picture of 0 bytes is empty (0 bytes)"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"hello world", "text"),
        (b"%PDF-1.7\n\xe2\xe3", "a PDF document"),
        (b"<!DOCTYPE html><html></html>", "an HTML page"),
        (b"\xef\xbb\xbf  <svg xmlns='x'/>", "an SVG drawing"),
        (b"<?xml version='1.0'?><svg/>", "XML or SVG"),
        (b"PK\x03\x04aaaa", "a ZIP archive"),
    ],
)
def test_other_files_named_jpg_are_recognised(content, what, tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(content)
    message = fault(path)
    assert f"{path} is not a picture" in message
    assert f"it looks like {what}" in message
    assert "JPEG, PNG" in message


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_a_truncated_file_is_an_error(form):
    content = encoded(Image.fromarray(NOISE), form)
    message = fault(content[: len(content) // 2])
    assert message.startswith(f"picture of {len(content) // 2} bytes is ")


@pytest.mark.parametrize("side", [8001, 13000, 20000, 2**31 - 1])
def test_a_decompression_bomb_is_refused_from_its_header(side):
    message = fault(png_header(side, side))
    assert "64000000" in message


def test_pillow_globals_are_left_alone():
    before = Image.MAX_IMAGE_PIXELS
    fault(png_header(13000, 13000))
    assert before == Image.MAX_IMAGE_PIXELS


def test_the_pixel_limit_is_an_option():
    content = encoded(Image.new("RGB", (20, 10)), "PNG")
    message = fault(content, PictureOptions(max_pixels=199))
    assert "has 20x10 = 200 pixels; at most 199" in message


def test_formats_outside_the_list_are_refused():
    assert "is not a picture" in fault(encoded(Image.new("RGB", (4, 4)), "TGA"))


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://host/a.png", "gopher://host/"])
def test_unknown_url_schemes_are_refused(url):
    assert "accepted: http, https, data, or a path" in fault(url)


def test_a_long_data_url_is_shortened_in_messages():
    message = fault("data:image/png;base64," + "A" * 5000)
    assert len(message) < 250


def test_a_name_with_a_nul_or_of_endless_length_is_an_error():
    fault("a\0b.png")
    fault("x" * 5000)


def test_damaged_files_open_or_are_refused():
    rng = random.Random(7)
    for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        original = encoded(Image.fromarray(NOISE), form)
        for _ in range(250):
            content = bytearray(original)
            for _ in range(rng.randint(1, 6)):
                content[rng.randrange(len(content))] = rng.randrange(256)
            if rng.random() < 0.3:
                del content[rng.randrange(1, len(content)) :]
            with suppress(MediaError):
                assert open_picture(bytes(content)).mode == "RGB"
