"""Diagrams: boxes with words, joined by arrows, and what comes after what."""

from collections.abc import Sequence
from itertools import pairwise

from PIL import Image, ImageDraw

from internvl2.synthetic.draw import Draw
from internvl2.synthetic.fonts import Pen, pen
from internvl2.synthetic.forms import COLOURS, RGB, Box
from internvl2.synthetic.sample import Sample, Turn
from internvl2.synthetic.scenes import choose_ground

FILLS = ("white", "yellow", "pink", "orange")


def make_diagram(draw: Draw, difficulty: float) -> Sample:
    """Three to five steps, downwards or, if they are few and short, across."""
    across = draw.chance(0.35)
    words = _words(draw, 3 if across else draw.integer(3, 3 + round(2 * difficulty)), across)
    ground = choose_ground(draw)
    side = draw.choice((448, 448, 480, 512))
    canvas = Image.new("RGB", (side, side), ground.rgb)
    letters = pen(draw.face(), draw.integer(17, 20) if across else draw.integer(18, 26))
    boxes = _boxes(draw, letters, words, side, across)
    rounding = draw.choice((0, 0, 8, 16))
    ink: RGB = (240, 240, 240) if ground.is_dark else (0, 0, 0)
    fill = ground.rgb if ground.is_dark else COLOURS[draw.choice(FILLS)]
    pencil = ImageDraw.Draw(canvas)
    for box, word in zip(boxes, words, strict=True):
        edges = (box.left, box.top, box.right, box.bottom)
        pencil.rounded_rectangle(edges, rounding, fill=fill, outline=ink, width=2)
        x = round(box.middle[0] - letters.width(word) / 2)
        letters.write(canvas, x, round(box.middle[1] + 0.36 * letters.size), word, ink)
    backwards = draw.chance(0.2)
    for first, second in pairwise(boxes):
        _paint_arrow(pencil, *((second, first) if backwards else (first, second)), ink)
    return Sample("shapes", (canvas,), _turns(draw, words[::-1] if backwards else words))


def _words(draw: Draw, count: int, across: bool) -> list[str]:
    words: list[str] = []
    while len(words) < count:
        word = draw.word().capitalize()
        if word not in words and len(word) <= (7 if across else 12):
            words.append(word)
    return words


def _boxes(draw: Draw, letters: Pen, words: Sequence[str], side: int, across: bool) -> list[Box]:
    """Boxes of one size in a row or a column, as far apart as an arrow needs."""
    width = max(letters.width(word) for word in words) + 18
    height = letters.size * 2
    step = side / len(words)
    if across:
        width = min(width, round(step - 26))
        top = draw.integer(20, side - height - 20)
        lefts = [round((i + 0.5) * step - width / 2) for i in range(len(words))]
        return [Box(left, top, left + width, top + height) for left in lefts]
    left = draw.integer(12, max(12, side - width - 12))
    tops = [round((i + 0.5) * step - height / 2) for i in range(len(words))]
    return [Box(left, top, left + width, top + height) for top in tops]


def _paint_arrow(pencil: ImageDraw.ImageDraw, first: Box, second: Box, ink: RGB) -> None:
    (x, y), (far_x, far_y) = first.middle, second.middle
    if first.top == second.top:
        forward = 1 if far_x > x else -1
        start, end = (first.right, second.left) if forward > 0 else (first.left, second.right)
        head = [(end - 9 * forward, y - 6), (end - 2 * forward, y), (end - 9 * forward, y + 6)]
        pencil.line((start, y, end - 6 * forward, y), ink, 2)
    else:
        forward = 1 if far_y > y else -1
        start, end = (first.bottom, second.top) if forward > 0 else (first.top, second.bottom)
        head = [(x - 6, end - 9 * forward), (x, end - 2 * forward), (x + 6, end - 9 * forward)]
        pencil.line((x, start, x, end - 6 * forward), ink, 2)
    pencil.polygon(head, ink)


def _turns(draw: Draw, words: Sequence[str]) -> tuple[Turn, ...]:
    place = draw.integer(0, len(words) - 2)
    before, after = words[place], words[place + 1]
    turns = (
        Turn(f"What comes after {before}?", after),
        Turn(f"Where does the arrow from {before} lead?", after),
        Turn(f"Which step comes right before {after}?", before),
        Turn("What is the first step?", words[0]),
        Turn("Which step is the last?", words[-1]),
        Turn("How many boxes are there?", str(len(words))),
        Turn("Name the steps in order.", ", ".join(words)),
    )
    return tuple(draw.several(turns, min(len(turns), draw.more(draw.integer(1, 3)))))
