"""Which grid a picture gets, and what its tiles hold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from internvl2.processing.image import Grid, candidate_grids, choose_grid, cut, pad_to_square


def gradient(width, height):
    ramp = np.linspace(0, 255, width * height * 3).reshape(height, width, 3)
    return Image.fromarray(ramp.astype(np.uint8))


def closest_ratio(width, height, ratios, tile_size):
    """The rule as its paper words it, over ratios that are already in order."""
    best, best_difference = (1, 1), float("inf")
    for columns, rows in ratios:
        difference = abs(width / height - columns / rows)
        if difference < best_difference:
            best, best_difference = (columns, rows), difference
        elif difference > best_difference:
            continue
        elif width * height > 0.5 * tile_size * tile_size * columns * rows:
            best = (columns, rows)
    return best


def ratios_by_brute_force(smallest, largest):
    found = set()
    for n in range(smallest, largest + 1):
        for i in range(1, n + 1):
            for j in range(1, n + 1):
                if smallest <= i * j <= largest:
                    found.add((i, j))
    return sorted(found, key=lambda ratio: ratio[0] * ratio[1])


def test_candidates_of_equal_area_keep_the_official_order():
    for largest in range(1, 41):
        for smallest in range(1, min(largest, 6) + 1):
            assert list(candidate_grids(smallest, largest)) == ratios_by_brute_force(
                smallest, largest
            )


def test_a_sweep_of_sizes_gives_the_grids_of_the_rule():
    sides = range(1, 2001, 29)
    for largest in range(1, 13):
        ratios = ratios_by_brute_force(1, largest)
        for width in sides:
            for height in sides:
                assert choose_grid(width, height, 448, 1, largest) == closest_ratio(
                    width, height, ratios, 448
                )


def test_a_small_picture_is_not_blown_up_to_a_larger_grid_of_its_ratio():
    assert choose_grid(448, 448) == Grid(1, 1)
    assert choose_grid(1400, 1400) == Grid(3, 3)


def test_tile_limits_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="tiles from 4 to 2"):
        choose_grid(10, 10, 448, 4, 2)


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 12), st.booleans())
def test_the_number_of_tiles_is_the_grid_and_its_thumbnail(width, height, most, thumbnail):
    grid = choose_grid(width, height, 448, 1, most)
    tiles = cut(Image.new("RGB", (width, height)).resize((9, 9)), grid, 14, thumbnail)
    assert 1 <= grid.tiles <= most
    assert tiles.shape == (grid.tiles + (thumbnail and grid.tiles > 1), 14, 14, 3)


def test_tiles_are_in_reading_order():
    picture = gradient(300, 200)
    filled = np.asarray(picture.resize((84, 56), Image.Resampling.BICUBIC))
    tiles = cut(picture, Grid(3, 2), 28)
    assert (tiles[2] == filled[:28, 56:]).all()
    assert (tiles[3] == filled[28:, :28]).all()


def test_the_thumbnail_is_the_last_tile():
    picture = gradient(300, 200)
    tiles = cut(picture, Grid(3, 2), 28)
    whole = np.asarray(picture.resize((28, 28), Image.Resampling.BICUBIC))
    assert len(tiles) == 7
    assert (tiles[-1] == whole).all()


def test_a_single_tile_has_no_thumbnail():
    assert len(cut(gradient(50, 50), Grid(1, 1), 28)) == 1


def test_tiles_can_be_written_to_and_are_contiguous():
    tiles = cut(gradient(90, 60), Grid(1, 1), 28, thumbnail=False)
    assert tiles.flags.c_contiguous
    assert tiles.dtype == np.uint8


def test_padding_centres_the_picture_on_a_square():
    square = pad_to_square(Image.new("RGB", (10, 4), "white"), (1, 2, 3))
    assert square.size == (10, 10)
    assert square.getpixel((0, 2)) == (1, 2, 3)
    assert square.getpixel((0, 3)) == (255, 255, 255)
    assert square.getpixel((9, 7)) == (1, 2, 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 20000), (20000, 1), (2, 3)])
def test_pictures_of_extreme_shape_are_cut(size):
    grid = choose_grid(*size)
    tiles = cut(Image.new("RGB", size, "red"), grid, 56)
    assert len(tiles) == grid.tiles + (grid.tiles > 1)
    assert (tiles == [255, 0, 0]).all()
