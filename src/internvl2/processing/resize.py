"""Bicubic resizing: Pillow's arithmetic, or PyTorch's corrected, faster and hardly different.

Pillow's pixels are those that the family was trained with, and everybody's choice unless asked
otherwise. Both resize one axis after the other and round to bytes between. So pieces of a picture
can be resized along the first axis apart from each other, and then pieces of what that gives along
the second, which is how threads share one picture.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from einops import rearrange
from jaxtyping import UInt8
from PIL import Image

from internvl2.processing.fast_resize import resample, resample_roughly

Arithmetic = Literal["exact", "fast", "rough"]
"""As Pillow computes, nearly so, or as PyTorch does: enough to learn from drawn pictures."""
Pixels = UInt8[np.ndarray, "height width 3"]

ROWS, COLUMNS = 0, 1
"""The axes of a picture."""
PIECE = 3 * 2**19
"""Values, before and after together, of a piece: fewer, and threads wait for the interpreter."""


T = TypeVar("T")
_Start = Callable[[Callable[[], Any]], Future[Any]]
"""How work is begun, in this thread or in another."""


@dataclass(frozen=True)
class Place:
    """Where a resized picture goes: tiles in their rows and columns, to be filled."""

    tiles: UInt8[np.ndarray, "rows y columns x 3"]

    @classmethod
    def of_grid(cls, tiles: UInt8[np.ndarray, "tiles y x 3"], columns: int) -> "Place":
        """Tiles in reading order, so many in a row."""
        return cls(tiles.reshape(-1, columns, *tiles.shape[1:]).swapaxes(1, 2))

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the picture."""
        rows, height, columns, width = self.tiles.shape[:4]
        return rows * height, columns * width

    def fill(self, pixels: Pixels, axis: int, start: int) -> None:
        """Takes a piece: some rows or columns of one tile's height or width, or everything."""
        _, height, _, width = self.tiles.shape[:4]
        if pixels.shape[:2] == self.shape:
            pattern = "(rows y) (columns x) c -> rows y columns x c"
            self.tiles[:] = rearrange(pixels, pattern, y=height, x=width)
        elif axis == ROWS:
            row, y = divmod(start, height)
            part = rearrange(pixels, "y (columns x) c -> y columns x c", x=width)
            self.tiles[row, y : y + len(pixels)] = part
        else:
            column, x = divmod(start, width)
            part = rearrange(pixels, "(rows y) x c -> rows y x c", y=height)
            self.tiles[:, :, column, x : x + pixels.shape[1]] = part


def resize_into(
    places: Sequence[Place], image: Image.Image, arithmetic: Arithmetic, threads: int = 1
) -> None:
    """Fills every place with an RGB picture, resized to its size by at most so many threads."""
    image.load()  # once, before threads read it
    if arithmetic == "rough":
        pixels = np.array(image)
        for place in places:
            place.fill(resample_roughly(pixels, *place.shape), ROWS, 0)
        return
    plane = _Picture(image) if arithmetic == "exact" else _Array(np.array(image))
    pieces = [_num_pieces(plane.shape, place.shape, threads) for place in places]
    if max(pieces) == 1:
        _fill(places, pieces, plane, _here)
        return
    with ThreadPoolExecutor(threads) as pool:  # resizing releases the interpreter
        _fill(places, pieces, plane, pool.submit)


def shrink(image: Image.Image, side: int, arithmetic: Arithmetic) -> Image.Image:
    """An RGB picture as a square of this side."""
    square = np.empty((1, side, side, 3), np.uint8)
    resize_into([Place.of_grid(square, columns=1)], image, arithmetic)
    return Image.fromarray(square[0])


@dataclass(frozen=True)
class _Picture:
    """Pillow's arithmetic."""

    image: Image.Image

    @property
    def shape(self) -> tuple[int, int]:
        return self.image.height, self.image.width

    def part(self, axis: int, start: int, stop: int) -> "_Picture":
        height, width = self.shape
        rows = (0, start, width, stop)
        return _Picture(self.image.crop(rows if axis == ROWS else (start, 0, stop, height)))

    @classmethod
    def joined(cls, parts: Sequence["_Picture"], axis: int) -> "_Picture":
        """Parts one after the other."""
        height, width = parts[0].shape
        total = sum(part.shape[axis] for part in parts)
        whole = Image.new("RGB", (width, total) if axis == ROWS else (total, height))
        first = 0
        for part in parts:
            whole.paste(part.image, (0, first) if axis == ROWS else (first, 0))
            first += part.shape[axis]
        return cls(whole)

    def resized(self, axis: int, length: int) -> "_Picture":
        if self.shape[axis] == length:
            return self
        height, width = self.shape
        size = (width, length) if axis == ROWS else (length, height)
        return _Picture(self.image.resize(size, Image.Resampling.BICUBIC))

    def pixels(self) -> Pixels:
        return np.asarray(self.image)


@dataclass(frozen=True)
class _Array:
    """PyTorch's arithmetic, corrected."""

    values: Pixels

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]

    def part(self, axis: int, start: int, stop: int) -> "_Array":
        return _Array(self.values[start:stop] if axis == ROWS else self.values[:, start:stop])

    @classmethod
    def joined(cls, parts: Sequence["_Array"], axis: int) -> "_Array":
        """Parts one after the other."""
        return cls(np.concatenate([part.values for part in parts], axis))

    def resized(self, axis: int, length: int) -> "_Array":
        return _Array(resample(self.values, axis, length))

    def pixels(self) -> Pixels:
        return self.values


_Plane = _Picture | _Array
"""Pixels that are resized one axis at a time, and cut and joined between."""


def _num_pieces(old: tuple[int, int], new: tuple[int, int], threads: int) -> int:
    values = 3 * (old[ROWS] * old[COLUMNS] + new[ROWS] * new[COLUMNS])
    return max(1, min(threads, values // PIECE))


def _fill(places: Sequence[Place], pieces: Sequence[int], plane: _Plane, start: _Start) -> None:
    """Resizes the picture for every place: all begin with the first axis."""
    orders = [axis_order(plane.shape, place.shape) for place in places]
    halves = [
        [
            start(partial(_resized, plane, order.first, place.shape[order.first], *bounds))
            for bounds in _bounds(plane.shape[order.second], 1, count)
        ]
        for place, order, count in zip(places, orders, pieces, strict=True)
    ]
    ends: list[Future[None]] = []
    for place, order, parts, count in zip(places, orders, halves, pieces, strict=True):
        half = _joined([part.result() for part in parts], order.second)
        length, tiles = place.shape[order.first], place.tiles.shape[2 * order.first]
        ends += [
            start(partial(_fill_piece, place, half, order.second, *bounds))
            for bounds in _bounds(length, tiles, count)
        ]
    for end in ends:
        end.result()


def _resized(plane: _Plane, axis: int, length: int, start: int, stop: int) -> _Plane:
    """A piece, cut across the axis along which it is resized."""
    return plane.part(1 - axis, start, stop).resized(axis, length)


def _fill_piece(place: Place, plane: _Plane, axis: int, start: int, stop: int) -> None:
    place.fill(_resized(plane, axis, place.shape[axis], start, stop).pixels(), 1 - axis, start)


def _joined(parts: Sequence[_Plane], axis: int) -> _Plane:
    if len(parts) == 1:
        return parts[0]
    pictures = [part for part in parts if isinstance(part, _Picture)]
    arrays = [part for part in parts if isinstance(part, _Array)]
    return _Picture.joined(pictures, axis) if pictures else _Array.joined(arrays, axis)


def _bounds(length: int, tiles: int, pieces: int) -> list[tuple[int, int]]:
    """Where pieces start and stop, at least so many; none lies in two tiles but where all do."""
    if pieces == 1:
        return [(0, length)]
    in_each = -(-pieces // tiles)
    edges = [tile * length // tiles for tile in range(tiles + 1)]
    inner = [
        first + part * (last - first) // in_each
        for first, last in pairwise(edges)
        for part in range(in_each)
    ]
    return [(a, b) for a, b in pairwise([*inner, length]) if a < b]


class AxisOrder(NamedTuple):
    """Along which axis a picture is resized first."""

    first: int
    second: int


def axis_order(old: tuple[int, int], new: tuple[int, int]) -> AxisOrder:
    """Columns first, as Pillow does; from 13.0 on rows where many more of them are to go."""
    fewer_rows, fewer_columns = old[ROWS] - new[ROWS], old[COLUMNS] - new[COLUMNS]
    if fewer_rows > max(0, 2 * fewer_columns) and _pillow_chooses():
        return AxisOrder(ROWS, COLUMNS)
    return AxisOrder(COLUMNS, ROWS)


@cache
def _pillow_chooses() -> bool:
    """Whether the Pillow that is installed may begin with the rows."""
    grey = np.arange(24 * 8, dtype=np.uint8).reshape(24, 8) * 77
    image = Image.fromarray(grey)
    whole = image.resize((16, 6), Image.Resampling.BICUBIC)
    columns = image.resize((16, 24), Image.Resampling.BICUBIC)
    return whole.tobytes() != columns.resize((16, 6), Image.Resampling.BICUBIC).tobytes()


def _here(work: Callable[[], T]) -> Future[T]:
    """Does at once, in this thread, what it is given."""
    future: Future[T] = Future()
    future.set_result(work())
    return future
