"""Coloured forms (circle, star, arrow, ...) painted smooth, with boxes tight to the pixel.

A form is drawn three times too large as a mask and reduced, which smooths its edge at a tenth of
the cost of a whole picture drawn so.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from PIL import Image, ImageDraw

RGB = tuple[int, int, int]
Point = tuple[float, float]

COLOURS: Mapping[str, RGB] = MappingProxyType(
    {
        "red": (220, 38, 38),
        "orange": (247, 140, 20),
        "yellow": (246, 214, 30),
        "green": (40, 160, 60),
        "blue": (38, 90, 220),
        "purple": (132, 48, 175),
        "pink": (250, 140, 188),
        "brown": (128, 78, 38),
        "black": (20, 20, 20),
        "gray": (138, 138, 138),
        "white": (250, 250, 250),
    }
)
ON_LIGHT = tuple(name for name in COLOURS if name != "white")
ON_DARK = ("red", "orange", "yellow", "green", "pink", "white")
SMOOTHING = 3


@dataclass(frozen=True)
class Box:
    """Pixels of a picture: `right` and `bottom` lie just beyond the last one."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def middle(self) -> Point:
        """Its centre, between pixels where its sides are even."""
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2


@dataclass(frozen=True)
class Form:
    """One form of a picture; `radius` is half of its longer side before turning."""

    shape: str
    colour: str
    rgb: RGB
    x: float
    y: float
    radius: float
    turn: int = 0
    hollow: bool = False
    outline: RGB | None = None

    @property
    def name(self) -> str:
        """Colour and shape, as one says them: "red circle"."""
        return f"{self.colour} {self.shape}"


def paint(canvas: Image.Image, form: Form) -> Box:
    """Paints the form and returns the tight box of its pixels."""
    reach = math.ceil(form.radius) + 2
    left, top = round(form.x) - reach, round(form.y) - reach
    body = _mask(form, reach)
    box = body.getbbox()
    assert box is not None, f"{form} is too small to see"
    if form.hollow:
        body.paste(0, (0, 0), _mask(form, reach, border=max(2.5, 0.14 * form.radius)))
        canvas.paste(form.rgb, (left, top), body)
    elif form.outline is None:
        canvas.paste(form.rgb, (left, top), body)
    else:
        canvas.paste(form.outline, (left, top), body)
        inside = _mask(form, reach, border=max(1.5, 0.05 * form.radius))
        canvas.paste(form.rgb, (left, top), inside)
    return Box(left + box[0], top + box[1], left + box[2], top + box[3])


def outline_points(shape: str) -> Sequence[Point]:
    """The corners of a shape within the square from -1 to 1; a circle has none."""
    return _OUTLINES[shape]


def _mask(form: Form, reach: int, border: float = 0) -> Image.Image:
    """Where the form is, without a border of so many pixels along its edge."""
    side = 2 * reach * SMOOTHING
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    length, border = form.radius * SMOOTHING, border * SMOOTHING
    across = side / 2 + (form.x - round(form.x)) * SMOOTHING
    down = side / 2 + (form.y - round(form.y)) * SMOOTHING
    if form.shape == "circle":
        length -= border
        draw.ellipse((across - length, down - length, across + length, down + length), fill=255)
        return mask.reduce(SMOOTHING)
    angle = math.radians(form.turn)
    cos, sin = math.cos(angle) * length, math.sin(angle) * length
    points = [
        (across + x * cos - y * sin, down + x * sin + y * cos)
        for x, y in outline_points(form.shape)
    ]
    draw.polygon(points, fill=255)
    if border:
        draw.line([*points, *points[:2]], fill=0, width=round(2 * border), joint="curve")
    return mask.reduce(SMOOTHING)


def _regular(corners: int, inner: float | None = None) -> tuple[Point, ...]:
    """A polygon with a corner on top; a star where its inner corners lie at another radius."""
    count = corners if inner is None else 2 * corners
    radii = (1.0, 1.0 if inner is None else inner)
    return tuple(
        (
            radii[i % 2] * math.sin(2 * math.pi * i / count),
            -radii[i % 2] * math.cos(2 * math.pi * i / count),
        )
        for i in range(count)
    )


def _heart(points: int = 48) -> tuple[Point, ...]:
    turns = [2 * math.pi * i / points for i in range(points)]
    return tuple(
        (
            0.92 * math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 17.5
            - 0.1,
        )
        for t in turns
    )


_A, _B = 0.32, 0.94
_OUTLINES: Mapping[str, tuple[Point, ...]] = MappingProxyType(
    {
        "square": ((-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)),
        "rectangle": ((-1, -0.5), (1, -0.5), (1, 0.5), (-1, 0.5)),
        "triangle": ((0, -0.96), (0.88, 0.46), (-0.88, 0.46)),
        "diamond": ((0, -1), (0.66, 0), (0, 1), (-0.66, 0)),
        "pentagon": _regular(5),
        "hexagon": _regular(6),
        "star": _regular(5, inner=0.42),
        "cross": (
            (-_A, -_B), (_A, -_B), (_A, -_A), (_B, -_A), (_B, _A), (_A, _A),
            (_A, _B), (-_A, _B), (-_A, _A), (-_B, _A), (-_B, -_A), (-_A, -_A),
        ),
        "heart": _heart(),
        "arrow": (
            (-1, -0.28), (0.1, -0.28), (0.1, -0.75), (1, 0), (0.1, 0.75), (0.1, 0.28), (-1, 0.28),
        ),
    }
)  # fmt: skip
SHAPES = ("circle", *_OUTLINES)
