"""Pages to write on: their size as the model will see it, ground, ink, and sizes of letters."""

from dataclasses import dataclass

from PIL import Image

from internvl2.synthetic.draw import Draw
from internvl2.synthetic.fonts import Ink

TILE = 448
RGB = tuple[int, int, int]

_SIZES = (*range(9, 25), 26, 28, 30, 32, 35, 38, 42, 46, 50, 56, 62, 70, 80, 92, 110, 130)
"""Heights of letters that are used: few, for a pen keeps every glyph it drew."""


@dataclass(frozen=True)
class Shape:
    """Width and height of a picture, and how many of its pixels one of a tile's becomes."""

    width: int
    height: int
    scale: float

    def letters(self, size: float) -> int:
        """The nearest size in use of letters that are so high when cut into tiles."""
        return snap(size * self.scale)


@dataclass(frozen=True)
class Paper:
    """The colours of ground and ink; they always differ enough to be read."""

    ground: RGB
    ink: RGB

    def sheet(self, shape: Shape) -> Image.Image:
        """An empty page."""
        return Image.new("RGB", (shape.width, shape.height), self.ground)


NAMED_PAPERS = (
    Paper((255, 255, 240), (0, 0, 128)),
    Paper((255, 255, 240), (60, 30, 10)),
    Paper((26, 26, 26), (255, 255, 255)),
    Paper((18, 18, 24), (230, 230, 230)),
    Paper((253, 245, 230), (40, 40, 40)),
    Paper((240, 248, 255), (25, 25, 112)),
    Paper((245, 255, 250), (0, 80, 40)),
    Paper((255, 250, 205), (0, 0, 0)),
)
"""Ivory with navy, near-black with white, and what else people choose by name."""
SIX_TILES = (
    Shape(672, 448, 0.5),
    Shape(448, 672, 0.5),
    Shape(896, 1267, 1.0),
    Shape(794, 1123, 0.886),
)
"""A photo's 3 to 2, small, and a printed page's 1 to 1.41."""


def snap(size: float) -> int:
    """The nearest of the sizes in use."""
    return min(_SIZES, key=lambda known: abs(known - size))


def snap_down(size: float) -> int:
    """The largest of the sizes in use that is not above it; the smallest where there is none."""
    return max((known for known in _SIZES if known <= size), default=_SIZES[0])


def square(draw: Draw) -> Shape:
    """A picture of one tile: square or nearly so."""
    side = draw.weighted((TILE, 320, 384, 512, 576, 224), (60, 8, 10, 10, 8, 4))
    other = side if draw.chance(0.6) else int(side * draw.number(0.84, 1.18))
    return Shape(side, other, max(side, other) / TILE)


def any_shape(draw: Draw) -> Shape:
    """Most often one tile, in a fifth of the cases two, rarely six."""
    kind = draw.weighted(("one", "wide", "tall", "six"), (79, 11, 7, 3))
    if kind == "one":
        return square(draw)
    if kind == "six":
        return draw.choice(SIX_TILES)
    long = draw.choice((896, 640, 800))
    sides = (long, long // 2) if kind == "wide" else (long // 2, long)
    return Shape(*sides, long / 896)


def easiness(difficulty: float) -> float:
    """The share of pictures with which one begins: all up to 0.1, none from 0.4 on."""
    return min(1.0, max(0.0, (0.4 - difficulty) / 0.3))


def is_easy(draw: Draw, difficulty: float) -> bool:
    """Whether to draw a picture with which one begins: few and large things, plain and short."""
    share = easiness(difficulty)
    return share > 0 and draw.chance(share)


def letter_size(draw: Draw, difficulty: float) -> float:
    """A height of letters in pixels of a tile: 14 to 74, smaller the more difficult."""
    low, high = 20 - 6.5 * difficulty + 18 * easiness(difficulty), 74 - 30 * difficulty
    return low + (high - low) * draw.number(0, 1) ** (0.7 + 1.8 * difficulty)


def choose_paper(draw: Draw, difficulty: float = 1.0) -> Paper:
    """Dark on light most often; with difficulty also colours, and light on dark."""
    if draw.chance(0.06):
        return draw.choice(NAMED_PAPERS)
    kind = draw.number(0, 1)
    if kind < 0.45 - 0.1 * difficulty:
        return Paper((255, 255, 255), (0, 0, 0))
    if kind < 0.65:
        return Paper(draw.colour(232, 255), draw.colour(0, 60))
    while True:
        ground, ink = draw.colour(), draw.colour()
        if contrast(ground, ink) >= 5.5 - 1.5 * difficulty:
            return Paper(ground, ink)


def contrast(first: RGB, second: RGB) -> float:
    """Ratio of two colours' brightness, 1 to 21; WCAG 2 asks 4.5 of text."""
    lighter, darker = sorted((_brightness(first), _brightness(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def between(first: RGB, second: RGB, share: float) -> RGB:
    """The colour that lies at a share of the way from the first to the second."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def rule(canvas: Image.Image, left: int, top: int, right: int, bottom: int, ink: Ink) -> None:
    """Fills a rectangle, as of a line or a box; right and bottom are not part of it."""
    canvas.paste(ink, (left, top, max(right, left + 1), max(bottom, top + 1)))


def _brightness(colour: RGB) -> float:
    red, green, blue = ((channel / 255) ** 2.2 for channel in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
