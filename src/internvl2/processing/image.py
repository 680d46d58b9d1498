"""Cut a picture of any shape into the square tiles that the vision tower reads.

A page is never squeezed into one square. Among the grids of at most `max_tiles` tiles the one
closest in aspect ratio is taken, the picture is resized to fill it and cut up, and a thumbnail of
the whole is added where there is more than one tile (`dynamic_preprocess` of the official
`dataset.py`). Pixels are those of Pillow's bicubic filter, with which the family was trained,
unless asked otherwise (`resize`).
"""

from collections.abc import Sequence
from concurrent.futures import Executor
from functools import lru_cache
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from internvl2.processing.fetch import MediaError
from internvl2.processing.pixels import PictureOptions, open_picture, picture_size
from internvl2.processing.resize import Arithmetic, Place, resize_into

__all__ = [
    "Cutter",
    "Grid",
    "MediaError",
    "PictureOptions",
    "candidate_grids",
    "choose_grid",
    "cut",
    "open_picture",
    "pad_to_square",
    "picture_size",
]

MOST_TILES = 128
"""Beyond any context of the family, and the search for grids takes the third power of it."""
IMAGENET_MEAN_COLOUR = (123, 116, 103)
"""int(255 * mean) of the ImageNet means that pixels are normalised with."""


class Grid(NamedTuple):
    """How many tiles a picture fills, across and down."""

    columns: int
    rows: int

    @property
    def tiles(self) -> int:
        """Tiles in the grid, the thumbnail not among them."""
        return self.columns * self.rows

    def with_thumbnail(self, use_thumbnail: bool) -> int:
        """Tiles of a picture cut so, with a thumbnail behind several where one is wanted."""
        return self.tiles + (use_thumbnail and self.tiles > 1)


@runtime_checkable
class Cutter(Protocol):
    """Cuts pictures elsewhere, where that is faster, into the tiles that Pillow's pixels make."""

    @property
    def pool(self) -> Executor:
        """Threads that stand ready: to begin new ones takes as long as to hash a video's tiles."""
        ...

    def most_together(self, size: tuple[int, int], grid: Grid, side: int) -> int:
        """How many pictures of a width and height are cut at once; 0 where one is too large."""
        ...

    def cut(
        self,
        pictures: Sequence[UInt8[np.ndarray, "height width 3"]],
        grid: Grid,
        tiles: UInt8[np.ndarray, "pictures tiles side side 3"],
    ) -> None:
        """Fills the tiles of pictures of one size, as many of them as are cut at once.

        Where there is one tile more than in the grid it is the thumbnail.
        """
        ...


@lru_cache(maxsize=256)
def candidate_grids(min_tiles: int, max_tiles: int) -> tuple[Grid, ...]:
    """Every grid of `min_tiles` to `max_tiles` tiles, fewest tiles first.

    Grids of equal area keep the order of a set filled as the official code fills its own, since
    that order decides between 1x2 and 2x1 for a picture exactly between them.
    """
    if not 1 <= min_tiles <= max_tiles:
        raise ValueError(f"tiles from {min_tiles} to {max_tiles}; need 1 <= smallest <= largest")
    if max_tiles > MOST_TILES:
        raise ValueError(f"max_tiles is {max_tiles}; it can be at most {MOST_TILES}")
    grids: set[Grid] = set()
    for longest in range(min_tiles, max_tiles + 1):
        for columns in range(1, longest + 1):
            rows = range(1, longest + 1)
            grids.update(Grid(columns, r) for r in rows if min_tiles <= columns * r <= max_tiles)
    return tuple(sorted(grids, key=lambda grid: grid.tiles))


def choose_grid(
    width: int, height: int, tile_size: int = 448, min_tiles: int = 1, max_tiles: int = 12
) -> Grid:
    """The grid whose aspect ratio is closest to `width / height`.

    Grids of one ratio (1x1, 2x2, 3x3) tie. The larger wins only while the picture covers more than
    half of its pixels, so that a small picture is not blown up for nothing.
    """
    aspect, best, best_distance = width / height, Grid(1, 1), float("inf")
    for grid in candidate_grids(min_tiles, max_tiles):
        distance = abs(aspect - grid.columns / grid.rows)
        fills = width * height > 0.5 * tile_size * tile_size * grid.tiles
        if distance < best_distance or (distance == best_distance and fills):
            best, best_distance = grid, distance
    return best


def cut(
    image: Image.Image,
    grid: Grid,
    tile_size: int = 448,
    thumbnail: bool = True,
    arithmetic: Arithmetic = "exact",
    threads: int = 1,
) -> UInt8[np.ndarray, "tiles size size 3"]:
    """Tiles in reading order, then the thumbnail where there is more than one tile."""
    has_thumbnail = thumbnail and grid.tiles > 1
    tiles = np.empty((grid.tiles + has_thumbnail, tile_size, tile_size, 3), np.uint8)
    places = [Place.of_grid(tiles[: grid.tiles], grid.columns)]
    if has_thumbnail:
        places.append(Place.of_grid(tiles[-1:], columns=1))
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    resize_into(places, rgb, arithmetic, threads)
    return tiles


def pad_to_square(
    image: Image.Image, colour: tuple[int, int, int] = IMAGENET_MEAN_COLOUR
) -> Image.Image:
    """The picture in the middle of the smallest square that holds it (`expand2square`)."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
