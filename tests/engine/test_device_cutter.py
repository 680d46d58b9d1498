"""Pictures that are cut on the device have the tiles, and digests, that the host gives them."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from internvl2.checkpoint.config_files import read_config
from internvl2.checkpoint.hub import EMBEDDED, locate
from internvl2.engine.device_cutter import MOST_BYTES, DeviceCutter, device_cutter
from internvl2.processing.conversation import Message, Picture, Video
from internvl2.processing.image import Grid, cut
from internvl2.processing.processor import Processor


class HostCutter:
    """Cuts as the device would, and notes what it was given."""

    def __init__(self, most=3):
        self.most = most
        self.lots = []

    def most_together(self, size, grid, side):
        return self.most

    def cut(self, pictures, grid, tiles):
        self.lots.append(len(pictures))
        for each, picture in zip(tiles, pictures, strict=True):
            each[:] = cut(Image.fromarray(picture), grid, tiles.shape[2])


@pytest.fixture(scope="module")
def processor():
    directory = locate(EMBEDDED).directory
    return Processor.from_directory(directory, read_config(directory))


def frames(count, width=70, height=40):
    rng = np.random.default_rng(count)
    return tuple(rng.integers(0, 256, (count, height, width, 3), np.uint8))


def tiles_by(cutter, images, grid, side):
    tiles = np.empty((len(images), grid.with_thumbnail(True), side, side, 3), np.uint8)
    cutter.cut([np.asarray(image) for image in images], grid, tiles)
    return tiles


def same(one, other):
    assert one.token_ids == other.token_ids
    assert one.media == other.media
    assert (one.tiles == other.tiles).all()


def test_a_picture_cut_elsewhere_is_the_same_prompt(processor):
    cutter = HostCutter()
    asked = (Message.user(Picture(Image.fromarray(frames(1, 900, 600)[0])), "What is this?"),)
    same(processor.cutting_with(cutter).encode(asked), processor.encode(asked))
    assert cutter.lots == [1]


def test_frames_are_cut_elsewhere_as_many_at_a_time_as_it_takes(processor):
    cutter = HostCutter()
    asked = (Message.user(Video(frames(8), num_frames=8), "What happens?"),)
    same(processor.cutting_with(cutter).encode(asked), processor.encode(asked))
    assert cutter.lots == [3, 3, 2]


def test_frames_of_two_sizes_are_cut_one_by_one(processor):
    cutter = HostCutter()
    both = Video((*frames(2), *frames(1, width=80)), num_frames=3)
    asked = (Message.user(both, "What happens?"),)
    same(processor.cutting_with(cutter).encode(asked), processor.encode(asked))
    assert cutter.lots == [1, 1, 1]


def test_a_picture_that_is_too_large_elsewhere_is_cut_here(processor):
    cutter = HostCutter(most=0)
    asked = (Message.user(Picture(Image.fromarray(frames(1, 900, 600)[0])), "What is this?"),)
    same(processor.cutting_with(cutter).encode(asked), processor.encode(asked))
    assert cutter.lots == []


def test_cutting_on_a_device_is_refused_on_a_cpu(make_engine):
    with pytest.raises(ValueError, match="the option device_cutting needs a CUDA device"):
        make_engine(device_cutting=True)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("width", "height", "columns", "rows"), [(1600, 1200, 4, 3), (90, 700, 1, 6)]
)
def test_a_gpu_cuts_a_picture_as_pillow_does(width, height, columns, rows):
    pytest.importorskip("triton", reason="runs kernels in Triton")
    cutter, grid = device_cutter(torch.device("cuda")), Grid(columns, rows)
    assert cutter is not None
    image = Image.fromarray(frames(1, width, height)[0])
    assert (tiles_by(cutter, [image], grid, 448)[0] == cut(image, grid, 448)).all()


@pytest.mark.gpu
def test_threads_share_a_gpu_that_cuts():
    pytest.importorskip("triton", reason="runs kernels in Triton")
    cutter, grid = DeviceCutter(torch.device("cuda")), Grid(3, 2)
    images = [Image.fromarray(frame) for frame in frames(24, 640, 360)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda image: tiles_by(cutter, [image], grid, 56)[0], images))
    for tiles, image in zip(found, images, strict=True):
        assert (tiles == cut(image, grid, 56)).all()


@pytest.mark.gpu
def test_a_gpu_holds_no_more_pixels_than_are_reserved():
    cutter, grid, side = DeviceCutter(torch.device("cuda")), Grid(4, 3), 448
    most = cutter.most_together((640, 360), grid, side)
    images = [Image.fromarray(frame) for frame in frames(most, 640, 360)]
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    tiles_by(cutter, images, grid, side)
    assert torch.cuda.max_memory_allocated() - before <= MOST_BYTES
