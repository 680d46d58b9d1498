"""Open a picture from anywhere, whatever its file claims to be, as plain RGB pixels.

The header decides before anything is decoded: the format must be known and the size bearable.
Pillow decodes. simplejpeg is faster at that, but what it gains is lost again: its array has to be
copied into Pillow's layout, or resized with a fourth byte per pixel (12 megapixels to 13 tiles:
194 ms with Pillow alone, 199 ms with simplejpeg and no copy). With the fast resize it would save
45 ms for such a picture, but half of one for 1024x768.
"""

import io
import re
import struct
import warnings
import zlib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from internvl2.cores import read_cores
from internvl2.processing.fetch import (
    MediaError,
    MediaKind,
    RemoteLimits,
    decode_data_url,
    fetch,
    shorten,
)
from internvl2.processing.resize import Arithmetic

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
ACCEPTED = "JPEG, PNG, WebP, GIF, BMP, TIFF, PPM or AVIF"

DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    EOFError,
    AssertionError,
    AttributeError,
    NotImplementedError,
    MemoryError,
    ZeroDivisionError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow and its decoders have been seen to raise on damaged files."""

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://|(data):", re.IGNORECASE)
_ORIENTATION_TAG = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LOOKS_LIKE = (
    (b"%PDF", "a PDF document"),
    (b"<svg", "an SVG drawing"),
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<?xml", "XML or SVG"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"8BPS", "a Photoshop file"),
)


@cache
def _usual_threads() -> int:
    return read_cores().threads


@dataclass(frozen=True, slots=True)
class PictureOptions:
    """How pictures are read."""

    official: bool = False
    """As the official code does: EXIF orientation ignored, alpha dropped, 16-bit values clipped."""
    arithmetic: Arithmetic = "exact"
    """How pixels are resized: as Pillow does, or by PyTorch, faster and nearly equal."""
    threads: int = field(default_factory=_usual_threads)
    """Most threads that prepare one picture or video, beside each other."""
    max_pixels: int = 64_000_000
    """Larger pictures are refused; cameras of 64 megapixels still pass."""
    remote: RemoteLimits = field(default_factory=RemoteLimits)


def open_picture(
    source: str | Path | bytes | Image.Image,
    options: PictureOptions | None = None,
) -> Image.Image:
    """The picture as RGB: from a path, an http(s) or data: URL, encoded bytes, or Pillow itself."""
    options = options or PictureOptions()
    if isinstance(source, Image.Image):
        return to_rgb(source, require_size(source.size, options), options)
    name = describe(source, "picture")
    content = read_source(source, "picture", options.remote)
    with identify(content, name, options) as image:
        return to_rgb(image, name, options)


def require_size(size: tuple[int, int], options: PictureOptions) -> str:
    """What messages call a picture in memory of this width and height, which must be bearable."""
    name = f"picture of {size[0]}x{size[1]} pixels"
    _check_size(size, name, options.max_pixels)
    return name


@dataclass(frozen=True, slots=True)
class PictureHeader:
    """What a picture's file says of its size, before any pixel is decoded."""

    stored: tuple[int, int]
    """Width and height of the rows as they lie in the file."""
    orientation: int
    """EXIF orientation, 1 to 8: how the rows have to be turned and mirrored; 1 is not at all."""

    @property
    def shown(self) -> tuple[int, int]:
        """Width and height as a person sees it."""
        width, height = self.stored
        return (height, width) if self.orientation >= 5 else (width, height)


@dataclass(frozen=True, slots=True)
class EncodedPicture:
    """A picture's file, of which only the header was read."""

    content: bytes
    name: str
    """What messages call it."""
    size: tuple[int, int]
    """Width and height that `decode` gives."""
    options: PictureOptions

    def decode(self) -> Image.Image:
        """The picture as RGB."""
        with identify(self.content, self.name, self.options) as image:
            return to_rgb(image, self.name, self.options)


def read_picture(
    source: str | Path | bytes, options: PictureOptions | None = None
) -> EncodedPicture:
    """The bytes and the size of a picture in a file, a URL or encoded bytes; nothing decoded."""
    options = options or PictureOptions()
    name = describe(source, "picture")
    content = read_source(source, "picture", options.remote)
    if isinstance(content, Path):
        content = _read_file(content, name)
    with identify(content, name, options) as image:
        header = PictureHeader(image.size, _orientation(image))
    size = header.stored if options.official else header.shown
    return EncodedPicture(content, name, size, options)


def picture_header(
    source: str | Path | bytes, options: PictureOptions | None = None
) -> PictureHeader:
    """The size and orientation of a picture in a file, a URL or encoded bytes."""
    options = options or PictureOptions()
    name = describe(source, "picture")
    with identify(read_source(source, "picture", options.remote), name, options) as image:
        return PictureHeader(image.size, _orientation(image))


def picture_size(
    source: str | Path | bytes | Image.Image, options: PictureOptions | None = None
) -> tuple[int, int]:
    """Width and height that `open_picture` would give, from the header alone."""
    options = options or PictureOptions()
    if isinstance(source, Image.Image):
        return open_picture(source, options).size
    header = picture_header(source, options)
    return header.stored if options.official else header.shown


def describe(source: object, kind: MediaKind) -> str:
    """A name for `source` in messages, never longer than a line."""
    if isinstance(source, bytes):
        return f"{kind} of {len(source)} bytes"
    text = str(source)
    if text[:5].lower() == "data:":
        return f"{kind} {shorten(text, 30)} ({len(text)} characters)"
    return f"{kind} {shorten(text, 200)}"


def read_source(source: str | Path | bytes, kind: MediaKind, remote: RemoteLimits) -> bytes | Path:
    """Bytes of a URL, or the path of a file that exists and holds something."""
    name = describe(source, kind)
    if source == "":
        raise MediaError(f"the path of a {kind} is empty")
    if isinstance(source, str) and (scheme := _SCHEME.match(source)):
        content = _read_url(source, (scheme[1] or scheme[2]).lower(), kind, remote)
    elif isinstance(source, bytes):
        content = source
    elif isinstance(source, str | Path):
        return _existing_file(Path(source), name)
    else:
        raise MediaError(f"a {kind} cannot be a {type(source).__name__}")
    if not content:
        raise MediaError(f"{name} is empty (0 bytes)")
    return content


def not_media(name: str, content: bytes | Path, expected: str) -> MediaError:
    """The error for a file that is something else, saying what it looks like."""
    start = first_bytes(content).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    known = next((what for magic, what in _LOOKS_LIKE if start.startswith(magic.lower())), None)
    if known is None and start and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start):
        known = "text"
    looks = f" (it looks like {known})" if known else ""
    return MediaError(f"{name} is not a {expected}{looks}")


def first_bytes(content: bytes | Path, count: int = 64) -> bytes:
    """How a file begins, which tells its kind more reliably than its name."""
    if isinstance(content, bytes):
        return content[:count]
    with content.open("rb") as file:
        return file.read(count)


def _read_url(url: str, scheme: str, kind: MediaKind, remote: RemoteLimits) -> bytes:
    if scheme == "data":
        return decode_data_url(url, remote.max_bytes(kind))
    if scheme in ("http", "https"):
        return fetch(url, remote, kind)
    raise MediaError(
        f"{kind} {shorten(url)}: unknown scheme {scheme!r}; accepted: http, https, data, or a path"
    )


def _existing_file(path: Path, name: str) -> Path:
    try:
        if path.is_dir():
            raise MediaError(f"{name} is a directory; a file is needed")
        if not path.exists():
            raise MediaError(f"{name} does not exist")
        if not path.is_file():
            raise MediaError(f"{name} is not a regular file")
        if path.stat().st_size == 0:
            raise MediaError(f"{name} is empty (0 bytes)")
        with path.open("rb"):
            return path
    except OSError as error:
        raise MediaError(f"{name} cannot be read: {error.strerror}") from error


def _read_file(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MediaError(f"{name} cannot be read: {error.strerror}") from error


def identify(content: bytes | Path, name: str, options: PictureOptions) -> Image.Image:
    """An open picture of bearable size; no pixel is decoded yet."""
    is_avif = first_bytes(content)[4:12] in (b"ftypavif", b"ftypavis") and _has_avif()
    file = io.BytesIO(content) if isinstance(content, bytes) else content
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(file, formats=("AVIF",) if is_avif else FORMATS)
    except UnidentifiedImageError as error:
        raise not_media(name, content, f"picture; accepted: {ACCEPTED}") from error
    except Image.DecompressionBombError as error:
        raise MediaError(f"{name} has far more than {options.max_pixels} pixels") from error
    except DECODE_ERRORS as error:
        raise damaged(name, error) from error
    try:
        _check_size(image.size, name, options.max_pixels)
    except MediaError:
        image.close()
        raise
    return image


def _has_avif() -> bool:
    Image.init()
    return "AVIF" in Image.OPEN


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise MediaError(f"{name} is empty: {width}x{height} pixels")
    if width * height > max_pixels:
        raise MediaError(
            f"{name} has {width}x{height} = {width * height} pixels; at most {max_pixels}"
        )


def to_rgb(image: Image.Image, name: str, options: PictureOptions) -> Image.Image:
    """The picture decoded, as RGB."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
            return _as_rgb(image) if options.official else _readable(image)
    except DECODE_ERRORS as error:
        raise damaged(name, error) from error


def damaged(name: str, error: BaseException) -> MediaError:
    """The error for a file that a decoder gives up on."""
    reason = shorten(str(error) or type(error).__name__, 120)
    return MediaError(f"{name} is damaged or of an unsupported kind: {reason}")


def _readable(image: Image.Image) -> Image.Image:
    """As a person would see it: upright, on white, with its whole range of brightness."""
    orientation = _orientation(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _scale_to_8_bits(image)
    elif image.has_transparency_data:
        image = _on_white(image.convert("RGBA"))
    return _turned(_as_rgb(image), orientation)


def _as_rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    transpose = _TRANSPOSE.get(orientation)
    if transpose is None:
        return image
    turned = image.transpose(transpose)
    turned.info.clear()  # EXIF or XMP would have it turned once more
    return turned


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; 1 where the file has none or its EXIF block is broken."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except DECODE_ERRORS:
        return 1
    return value if isinstance(value, int) else 1


def _on_white(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits by its full range; other integers and floats beyond it by what they span."""
    values = np.asarray(image).astype(np.float64)
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if image.mode != "F" and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    elif low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    scaled = (values - low) * (255.0 / max(high - low, 1e-12))
    return Image.fromarray(np.rint(scaled).astype(np.uint8))
