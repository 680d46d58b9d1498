"""How a chart looks: size, face, colours, grid lines, frame; a third like matplotlib's default."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from internvl2.synthetic.draw import Draw
from internvl2.synthetic.forms import RGB

Named = tuple[str | None, RGB]

TAB10: Sequence[Named] = (
    ("blue", (31, 119, 180)),
    ("orange", (255, 127, 14)),
    ("green", (44, 160, 44)),
    ("red", (214, 39, 40)),
    ("purple", (148, 103, 189)),
    ("brown", (140, 86, 75)),
    ("pink", (227, 119, 194)),
    ("gray", (127, 127, 127)),
    (None, (188, 189, 34)),
    (None, (23, 190, 207)),
)
PALETTES: Mapping[str, Sequence[Named]] = MappingProxyType(
    {
        "tab10": TAB10,
        "plain": (
            ("red", (228, 26, 28)), ("blue", (55, 126, 184)), ("green", (77, 175, 74)),
            ("purple", (152, 78, 163)), ("orange", (255, 127, 0)), ("yellow", (250, 220, 50)),
            ("brown", (166, 86, 40)), ("pink", (247, 129, 191)), ("gray", (153, 153, 153)),
        ),
        "sheet": (
            ("blue", (66, 133, 244)), ("red", (219, 68, 55)), ("yellow", (244, 180, 0)),
            ("green", (15, 157, 88)), ("purple", (171, 71, 188)), (None, (0, 172, 193)),
            ("orange", (255, 112, 67)), ("gray", (140, 140, 140)),
        ),
        "office": (
            ("blue", (68, 114, 196)), ("orange", (237, 125, 49)), ("gray", (165, 165, 165)),
            ("yellow", (255, 192, 0)), (None, (91, 155, 213)), ("green", (112, 173, 71)),
            (None, (38, 68, 120)), ("brown", (158, 72, 14)),
        ),
        "soft": (
            (None, (141, 211, 199)), ("orange", (253, 180, 98)), ("purple", (188, 128, 189)),
            ("red", (251, 128, 114)), ("blue", (128, 177, 211)), ("green", (160, 205, 90)),
            ("pink", (252, 190, 220)), ("gray", (190, 190, 190)),
        ),
        "deep": (
            ("blue", (40, 70, 150)), ("red", (170, 30, 40)), ("green", (20, 110, 60)),
            ("orange", (215, 120, 20)), ("purple", (100, 40, 130)), ("brown", (110, 70, 40)),
            (None, (0, 120, 130)), ("gray", (90, 90, 90)),
        ),
    }
)  # fmt: skip
FULL_FIGURE = (640, 480)
"""matplotlib's default size; its six tiles and thumbnail are dear, so it is rare."""

HARDER = 0.29
"""Above this difficulty charts have what makes others' charts harder to read than ours."""
SMALL = (12, 15)
"""Heights of matplotlib's letters of 10 points at 100 dots an inch, once a tile shows them."""


@dataclass(frozen=True)
class Style:
    """Everything about a chart's look that does not depend on its data."""

    width: int
    height: int
    face: str
    size: int
    title_size: int
    ground: RGB
    plane: RGB
    ink: RGB
    grid: RGB | None
    has_box: bool
    has_spines: bool
    tick_length: int
    bar_share: float
    edge: RGB | None
    colours: tuple[Named, ...]
    is_default: bool
    """Looks like matplotlib's default."""
    legend: str
    """Of several series: inside, at the right or on top."""
    slant: int
    """Angle of names that are too long to stand side by side."""
    is_always_slanted: bool
    """Names that have room enough are turned too."""


def choose_style(draw: Draw, difficulty: float, plain_face: str) -> Style:
    """A look; in a third of the cases matplotlib's, with `plain_face`, which resembles its face."""
    if draw.chance(0.36):
        return _default_style(draw, difficulty, plain_face)
    width, height = _choose_size(draw)
    dark = draw.chance(0.08)
    ground = (255, 255, 255) if draw.chance(0.6) else _tint(draw, dark)
    if dark:
        ground = _tint(draw, dark)
    ink = (235, 235, 235) if dark else draw.choice(((0, 0, 0), (30, 30, 30), (60, 60, 70)))
    size = draw.integer(*_sizes(difficulty))
    grids = ((70, 70, 75), (95, 95, 100)) if dark else ((220, 220, 220), (200, 200, 205))
    plane = ground if dark or draw.chance(0.75) else (238, 238, 243)
    if plane != ground:
        grids = ((255, 255, 255), (215, 215, 220))
    name = draw.choice(tuple(PALETTES))
    return Style(
        width,
        height,
        draw.face(),
        size,
        size + draw.integer(1, 6),
        ground,
        plane,
        ink,
        draw.choice(grids) if draw.chance(0.65) else None,
        draw.chance(0.4),
        draw.chance(0.85),
        draw.choice((0, 4, 5)),
        draw.integer(45, 92) / 100,
        draw.choice(((0, 0, 0), (60, 60, 60))) if not dark and draw.chance(0.15) else None,
        _rotated(draw, PALETTES[name]),
        False,
        draw.choice(("inside", "right", "top")),
        draw.choice((30, 45, 45, 90)),
        difficulty > HARDER and draw.chance(0.06),
    )


def _default_style(draw: Draw, difficulty: float, face: str) -> Style:
    full = draw.chance(0.2)
    side = draw.choice((448, 480, 500, 560, 600))
    width, height = FULL_FIGURE if full else (side, side if draw.chance(0.7) else side - 30)
    sizes = _sizes(difficulty)
    if difficulty > HARDER and draw.chance(0.34):
        sizes = SMALL
    size = 14 if full else round(side / 448 * draw.integer(*sizes))
    grid = (176, 176, 176) if draw.chance(0.15) else None
    white, black = (255, 255, 255), (0, 0, 0)
    palette = tuple(TAB10) if draw.chance(0.75) else _rotated(draw, TAB10)
    edge = black if draw.chance(0.1) else None
    return Style(
        width, height, face, size, round(1.2 * size), white, white, black, grid, True, True,
        5, 0.8, edge, palette, True, "inside", draw.choice((30, 30, 45, 45, 90)),
        difficulty > HARDER and draw.chance(0.2),
    )  # fmt: skip


def _sizes(difficulty: float) -> tuple[int, int]:
    """Heights of letters, of a picture of 448 pixels."""
    return round(19 - 5 * difficulty), round(24 - 4 * difficulty)


def _choose_size(draw: Draw) -> tuple[int, int]:
    side = draw.choice((400, 448, 448, 480, 512))
    shape = draw.integer(1, 100)
    if shape <= 8:
        return 2 * side - 100, side - 50
    if shape <= 11:
        return FULL_FIGURE
    return side, side if shape < 70 else round(side * draw.integer(86, 112) / 100)


def _tint(draw: Draw, dark: bool) -> RGB:
    low, high = (15, 45) if dark else (236, 255)
    return draw.integer(low, high), draw.integer(low, high), draw.integer(low, high)


def _rotated(draw: Draw, palette: Sequence[Named]) -> tuple[Named, ...]:
    start = draw.integer(0, len(palette) - 1)
    return (*palette[start:], *palette[:start])
