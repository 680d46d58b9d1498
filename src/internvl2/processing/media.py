"""The pictures and frames of a prompt: measured first, cut once it is known into which grid.

Where tiles are kept, a picture is known by its bytes: its header gives the size, and pixels are
decoded only if nobody has cut the same bytes in the same way before.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from pathlib import Path

import numpy as np
from PIL import Image

from internvl2.config import InternVLConfig
from internvl2.processing.conversation import Picture, Video
from internvl2.processing.image import (
    Cutter,
    Grid,
    PictureOptions,
    cut,
    open_picture,
    pad_to_square,
    picture_size,
)
from internvl2.processing.pixels import read_picture
from internvl2.processing.resize import Pixels
from internvl2.processing.tile_cache import TileCache, Tiles, digest, digest_of_bytes
from internvl2.processing.video import count_frames, open_frames, read_frames

PART = 2**20
"""Bytes of a picture in memory that one thread hashes."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A picture or frame of which only the size is known."""

    size: tuple[int, int]
    """Width and height in pixels."""
    budget: int
    """Most tiles that it may be cut into."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A picture or frame before it is cut."""

    size: tuple[int, int]
    budget: int
    decode: Callable[[], Image.Image]
    source: bytes | None = None
    """Hash of what it is made of; None where its tiles are not kept."""
    pixels: Pixels | None = None
    """The same as an array, where it is one already."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The tiles of a picture, and how they are known."""

    tiles: Tiles
    digest: bytes


@dataclass(frozen=True, slots=True)
class CutAll:
    """The tiles of several pictures, one after the other, and how each is known."""

    tiles: Tiles
    digests: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class MediaReader:
    """Opens the parts of a conversation and cuts them, as a model and its user want it."""

    config: InternVLConfig
    pictures: PictureOptions
    cache: TileCache | None = None
    cutter: Cutter | None = None
    """Where pictures are cut that are not too large for it; here without one."""

    def open(self, part: Picture | Video, max_tiles: int | None) -> Iterator[Opened]:
        """A picture, or each frame of a video."""
        if isinstance(part, Picture):
            yield self._open_picture(part, self._budget(part, max_tiles))
            return
        way = (part.num_frames, part.start, part.end, self.pictures)
        if not isinstance(part.source, str | Path | bytes):
            # They are resized when they are cut, by several threads.
            for given in open_frames(part.source, *way):
                yield Opened(given.size, part.max_tiles, given.decode, pixels=given.pixels)
            return
        shrink_to = self.config.tile_size if part.max_tiles == 1 else None
        for frame in read_frames(part.source, *way, shrink_to).images:
            yield Opened(frame.size, part.max_tiles, lambda frame=frame: frame)

    def measure(self, part: Picture | Video, max_tiles: int | None) -> Iterator[Measured]:
        """The sizes that `open` would find, from headers alone where they tell."""
        if isinstance(part, Picture):
            size = (1, 1) if self._is_padded else picture_size(part.source, self.pictures)
            yield Measured(size, self._budget(part, max_tiles))
        elif part.max_tiles == 1:
            frames = count_frames(part.source, part.num_frames)
            yield from [Measured((1, 1), 1)] * frames
        else:
            yield from (Measured(one.size, one.budget) for one in self.open(part, max_tiles))

    def cut_all(self, opened: Sequence[Opened], grids: Sequence[Grid], digests: bool) -> CutAll:
        """The tiles of several pictures, cut beside each other where threads are allowed."""
        if len(opened) == 1:
            alone = self.cut(opened[0], grids[0], digests)
            return CutAll(alone.tiles, (alone.digest,))
        if self.cutter is not None and (most := self._most_together(self.cutter, opened, grids)):
            return self._cut_together(self.cutter, opened, grids[0], most, digests)
        thumbnail, side = self.config.use_thumbnail, self.config.tile_size
        edges = list(accumulate((grid.with_thumbnail(thumbnail) for grid in grids), initial=0))
        tiles = np.empty((edges[-1], side, side, 3), np.uint8)
        threads = max(1, min(self.pictures.threads, len(opened)))
        each = replace(
            self, pictures=replace(self.pictures, threads=max(1, self.pictures.threads // threads))
        )

        def fill(one: Opened, grid: Grid, first: int) -> bytes:
            known = each.cut(one, grid, digests)
            tiles[first : first + len(known.tiles)] = known.tiles
            return known.digest

        if threads == 1:
            return CutAll(tiles, tuple(map(fill, opened, grids, edges)))
        with ThreadPoolExecutor(threads) as pool:
            return CutAll(tiles, tuple(pool.map(fill, opened, grids, edges)))

    def _most_together(
        self, cutter: Cutter, opened: Sequence[Opened], grids: Sequence[Grid]
    ) -> int:
        """How many are cut at once where all are alike and none is kept, as frames are."""
        kinds = {(one.size, grid, one.source) for one, grid in zip(opened, grids, strict=True)}
        if len(kinds) != 1 or opened[0].source is not None:
            return 0
        return cutter.most_together(opened[0].size, grids[0], self.config.tile_size)

    def _cut_together(
        self, cutter: Cutter, opened: Sequence[Opened], grid: Grid, most: int, digests: bool
    ) -> CutAll:
        """The tiles of pictures of one size."""
        pictures, side = [_pixels(one) for one in opened], self.config.tile_size
        each = grid.with_thumbnail(self.config.use_thumbnail)
        tiles = np.empty((len(pictures), each, side, side, 3), np.uint8)
        hashes: list[Iterator[bytes]] = []
        for first in range(0, len(pictures), most):
            lot = slice(first, first + most)
            cutter.cut(pictures[lot], grid, tiles[lot])
            if digests:  # made while the next lot is cut
                hashes.append(cutter.pool.map(digest, tiles[lot]))
        known = tuple(chain.from_iterable(hashes)) if digests else (b"",) * len(pictures)
        return CutAll(tiles.reshape(-1, side, side, 3), known)

    def cut(self, opened: Opened, grid: Grid, digests: bool) -> Cut:
        """The tiles of one picture, those of its whole among them where the model wants that."""
        thumbnail = self.config.use_thumbnail and grid.tiles > 1
        if opened.source is None or self.cache is None:
            tiles = self._cut(opened, grid, thumbnail)
            return Cut(tiles, digest(tiles) if digests else b"")
        way = (*grid, thumbnail, self._is_padded, self.config.tile_size)
        options = (self.pictures.official, self.pictures.arithmetic)
        key = digest_of_bytes(opened.source + repr((way, options)).encode())
        tiles = self.cache.find(key)
        if tiles is None:
            tiles = self._cut(opened, grid, thumbnail)
            self.cache.keep(key, tiles)
        return Cut(tiles, key)

    @property
    def _is_padded(self) -> bool:
        return self.config.pad2square and not self.config.dynamic_tiles

    def _budget(self, part: Picture, max_tiles: int | None) -> int:
        return part.max_tiles or max_tiles or self.config.max_tiles

    def _cut(self, opened: Opened, grid: Grid, thumbnail: bool) -> Tiles:
        pictures, side = self.pictures, self.config.tile_size
        if self.cutter is not None and self.cutter.most_together(opened.size, grid, side):
            tiles = np.empty((1, grid.tiles + thumbnail, side, side, 3), np.uint8)
            self.cutter.cut([_pixels(opened)], grid, tiles)
            return tiles[0]
        image = opened.decode()
        return cut(image, grid, side, thumbnail, pictures.arithmetic, pictures.threads)

    def _open_picture(self, part: Picture, budget: int) -> Opened:
        known, pixels = None, None
        if self.cache is None or isinstance(part.source, Image.Image):
            image = open_picture(part.source, self.pictures)
            decode, size = (lambda: image), image.size
            if self.cache is not None:
                pixels = np.asarray(image)
                known = _digest_of_pixels(pixels, self.pictures.threads)
        else:
            encoded = read_picture(part.source, self.pictures)
            known = digest_of_bytes(encoded.content)
            decode, size = encoded.decode, encoded.size
        if not self._is_padded:
            return Opened(size, budget, decode, known, pixels)
        side = max(size)
        return Opened((side, side), budget, lambda: pad_to_square(decode()), known)


def _pixels(opened: Opened) -> Pixels:
    return np.asarray(opened.decode()) if opened.pixels is None else opened.pixels


def _digest_of_pixels(picture: Pixels, threads: int) -> bytes:
    """A hash of an RGB picture that is decoded already, never that of a file.

    It is a hash of the hashes of parts, so that threads can share the work.
    """
    height, width, _ = picture.shape
    pixels = np.ascontiguousarray(picture).reshape(-1)
    parts = [pixels[first : first + PART].data for first in range(0, len(pixels), PART)]
    if threads == 1 or len(parts) == 1:
        hashes = [digest_of_bytes(part) for part in parts]
    else:
        with ThreadPoolExecutor(min(threads, len(parts))) as pool:
            hashes = list(pool.map(digest_of_bytes, parts))
    return digest_of_bytes(repr((width, height)).encode() + b"".join(hashes))
