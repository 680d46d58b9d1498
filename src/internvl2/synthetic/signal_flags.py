"""Signal flags of the 26 letters, as ships fly them: five colours of cloth, and patterns of them.

A pattern is a cloth and patches on it, each a polygon; x runs from the mast, 0, to the free end, 1,
and y down. Painted cloth is bent by the wind, lit, and turned.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageDraw

from internvl2.synthetic.draw import Draw
from internvl2.synthetic.page import RGB

Point = tuple[float, float]

RED, YELLOW, BLUE, WHITE, BLACK = range(5)
CLOTHS: tuple[RGB, ...] = (
    (208, 28, 40), (250, 210, 30), (25, 70, 170), (246, 246, 244), (18, 18, 22),
)  # fmt: skip
WIDTH, HEIGHT = 240, 200
"""Pixels of a flag before it is made smaller."""
ORDER = "QBKHETPSRIXLOFVMUJDAWCZNGY"
"""All letters, those first that are told apart from afar."""


@dataclass(frozen=True)
class Patch:
    """A piece of one colour."""

    colour: int
    outline: tuple[Point, ...]


@dataclass(frozen=True)
class Pattern:
    """What makes a flag the one of its letter."""

    patches: tuple[Patch, ...]
    is_swallowtail: bool = False
    """The free end is cut in like a swallow's tail."""


@dataclass(frozen=True)
class Wind:
    """How cloth moves: height of its waves, waves along it, where they begin, and its slope."""

    height: float
    waves: float
    phase: float
    degrees: float


def tones(draw: Draw, fading: float) -> bytes:
    """The five colours as one ship's flags have them: each a little off, all of them bleached."""
    bleached = draw.number(0, fading)
    levels = (
        channel + bleached * (200 - channel) + draw.integer(-12, 12)
        for cloth in CLOTHS
        for channel in cloth
    )
    return bytes(min(255, max(0, round(level))) for level in levels)


def fly(letter: str, width: int, cloth_tones: bytes, wind: Wind) -> Image.Image:
    """The flag of a letter in the wind, so wide, on a transparent ground."""
    cloth, cut = _painted(letter)
    coloured = cloth.copy()
    coloured.putpalette(cloth_tones)
    flag = coloured.convert("RGB")
    flag.putalpha(cut)
    bent = _bent(np.asarray(flag), wind)
    turned = bent.rotate(wind.degrees, Image.Resampling.BICUBIC, expand=True)
    share = width / WIDTH
    size = (max(1, round(turned.width * share)), max(1, round(turned.height * share)))
    return turned.resize(size, Image.Resampling.BOX)


def _bent(flag: np.ndarray, wind: Wind) -> Image.Image:
    """Columns moved up and down, more so towards the free end; slopes to the left are lighter."""
    x = np.arange(WIDTH)
    angle = 2 * np.pi * (wind.waves * x / WIDTH + wind.phase)
    loose = np.sqrt(x / WIDTH)
    room = math.ceil(wind.height) + 1
    rise = np.rint(wind.height * loose * np.sin(angle)).astype(int)
    rows = np.arange(HEIGHT + 2 * room)[:, None] - room - rise[None]
    inside = (rows >= 0) & (rows < HEIGHT)
    bent = flag[rows.clip(0, HEIGHT - 1), x[None]] * inside[..., None]
    light = 1 - 0.02 * wind.height * loose * np.cos(angle)
    lit = np.clip(bent[..., :3] * light[None, :, None], 0, 255)
    return Image.fromarray(np.dstack((lit, bent[..., 3])).astype(np.uint8))


@cache
def _painted(letter: str) -> tuple[Image.Image, Image.Image]:
    """The flag flat, with numbers of colours as its pixels, and where there is cloth."""
    pattern = PATTERNS[letter]
    cloth, cut = Image.new("P", (WIDTH, HEIGHT)), Image.new("L", (WIDTH, HEIGHT), 255)
    brush = ImageDraw.Draw(cloth)
    for patch in pattern.patches:
        brush.polygon(_in_pixels(patch.outline), fill=patch.colour)
    if pattern.is_swallowtail:
        ImageDraw.Draw(cut).polygon(_in_pixels(((1, 0), (0.72, 0.5), (1, 1))), fill=0)
    return cloth, cut


def _in_pixels(outline: tuple[Point, ...]) -> list[Point]:
    return [(x * WIDTH, y * HEIGHT) for x, y in outline]


def _box(colour: int, left: float, top: float, right: float, bottom: float) -> Patch:
    return Patch(colour, ((left, top), (right, top), (right, bottom), (left, bottom)))


def _plain(colour: int) -> Patch:
    return _box(colour, 0, 0, 1, 1)


def _upright(*colours: int) -> Pattern:
    """Bands of one width beside each other, from the mast on."""
    step = 1 / len(colours)
    bands = (_box(c, i * step, 0, (i + 1) * step, 1) for i, c in enumerate(colours))
    return Pattern(tuple(bands))


def _lying(*colours: int) -> Pattern:
    """Bands of one height below each other."""
    step = 1 / len(colours)
    bands = (_box(c, 0, i * step, 1, (i + 1) * step) for i, c in enumerate(colours))
    return Pattern(tuple(bands))


def _checked(sides: int, first: int, second: int) -> Pattern:
    """Fields in turn, the first one at the top of the mast."""
    step = 1 / sides
    fields = (
        _box((first, second)[(i + j) % 2], i * step, j * step, (i + 1) * step, (j + 1) * step)
        for i in range(sides)
        for j in range(sides)
    )
    return Pattern(tuple(fields))


def _crossed(ground: int, cross: int) -> Pattern:
    bars = (_box(cross, 0.4, 0, 0.6, 1), _box(cross, 0, 0.38, 1, 0.62))
    return Pattern((_plain(ground), *bars))


def _saltire(ground: int, cross: int) -> Pattern:
    """A cross from corner to corner."""
    falling = ((0, 0), (0.14, 0), (1, 0.84), (1, 1), (0.86, 1), (0, 0.16))
    rising = tuple((x, 1 - y) for x, y in falling)
    return Pattern((_plain(ground), Patch(cross, falling), Patch(cross, rising)))


def _framed(*colours: int) -> Pattern:
    """Each colour within the one before."""
    count = len(colours)
    edges = [0.32 * i if count == 2 else 0.2 * i for i in range(count)]
    boxes = (_box(c, e, e, 1 - e, 1 - e) for c, e in zip(colours, edges, strict=True))
    return Pattern(tuple(boxes))


def _slanted(colours: tuple[int, ...]) -> Pattern:
    """Bands that fall away from the top of the mast, drawn one over the other."""
    step = 2 / len(colours)
    bands = []
    for i, colour in enumerate(colours):
        reach = 2 - i * step
        bands.append(Patch(colour, ((0, 0), (reach, 0), (0, reach))))
    return Pattern((_plain(colours[0]), *bands[1:]))


_DISC = tuple(
    (0.5 + 0.26 * math.cos(turn * math.pi / 18), 0.5 + 0.31 * math.sin(turn * math.pi / 18))
    for turn in range(36)
)
_MIDDLE: Point = (0.5, 0.5)

PATTERNS: Mapping[str, Pattern] = MappingProxyType(
    {
        "A": Pattern(_upright(WHITE, BLUE).patches, is_swallowtail=True),
        "B": Pattern((_plain(RED),), is_swallowtail=True),
        "C": _lying(BLUE, WHITE, RED, WHITE, BLUE),
        "D": Pattern((_plain(YELLOW), _box(BLUE, 0, 0.22, 1, 0.78))),
        "E": _lying(BLUE, RED),
        "F": Pattern((_plain(WHITE), Patch(RED, ((0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5))))),
        "G": _upright(YELLOW, BLUE, YELLOW, BLUE, YELLOW, BLUE),
        "H": _upright(WHITE, RED),
        "I": Pattern((_plain(YELLOW), Patch(BLACK, _DISC))),
        "J": _lying(BLUE, WHITE, BLUE),
        "K": _upright(YELLOW, BLUE),
        "L": _checked(2, YELLOW, BLACK),
        "M": _saltire(BLUE, WHITE),
        "N": _checked(4, BLUE, WHITE),
        "O": Pattern((_plain(RED), Patch(YELLOW, ((0, 0), (1, 1), (0, 1))))),
        "P": _framed(BLUE, WHITE),
        "Q": Pattern((_plain(YELLOW),)),
        "R": _crossed(RED, YELLOW),
        "S": _framed(WHITE, BLUE),
        "T": _upright(RED, WHITE, BLUE),
        "U": _checked(2, RED, WHITE),
        "V": _saltire(WHITE, RED),
        "W": _framed(BLUE, WHITE, RED),
        "X": _crossed(WHITE, BLUE),
        "Y": _slanted((RED, YELLOW) * 5),
        "Z": Pattern(
            (
                Patch(YELLOW, ((0, 0), (1, 0), _MIDDLE)),
                Patch(BLUE, ((1, 0), (1, 1), _MIDDLE)),
                Patch(RED, ((0, 1), (1, 1), _MIDDLE)),
                Patch(BLACK, ((0, 0), (0, 1), _MIDDLE)),
            )
        ),
    }
)
