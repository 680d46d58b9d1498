"""Signal flags: which letters one to three of them show, below each other at a mast or in a row.

Not part of the mixture that nano learned from: a kind of picture to fine-tune on. A hoist of
several letters belongs to one split whatever it is seen against; a single flag, which both know, is
seen against grounds of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image

from internvl2.synthetic import camera
from internvl2.synthetic.draw import Draw
from internvl2.synthetic.page import RGB, between, rule, square
from internvl2.synthetic.sample import Sample, Turn
from internvl2.synthetic.signal_flags import HEIGHT, ORDER, WIDTH, Wind, fly, tones

ASK = (
    "Which letters do the flags show?", "What do the signal flags say?",
    "Read the signal flags.", "Which signal is hoisted?",
)  # fmt: skip


class Ground(NamedTuple):
    """A sky or a wall, which goes from one colour to the other."""

    name: str
    upper: RGB
    lower: RGB


GROUNDS = (
    Ground("noon", (96, 156, 220), (196, 220, 238)),
    Ground("haze", (176, 190, 200), (214, 220, 222)),
    Ground("dusk", (104, 96, 150), (236, 160, 110)),
    Ground("dawn", (150, 176, 214), (236, 204, 190)),
    Ground("storm", (84, 92, 104), (150, 158, 164)),
    Ground("lagoon", (40, 130, 140), (130, 200, 196)),
    Ground("sand", (196, 180, 146), (222, 208, 176)),
    Ground("sail", (190, 184, 172), (214, 208, 196)),
    Ground("meadow", (110, 156, 128), (196, 216, 196)),
    Ground("night", (28, 32, 56), (66, 74, 104)),
    Ground("rose", (206, 150, 160), (226, 190, 196)),
    Ground("concrete", (140, 140, 140), (190, 190, 190)),
)
"""None is as white, yellow or blue as a flag."""


@dataclass(frozen=True)
class Hoist:
    """Flags, and what they are seen against."""

    letters: tuple[str, ...]
    ground: Ground

    @property
    def key(self) -> str:
        """What decides of which split it is."""
        alone = len(self.letters) == 1
        return f"{self.letters[0]} {self.ground.name}" if alone else "".join(self.letters)


def make(draw: Draw, difficulty: float) -> Sample:
    """A picture of a hoist, and what it shows."""
    hoist = choose(draw, difficulty)
    shape = square(draw)
    size = (shape.width, shape.height)
    image = camera.gradient(draw, size, hoist.ground.upper, hoist.ground.lower)
    if draw.chance(0.4 * difficulty):
        _add_sea(draw, image)
    _hang(draw, image, hoist.letters, difficulty)
    if draw.chance(0.3 * difficulty):
        image = camera.noise(draw, image, draw.integer(4, 20))
    return Sample("flags", (image,), (Turn(draw.choice(ASK), " ".join(hoist.letters)),))


def choose(draw: Draw, difficulty: float) -> Hoist:
    """Different letters, of the first 12 or of all 26: one of them, or up to three."""
    known = ORDER[: 12 + round(14 * difficulty)]
    while True:
        letters = draw.several(known, draw.integer(1, 1 + round(2 * difficulty)))
        hoist = Hoist(tuple(letters), draw.choice(GROUNDS))
        if draw.belongs(hoist.key):
            return hoist


def _add_sea(draw: Draw, image: Image.Image) -> None:
    horizon = round(image.height * draw.number(0.72, 0.92))
    near, far = draw.colour(20, 90), draw.colour(60, 140)
    sea = (near[0] // 2, near[1], min(255, near[2] + 60))
    size = (image.width, image.height - horizon)
    image.paste(camera.gradient(draw, size, sea, between(sea, far, 0.5)), (0, horizon))


def _hang(draw: Draw, image: Image.Image, letters: Sequence[str], difficulty: float) -> None:
    """One after the other, in places of one size; below each other they share a halyard."""
    is_row = len(letters) > 1 and draw.chance(0.3 * difficulty)
    count = len(letters)
    across, down = (count, 1) if is_row else (1, count)
    place = (image.width * 0.92 / across, image.height * 0.94 / down)
    width = min(place[0] * 0.86, place[1] * 0.8 * WIDTH / HEIGHT) * draw.number(0.78, 1)
    width *= 1 if count > 1 else draw.number(0.5, 1)
    left = image.width * 0.04 if is_row else draw.number(0.1 * place[0], 0.94 * place[0] - width)
    top = 0.03 * image.height
    if not is_row:
        _add_halyard(draw, image, round(left), round(width))
    cloth_tones = tones(draw, 0.2 * difficulty)
    for index, letter in enumerate(letters):
        flag = fly(letter, round(width), cloth_tones, _wind(draw, difficulty))
        x = left + (index * place[0] if is_row else 0)
        y = top + (0 if is_row else index * place[1]) + (place[1] - flag.height) / 2
        image.paste(flag, (round(x), max(0, round(y))), flag)


def _add_halyard(draw: Draw, image: Image.Image, left: int, width: int) -> None:
    """The line that flags are hoisted on, and at times the mast beside it."""
    grey = draw.integer(30, 120)
    thick = max(1, width // 60)
    rule(image, left - thick, 0, left, image.height, (grey, grey, grey))
    if draw.chance(0.4):
        mast = max(4, width // 14)
        rule(image, left - 3 * mast, 0, left - 2 * mast, image.height, (grey, grey // 2, grey // 3))


def _wind(draw: Draw, difficulty: float) -> Wind:
    return Wind(
        height=draw.number(0, 4 + 10 * difficulty),
        waves=draw.number(0.7, 1.8),
        phase=draw.number(0, 1),
        degrees=draw.number(-2 - 6 * difficulty, 2 + 6 * difficulty),
    )
