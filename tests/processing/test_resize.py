"""PyTorch's resize of bytes is nearly Pillow's, and taken only where it is asked for."""

import numpy as np
import pytest
from PIL import Image

from internvl2.processing.image import Grid, PictureOptions, cut
from internvl2.processing.resize import resizer, shrink
from internvl2.processing.video import read_frames


def photo(width, height):
    rng = np.random.default_rng(7)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    grain = rng.integers(-12, 13, (height, width, 1), np.int16)
    return Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("size", [(400, 300), (900, 640), (170, 260)])
def test_fast_pixels_are_within_two_of_255_and_hardly_any_differ(size):
    image, wanted = photo(*size), (448, 336)
    exact = resizer(image, "exact")(wanted).astype(int)
    difference = np.abs(exact - resizer(image, "fast")(wanted))
    assert difference.max() <= 2
    assert (difference > 0).mean() < 0.015
    assert (difference > 1).mean() < 1e-4


def test_exact_tiles_are_what_one_gets_unless_asked_otherwise():
    image = photo(300, 200)
    assert (cut(image, Grid(3, 2), 56) == cut(image, Grid(3, 2), 56, True, "exact")).all()
    assert (cut(image, Grid(3, 2), 56) != cut(image, Grid(3, 2), 56, True, "fast")).any()
    assert PictureOptions().arithmetic == "exact"


def test_fast_tiles_are_in_the_places_of_exact_ones():
    image = photo(300, 200)
    exact, fast = (cut(image, Grid(3, 2), 56, True, how).astype(int) for how in ("exact", "fast"))
    assert exact.shape == fast.shape == (7, 56, 56, 3)
    assert np.abs(exact - fast).max() <= 2


def test_a_picture_of_the_wanted_size_is_left_as_it_is():
    image = photo(56, 56)
    assert (resizer(image, "fast")((56, 56)) == np.asarray(image)).all()
    assert (np.asarray(shrink(image, 56, "fast")) == np.asarray(image)).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 20000), (20000, 1), (2, 3)])
def test_pictures_of_extreme_shape_are_resized_fast_too(size):
    assert (resizer(Image.new("RGB", size, "red"), "fast")((112, 56)) == [255, 0, 0]).all()


def test_frames_of_a_video_are_shrunk_as_asked():
    frames = (photo(200, 100), photo(100, 200))
    options = PictureOptions(arithmetic="fast")
    found = read_frames(frames, 2, options=options, shrink_to=56).images
    expected = [resizer(frame, "fast")((56, 56)) for frame in frames]
    assert all((np.asarray(a) == b).all() for a, b in zip(found, expected, strict=True))
