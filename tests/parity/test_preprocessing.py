"""Grids, tiles and frames against what the official preprocessing recorded."""

import hashlib
import json

import av
import numpy as np
import pytest

from internvl2.processing.image import (
    PictureOptions,
    choose_grid,
    cut,
    open_picture,
    pad_to_square,
)
from internvl2.processing.video import read_frames, sample_indices

pytestmark = pytest.mark.parity

MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def expected(data):
    return json.loads(data("official", "preprocessing", "expected.json").read_text())


def count_with_thumbnail(grid, thumbnail=True):
    return [grid.columns, grid.rows, grid.tiles + (thumbnail and grid.tiles > 1)]


def official(data, picture):
    return open_picture(data("official", *picture.split("/")), PictureOptions(official=True))


def normalised(tiles):
    return ((tiles / 255 - MEAN) / STD).transpose(0, 3, 1, 2)


def test_every_recorded_grid_is_chosen(expected):
    limits = (1, 4, 6, 12, 24)
    for width, height, *grids in expected["grids"]["rows"]:
        chosen = [choose_grid(width, height, 448, 1, limit) for limit in limits]
        assert [count_with_thumbnail(grid) for grid in chosen] == grids


def test_grids_of_other_tile_sizes_and_limits_are_chosen(expected):
    for case in expected["grids_other"]:
        grid = choose_grid(*case["size"], case["image_size"], case["min_num"], case["max_num"])
        assert count_with_thumbnail(grid, case["use_thumbnail"]) == case["grid"], case


def test_tiles_of_every_recorded_picture_are_equal(expected, data):
    cases = [case for case in expected["pictures"] if case["sha256_u8_tiles"]]
    for case in cases:
        image = official(data, case["picture"])
        grid = choose_grid(*image.size, case["image_size"], 1, case["max_num"])
        tiles = cut(image, grid, case["image_size"], case["use_thumbnail"])
        digests = [hashlib.sha256(tile.tobytes()).hexdigest() for tile in tiles]
        assert digests == case["sha256_u8_tiles"], case["picture"]
    assert len(cases) > 50


def test_whole_normalised_tensors_are_equal(expected, data):
    for name, case in expected["full_tensors"].items():
        image = official(data, case["picture"])
        if case.get("pad2square"):
            image = pad_to_square(image)
        grid = choose_grid(*image.size, case["image_size"], 1, case["max_num"] or 1)
        pixels = normalised(cut(image, grid, case["image_size"]))
        recorded = np.load(data("official", "preprocessing", name))
        np.testing.assert_allclose(pixels, recorded, atol=1e-6)


def test_padding_uses_the_mean_colour_of_the_normalisation(expected, data):
    cases = [c for c in expected["pictures"] if c.get("pad2square") and c["max_num"] == 0]
    for case in cases:
        siglip = case.get("normalize_type") == "siglip"
        mean, std = (0.5, 0.5) if siglip else (MEAN, STD)
        colour = (127, 127, 127) if siglip else (123, 116, 103)
        square = pad_to_square(official(data, case["picture"]), colour)
        tiles = cut(square, choose_grid(*square.size, 448, 1, 1), 448)
        pixels = ((tiles / 255 - mean) / std).transpose(0, 3, 1, 2)
        recorded = np.array(case["mean"])
        np.testing.assert_allclose(pixels.mean(axis=(2, 3)), recorded, atol=1e-5)
    assert cases


def test_every_recorded_frame_index_is_sampled(expected):
    for case in expected["video_get_index"]:
        last, count = case["num_frames"] - 1, case["num_segments"]
        bound = case["bound"] and (float(case["bound"][0]), float(case["bound"][1]))
        indices = sample_indices(bound, float(case["fps"]), last, count)
        assert indices == case["indices"], case


def test_frames_of_the_recorded_video_are_within_two_levels(expected, data):
    video = data("official", "preprocessing", "video.mp4")
    recorded = np.load(data("official", "preprocessing", "expected.npz"))["video_frames_8"]
    for run in expected["video_file"]["runs"]:
        start, end = run["bound"] or (None, None)
        frames = read_frames(video, run["num_segments"], start, end)
        means = [np.asarray(image).mean(axis=(0, 1)) for image in frames.images]
        assert list(frames.indices) == run["indices"]
        np.testing.assert_allclose(means, run["frame_channel_means"], atol=2)
    frames = read_frames(video, 8)
    pixels = np.stack([np.asarray(image) for image in frames.images]).astype(int)
    assert abs(pixels - recorded).max() <= 2


@pytest.mark.slow
def test_the_real_video_is_sampled_as_the_example_samples_it(data):
    path = data("media", "red-panda.mp4")
    frames = read_frames(path, 8, shrink_to=448)
    assert frames.indices == (55, 167, 279, 390, 502, 614, 725, 837)
    with av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index in frames.indices:
                image = frames.images[frames.indices.index(index)]
                assert image == frame.to_image().resize((448, 448))


@pytest.mark.parametrize(
    ("picture", "most", "tiles"),
    [
        ("examples_image1.jpg", 12, 13),
        ("examples_image1.jpg", 6, 7),
        ("examples_image2.jpg", 12, 10),
        ("twitter3.jpeg", 12, 7),
    ],
)
def test_real_pictures_have_the_published_number_of_tiles(data, picture, most, tiles):
    image = open_picture(data("media", picture))
    assert len(cut(image, choose_grid(*image.size, 448, 1, most))) == tiles
