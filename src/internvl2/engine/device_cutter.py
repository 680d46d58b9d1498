"""Pictures cut into tiles on a CUDA device, with Pillow's arithmetic to the last bit.

Pixels go there and tiles come back, so that prompts, caches and digests are what they are
everywhere; even so a prompt about a picture is ready in less than half of the time
(benchmarks/RESULTS.md). One lot of pictures is there at a time, on a stream that runs before the
model's work. Pixels and tiles pass through pinned memory, from which and to which the device copies
several times as fast; threads that stand ready copy on the host's side.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Int32, UInt8
from PIL import Image
from torch import Tensor

from internvl2.model.kernel_choice import KernelChoice, Trial
from internvl2.processing.fast_resize import WEIGHT_BITS, filter_taps
from internvl2.processing.image import Grid, cut
from internvl2.processing.resize import ROWS, Pixels, axis_order

MOST_BYTES = 72 * 2**20
"""Of pixels at all stages, of the pictures that are on the device together."""
RESERVED_BYTES = 2 * MOST_BYTES
"""What the memory plan keeps for them: pieces of other sizes leave gaps."""
KEPT_TAPS = 64
"""Weights that stay on the device, by old and new length; a few kilobytes each."""
SHARE = 2 * 2**20
"""Bytes that one thread copies: handing over fewer takes longer than copying them."""

_Pictures = UInt8[Tensor, "pictures height width 3"]


class DeviceCutter:
    """Cuts pictures on one device; any thread may ask."""

    def __init__(self, device: torch.device, threads: int) -> None:
        self.pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="cut")
        self._threads = max(1, threads)
        self._device = device
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream(priority=-1)
        self._alone = threading.Lock()
        self._resizer = PictureResizer(device)

    def most_together(self, size: tuple[int, int], grid: Grid, side: int) -> int:
        """How many pictures of a width and height are cut at once; 0 where one is too large."""
        return MOST_BYTES // _bytes_of(size, grid, side)

    def cut(
        self,
        pictures: Sequence[Pixels],
        grid: Grid,
        tiles: UInt8[np.ndarray, "pictures tiles side side 3"],
    ) -> None:
        """Fills the tiles of pictures of one size, as many of them as are cut at once."""
        with torch.cuda.device(self._device):
            pixels = _pinned((len(pictures), *pictures[0].shape))
            self._copy(pictures, list(pixels.numpy()))
            with self._alone, torch.cuda.stream(self._stream):
                back = self._cut(pixels, grid, tiles.shape)
                self._copy(list(back.numpy()), list(tiles))

    def _cut(self, pixels: _Pictures, grid: Grid, shape: tuple[int, ...]) -> Tensor:
        """Tiles of that shape in pinned memory; nothing is left on the device."""
        side, thumbnail = shape[2], shape[1] > grid.tiles
        back = _pinned(shape)
        there = pixels.to(self._device, non_blocking=True)
        back.copy_(self._resizer.tiles(there, grid, side, thumbnail), non_blocking=True)
        # Waits for this stream alone, and holds up no other thread.
        self._stream.synchronize()
        return back

    def _copy(self, sources: Sequence[np.ndarray], places: Sequence[np.ndarray]) -> None:
        """Fills places with what is in as many sources of their shapes."""
        shares = shares_of(sources, places, self._threads)
        if len(shares) == 1:
            _copy_all(shares[0])
        else:
            list(self.pool.map(_copy_all, shares))


class Piece(NamedTuple):
    """Some rows of an array, and where they go."""

    source: np.ndarray
    place: np.ndarray


def shares_of(
    sources: Sequence[np.ndarray], places: Sequence[np.ndarray], threads: int
) -> list[list[Piece]]:
    """What each of at most so many threads copies; few where there is little."""
    pieces: list[Piece] = []
    for source, place in zip(sources, places, strict=True):
        rows = max(1, SHARE * len(place) // place.nbytes)
        parts = [slice(first, first + rows) for first in range(0, len(place), rows)]
        pieces += [Piece(source[part], place[part]) for part in parts]
    total = sum(place.nbytes for place in places)
    count = max(1, min(threads, len(pieces), total // SHARE))
    return [pieces[first::count] for first in range(count)]


def _copy_all(pieces: list[Piece]) -> None:
    """NumPy copies without holding the interpreter."""
    for piece in pieces:
        np.copyto(piece.place, piece.source)


def _pinned(shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=torch.uint8, pin_memory=True)


def device_cutter(device: torch.device, threads: int) -> DeviceCutter | None:
    """What cuts pictures on a device; None, with a warning, where its kernel does not do."""
    trial = Trial(
        "pictures resized on the device",
        fused=lambda pixels: PictureResizer(pixels.device).tiles(pixels, _TRIED, _SIDE, True),
        plain=_cut_by_pillow,
        inputs=(_example(device),),
        tolerance=0.0,
    )
    return DeviceCutter(device, threads) if KernelChoice().prepare(trial) else None


class _Taps(NamedTuple):
    """`fast_resize.Taps` on the device."""

    starts: Int32[Tensor, " length"]
    weights: Int32[Tensor, "taps length"]


class PictureResizer:
    """The arithmetic, on the current stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._taps = lru_cache(maxsize=KEPT_TAPS)(self._upload_taps)

    def tiles(
        self, pixels: _Pictures, grid: Grid, side: int, thumbnail: bool
    ) -> UInt8[Tensor, "pictures tiles side side 3"]:
        """Tiles in reading order, then the thumbnail where there is more than one tile."""
        whole = self._resized(pixels, (grid.rows * side, grid.columns * side))
        pattern = "n (rows y) (columns x) c -> n (rows columns) y x c"
        tiles = rearrange(whole, pattern, y=side, x=side)
        if not thumbnail or grid.tiles == 1:
            return tiles.contiguous()
        return torch.cat([tiles, self._resized(pixels, (side, side))[:, None]], dim=1)

    def _resized(self, pixels: _Pictures, shape: tuple[int, int]) -> _Pictures:
        height, width = pixels.shape[1:3]
        for axis in axis_order((height, width), shape):
            pixels = self._along(pixels, axis, shape[axis])
        return pixels

    def _along(self, pixels: _Pictures, axis: int, length: int) -> _Pictures:
        from internvl2.model.triton_kernels.resample import resample

        count, height, width, _ = pixels.shape
        if (height, width)[axis] == length:
            return pixels
        taps = self._taps((height, width)[axis], length)
        if axis == ROWS:
            lines = rearrange(pixels, "n y x c -> n y (x c)")
            resized = resample(lines, taps.starts, taps.weights, WEIGHT_BITS)
            return rearrange(resized, "n y (x c) -> n y x c", x=width)
        lines = rearrange(pixels, "n y x c -> (n y) x c")
        resized = resample(lines, taps.starts, taps.weights, WEIGHT_BITS)
        return rearrange(resized, "(n y) x c -> n y x c", n=count)

    def _upload_taps(self, old: int, new: int) -> _Taps:
        taps = filter_taps(old, new)
        return _Taps(*(torch.from_numpy(x.astype(np.int32)).to(self._device) for x in taps))


def _bytes_of(size: tuple[int, int], grid: Grid, side: int) -> int:
    """Pixels of a picture, resized along one axis, along both, and cut; and of its thumbnail."""
    width, height = size
    wide, high = grid.columns * side, grid.rows * side
    between = max(height * max(wide, side), width * max(high, side))
    return 3 * (width * height + between + 2 * wide * high + 2 * side * side)


_TRIED, _SIDE = Grid(2, 1), 32


def _example(device: torch.device) -> UInt8[Tensor, "one height width 3"]:
    """A picture that is enlarged along one axis and shrunk along the other, in two tiles."""
    numbers = np.random.default_rng(0).integers(0, 256, (1, 90, 45, 3), np.uint8)
    return torch.from_numpy(numbers).to(device)


def _cut_by_pillow(
    pixels: UInt8[Tensor, "one height width 3"],
) -> UInt8[Tensor, "one tiles side side 3"]:
    image = Image.fromarray(pixels[0].cpu().numpy())
    return torch.from_numpy(cut(image, _TRIED, _SIDE))[None].to(pixels.device)
