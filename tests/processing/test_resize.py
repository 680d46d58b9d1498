"""Pieces make what Pillow makes of the whole; PyTorch's kernel, corrected, hardly differs."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from internvl2.processing import resize
from internvl2.processing.fast_resize import resample
from internvl2.processing.image import Grid, PictureOptions, cut
from internvl2.processing.resize import Place, resize_into, shrink
from internvl2.processing.video import read_frames

SIZES = [(400, 300), (900, 640), (170, 260), (150, 149), (300, 1200)]
"""Enlarged and reduced; by a ratio that makes a weight of one; so tall that rows may go first."""


def photo(width, height):
    rng = np.random.default_rng(7)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    grain = rng.integers(-12, 13, (height, width, 1), np.int16)
    return Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))


def page(width, height):
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    for y in range(4, height, 14):
        draw.text((5, y), f"{y} letters on a page, 0123456789", fill=(y % 90, 0, 40))
    return image


def resized(image, width, height, arithmetic, threads=1):
    tiles = np.empty((1, height, width, 3), np.uint8)
    resize_into([Place.of_grid(tiles, columns=1)], image, arithmetic, threads)
    return tiles[0]


def by_pillow(image, width, height):
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(resize, "PIECE", 10_000)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("draw", "by_two"), [(photo, 5e-6), (page, 1e-5)])
def test_few_fast_values_differ_from_pillows_and_they_differ_by_one(draw, by_two, size):
    image = draw(*size)
    exact = by_pillow(image, 448, 336).astype(int)
    difference = np.abs(exact - resized(image, 448, 336, "fast"))
    assert (difference > 0).mean() < 0.003
    assert (difference > 1).mean() <= by_two
    assert difference.max() <= 2


def test_noise_of_every_brightness_is_resized_within_the_bound_too():
    noise = np.random.default_rng(3).integers(0, 256, (300, 400, 3), np.uint8)
    exact = by_pillow(Image.fromarray(noise), 448, 336).astype(int)
    difference = np.abs(exact - resized(Image.fromarray(noise), 448, 336, "fast"))
    assert (difference > 0).mean() < 0.003


@pytest.mark.parametrize("length", [31, 150, 448])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_fast_axis_is_pillows_where_the_kernel_alone_would_not_be(axis, length):
    image = photo(150, 140)
    size = (length, 140) if axis else (150, length)
    difference = np.abs(
        by_pillow(image, *size).astype(int) - resample(np.array(image), axis, length)
    )
    assert (difference > 0).mean() < 0.0005


@pytest.mark.parametrize("size", SIZES)
def test_exact_pieces_are_what_pillow_makes_of_the_whole(size, small_pieces):
    image = photo(*size)
    tiles = np.empty((6, 40, 56, 3), np.uint8)
    small = np.empty((1, 40, 40, 3), np.uint8)
    places = [Place.of_grid(tiles, columns=3), Place.of_grid(small, columns=1)]
    resize_into(places, image, "exact", threads=5)
    whole = by_pillow(image, 168, 80)
    parts = [np.split(row, 3, axis=1) for row in np.split(whole, 2)]
    assert (tiles == np.stack([tile for row in parts for tile in row])).all()
    assert (small[0] == by_pillow(image, 40, 40)).all()


@pytest.mark.parametrize("size", SIZES)
def test_fast_pieces_are_what_one_thread_makes(size, small_pieces):
    image = photo(*size)
    alone, shared = (cut(image, Grid(3, 2), 56, True, "fast", threads) for threads in (1, 3))
    assert (alone == shared).all()


def test_a_wrong_guess_of_where_pillow_begins_would_be_seen():
    image = photo(300, 1200)
    columns_first = by_pillow(image, 448, 1200)
    columns_first = by_pillow(Image.fromarray(columns_first), 448, 336)
    assert (resized(image, 448, 336, "exact") == by_pillow(image, 448, 336)).all()
    assert (columns_first != by_pillow(image, 448, 336)).any() == resize._pillow_chooses()


def test_exact_tiles_are_what_one_gets_unless_asked_otherwise():
    image = photo(300, 200)
    exact = cut(image, Grid(3, 2), 56)
    assert (exact == cut(image, Grid(3, 2), 56, True, "exact")).all()
    assert (exact[-1] == by_pillow(image, 56, 56)).all()
    assert PictureOptions().arithmetic == "exact"


def test_fast_tiles_are_in_the_places_of_exact_ones():
    image = photo(300, 200)
    exact, fast = (cut(image, Grid(3, 2), 56, True, how).astype(int) for how in ("exact", "fast"))
    assert exact.shape == fast.shape == (7, 56, 56, 3)
    assert np.abs(exact - fast).max() <= 1


@pytest.mark.parametrize("arithmetic", ["exact", "fast"])
def test_a_picture_of_the_wanted_size_is_left_as_it_is(arithmetic):
    image = photo(56, 56)
    assert (resized(image, 56, 56, arithmetic) == np.asarray(image)).all()
    assert (np.asarray(shrink(image, 56, arithmetic)) == np.asarray(image)).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 20000), (20000, 1), (2, 3)])
def test_pictures_of_extreme_shape_are_resized_fast_too(size):
    assert (resized(Image.new("RGB", size, "red"), 112, 56, "fast") == [255, 0, 0]).all()


def test_frames_of_a_video_are_shrunk_as_asked():
    frames = (photo(200, 100), photo(100, 200))
    options = PictureOptions(arithmetic="fast")
    found = read_frames(frames, 2, options=options, shrink_to=56).images
    expected = [resized(frame, 56, 56, "fast") for frame in frames]
    assert all((np.asarray(a) == b).all() for a, b in zip(found, expected, strict=True))
