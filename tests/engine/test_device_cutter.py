"""Pictures that are cut on the device have the tiles, and digests, that the host gives them."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from internvl2.checkpoint.config_files import read_config
from internvl2.checkpoint.hub import EMBEDDED, locate
from internvl2.engine.device_cutter import (
    MOST_BYTES,
    SHARE,
    DeviceCutter,
    device_cutter,
    shares_of,
)
from internvl2.processing.conversation import Message, Picture, Video
from internvl2.processing.image import Grid, cut
from internvl2.processing.processor import EncodeOptions, Processor
from internvl2.processing.tile_cache import digest


class StandingThreads(ThreadPoolExecutor):
    """Notes what they are given to do."""

    def __init__(self, count):
        super().__init__(count)
        self.done = []

    def map(self, work, *items, **options):
        self.done.append(work)
        return super().map(work, *items, **options)


class HostCutter:
    """Cuts as the device would, and notes what it was given."""

    def __init__(self, most=3):
        self.most = most
        self.lots = []
        self.given = []
        self.pool = StandingThreads(2)

    def most_together(self, size, grid, side):
        return self.most

    def cut(self, pictures, grid, tiles):
        self.lots.append(len(pictures))
        self.given += pictures
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


def test_arrays_of_frames_are_cut_elsewhere_without_a_picture_made_of_them(processor):
    cutter, given = HostCutter(), frames(5)
    processor.cutting_with(cutter).encode((Message.user(Video(given, num_frames=5)),))
    assert all(one is other for one, other in zip(cutter.given, given, strict=True))


def test_frames_cut_elsewhere_are_hashed_by_threads_that_stand_ready(processor):
    cutter, asked = HostCutter(), (Message.user(Video(frames(8), num_frames=8)),)
    processor.cutting_with(cutter).encode(asked)
    assert cutter.pool.done == [digest] * 3
    prompt = processor.cutting_with(cutter).encode(asked, options=EncodeOptions(digests=False))
    assert cutter.pool.done == [digest] * 3
    assert {span.digest for span in prompt.media} == {b""}


@pytest.mark.parametrize(
    ("shape", "threads", "count"),
    [
        ((1, 90, 40, 3), 8, 1),  # too little for a second thread
        ((19, 360, 640, 3), 16, 6),
        ((19, 360, 640, 3), 4, 4),
        ((19, 360, 640, 3), 1, 1),
        ((1, 1200, 1600, 3), 16, 2),
        ((1, 13, 448, 448, 3), 16, 3),
    ],
)
def test_threads_share_what_is_copied_and_leave_nothing_out(shape, threads, count):
    source, place = np.random.default_rng(0).integers(0, 256, shape, np.uint8), np.zeros(shape)
    place = place.astype(np.uint8)
    shares = shares_of(list(source), list(place), threads)
    assert len(shares) == count
    assert sum(piece.place.nbytes for share in shares for piece in share) == place.nbytes
    assert all(piece.place.nbytes <= SHARE for share in shares for piece in share)
    for share in shares:
        for piece in share:
            piece.place[:] = piece.source
    assert (place == source).all()


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
    cutter, grid = device_cutter(torch.device("cuda"), 4), Grid(columns, rows)
    assert cutter is not None
    image = Image.fromarray(frames(1, width, height)[0])
    assert (tiles_by(cutter, [image], grid, 448)[0] == cut(image, grid, 448)).all()


@pytest.mark.gpu
@pytest.mark.parametrize("threads", [1, 16])
def test_a_gpu_cuts_many_frames_that_threads_copy_as_pillow_does(threads):
    pytest.importorskip("triton", reason="runs kernels in Triton")
    cutter, grid = DeviceCutter(torch.device("cuda"), threads), Grid(1, 1)
    for _ in range(3):  # pinned memory of the call before is used again
        images = [Image.fromarray(frame) for frame in frames(19, 640, 360)]
        for tiles, image in zip(tiles_by(cutter, images, grid, 448), images, strict=True):
            assert (tiles == cut(image, grid, 448)).all()


@pytest.mark.gpu
def test_threads_share_a_gpu_that_cuts():
    pytest.importorskip("triton", reason="runs kernels in Triton")
    cutter, grid = DeviceCutter(torch.device("cuda"), 4), Grid(3, 2)
    images = [Image.fromarray(frame) for frame in frames(24, 640, 360)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda image: tiles_by(cutter, [image], grid, 56)[0], images))
    for tiles, image in zip(found, images, strict=True):
        assert (tiles == cut(image, grid, 56)).all()


@pytest.mark.gpu
def test_a_gpu_holds_no_more_pixels_than_are_reserved():
    cutter, grid, side = DeviceCutter(torch.device("cuda"), 4), Grid(4, 3), 448
    most = cutter.most_together((640, 360), grid, side)
    images = [Image.fromarray(frame) for frame in frames(most, 640, 360)]
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    tiles_by(cutter, images, grid, side)
    assert torch.cuda.max_memory_allocated() - before <= MOST_BYTES
