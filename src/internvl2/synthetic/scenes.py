"""Scenes of forms: how many, where, how large, in which colours, on which ground."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image

from internvl2.synthetic.draw import Draw
from internvl2.synthetic.forms import COLOURS, ON_DARK, ON_LIGHT, RGB, SHAPES, Box, Form, paint

EASY_SHAPES = ("circle", "square", "triangle", "star", "heart", "rectangle")
ARROW_TURNS = {"right": 0, "down": 90, "left": 180, "up": 270}
MARGIN = 6


@dataclass(frozen=True)
class Ground:
    """A background and the names of the colours that stand out on it."""

    rgb: RGB
    colours: tuple[str, ...]

    @property
    def is_dark(self) -> bool:
        """Whether light writing is needed on it."""
        return sum(self.rgb) < 384


WHITE = Ground((255, 255, 255), ON_LIGHT)


@dataclass(frozen=True)
class Scene:
    """Forms on a ground; no two touch."""

    width: int
    height: int
    ground: Ground
    forms: tuple[Form, ...]

    @property
    def key(self) -> str:
        """The forms and the ninth of the picture in which each lies, whatever their order."""
        return ", ".join(
            sorted(
                f"{form.name} {int(3 * form.x / self.width)} {int(3 * form.y / self.height)}"
                for form in self.forms
            )
        )

    def paint(self) -> tuple[Image.Image, tuple[Box, ...]]:
        """The picture, and the tight box of every form."""
        canvas = Image.new("RGB", (self.width, self.height), self.ground.rgb)
        return canvas, tuple(paint(canvas, form) for form in self.forms)


def choose_ground(draw: Draw) -> Ground:
    """White for a half, else a light tint, at times dark."""
    kind = draw.choice(("white", "white", "white", "tint", "tint", "gray", "dark"))
    if kind == "dark":
        return Ground((draw.integer(10, 45), draw.integer(10, 45), draw.integer(15, 60)), ON_DARK)
    if kind == "white":
        return WHITE
    if kind == "gray":
        shade = draw.integer(215, 240)
        return Ground((shade, shade, shade), tuple(without(ON_LIGHT, "gray", "yellow")))
    tint = (draw.integer(232, 255), draw.integer(232, 255), draw.integer(225, 255))
    return Ground(tint, tuple(without(ON_LIGHT, "yellow")))


def without(names: Sequence[str], *left_out: str) -> list[str]:
    """The names but those left out, in their order."""
    return [name for name in names if name not in left_out]


def choose_size(draw: Draw) -> tuple[int, int]:
    """Mostly square-ish, so that one tile holds it and forms keep their proportions."""
    side = draw.choice((320, 384, 448, 448, 448, 512))
    if draw.chance(0.06):
        return draw.choice(((2 * side // 4 * 2, side // 4 * 2), (side // 4 * 2, 2 * side // 4 * 2)))
    return side, side if draw.chance(0.6) else round(side * draw.number(0.93, 1.07))


def shade(draw: Draw, colour: str) -> RGB:
    """A tone of the colour, near enough that its name stays right."""
    lighter, tilt = draw.integer(-12, 12), 0 if colour in ("gray", "black", "white") else 6
    red, green, blue = (
        min(255, max(0, channel + lighter + draw.integer(-tilt, tilt)))
        for channel in COLOURS[colour]
    )
    return red, green, blue


def make_form(draw: Draw, shape: str, colour: str, difficulty: float = 1.0) -> Form:
    """A form at no place yet, turned within what leaves its name right."""
    turns = {
        "arrow": draw.choice(tuple(ARROW_TURNS.values())),
        "rectangle": draw.choice((0, 0, 90)),
        "triangle": draw.integer(-12, 12),
        "pentagon": draw.integer(-36, 36),
        "hexagon": draw.integer(-30, 30),
        "star": draw.integer(-36, 36),
        "heart": draw.integer(-12, 12),
        "cross": draw.integer(-8, 8),
    }
    rgb = shade(draw, colour)
    outline = None
    hollow = difficulty > 0.4 and draw.chance(0.12)
    if draw.chance(0.3):
        dark = (rgb[0] // 2, rgb[1] // 2, rgb[2] // 2)
        outline = dark if draw.chance(0.5) else (0, 0, 0)
    return Form(shape, colour, rgb, 0, 0, 1, turns.get(shape, 0), hollow, outline)


def scatter(draw: Draw, width: int, height: int, forms: Sequence[Form]) -> tuple[Form, ...]:
    """Gives every form of a relative radius its size and a place where it touches no other."""
    unit = 0.42 * math.sqrt(width * height / max(2, len(forms)))
    unit = min(unit, 0.32 * min(width, height)) / max(form.radius for form in forms)
    while True:
        radii = [form.radius * unit for form in forms]
        spots = _find_spots(draw, width, height, radii)
        if spots:
            return tuple(
                replace(form, radius=radius, x=x, y=y)
                for form, radius, (x, y) in zip(forms, radii, spots, strict=True)
            )
        unit *= 0.9


def _find_spots(
    draw: Draw, width: int, height: int, radii: Sequence[float]
) -> list[tuple[int, int]]:
    """Places where squares around forms of these radii stay apart, or none."""
    spots: list[tuple[int, int]] = []
    for radius in radii:
        edge = math.ceil(radius) + MARGIN
        for _ in range(10):
            x, y = draw.integer(edge, width - edge), draw.integer(edge, height - edge)
            if all(
                abs(x - spot[0]) > radius + other + MARGIN
                or abs(y - spot[1]) > radius + other + MARGIN
                for spot, other in zip(spots, radii, strict=False)
            ):
                spots.append((x, y))
                break
        else:
            return []
    return spots


def choose_shapes(difficulty: float) -> tuple[str, ...]:
    """The shapes that a difficulty knows."""
    return SHAPES if difficulty > 0.35 else EASY_SHAPES
