"""Reading: lines of words, figures and letters, all of them or one of them."""

from dataclasses import dataclass

from PIL import Image

from internvl2.synthetic import camera
from internvl2.synthetic.draw import Draw
from internvl2.synthetic.fonts import PRINT, Pen, pen
from internvl2.synthetic.lines import line, paragraph
from internvl2.synthetic.page import (
    TILE,
    Paper,
    Shape,
    any_shape,
    choose_paper,
    letter_size,
    snap,
)
from internvl2.synthetic.sample import Sample, Turn
from internvl2.synthetic.wordings import DESCRIBE, READ

READ_ALL = (*READ, "Read this line by line.", "Write down all the text in this picture.")
EASY = 0.3
"""Below this difficulty there are pictures with which reading begins."""
PAGE = 1000
"""Pictures higher than that are printed pages."""
LONG = 200
"""Letters that are enough for a picture that is no page."""
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


@dataclass(frozen=True)
class _Look:
    shape: Shape
    paper: Paper
    pen: Pen
    step: int
    margin: int
    align: str
    """Where lines begin; those of a block all at its left, the block being in the middle."""
    tracking: int

    def fits(self, text: str) -> bool:
        room = self.shape.width - 2 * self.margin
        room = round(0.85 * room) if self.align == "block" else room
        return self.pen.width(text, self.tracking) <= room

    @property
    def rows(self) -> int:
        used = self.pen.ascent + self.pen.descent + 2 * self.margin
        return 1 + max(0, (self.shape.height - used) // self.step)


def make(draw: Draw, difficulty: float) -> Sample:
    """A page of lines, and one to three questions about its text."""
    if difficulty < EASY and draw.chance(1 - difficulty / EASY):
        look, lines = _word(draw, difficulty)
    elif draw.chance(0.05):
        look, lines = _label(draw, difficulty)
    else:
        look = _choose_look(draw, difficulty)
        lines = _choose_lines(draw, look, difficulty)
    image = camera.worn(draw, _write(draw, look, lines), difficulty)
    return Sample("reading", (image,), _ask(draw, lines))


def _choose_lines(draw: Draw, look: _Look, difficulty: float) -> list[str]:
    rows = min(look.rows, draw.integer(1, 3 + round(7 * difficulty)))
    is_page = look.shape.height > PAGE
    rows = min(rows, 5) if look.align == "block" else rows
    if rows > 2 and draw.chance(0.8 if is_page else 0.3):
        lines = paragraph(draw, rows, look.fits)
    else:
        lines = [line(draw, difficulty, look.fits) for _ in range(rows)]
    while not is_page and len(lines) > 1 and len("\n".join(lines)) > LONG:
        lines.pop()
    return lines


def _word(draw: Draw, difficulty: float) -> tuple[_Look, list[str]]:
    """Few large letters somewhere in a square: nothing is easier to find, and to tell apart."""
    most = draw.integer(4, 12)
    text = line(draw, difficulty, lambda text: len(text) <= most)
    writer = pen(draw.face(*PRINT), snap(draw.integer(40, 110)))
    height = writer.ascent + writer.descent
    side = round(max(writer.width(text), 2 * height) * draw.number(1.12, 1.8))
    shape = Shape(side, side, side / TILE)
    look = _Look(shape, choose_paper(draw, difficulty), writer, height, side // 25, "free", 0)
    return look, [text]


def _label(draw: Draw, difficulty: float) -> tuple[_Look, list[str]]:
    """One to three short lines, and a picture no larger than they need."""
    most = draw.integer(4, 24)
    lines = [
        line(draw, difficulty, lambda text: len(text) <= most) for _ in range(draw.integer(1, 3))
    ]
    writer = pen(draw.face(), snap(draw.integer(16, 64)))
    step, margin = writer.ascent + writer.descent, draw.integer(3, 30)
    width = max(writer.width(text) for text in lines) + 2 * margin
    width = min(width, 1200)
    shape = Shape(max(width, 100), max(step * len(lines) + 2 * margin, 100), 1.0)
    return _Look(shape, choose_paper(draw, difficulty), writer, step, margin, "left", 0), lines


def _choose_look(draw: Draw, difficulty: float) -> _Look:
    shape = any_shape(draw)
    size = letter_size(draw, difficulty)
    is_hand = draw.split == "train" and draw.chance(0.04 + 0.04 * difficulty)
    face = draw.face("hand") if is_hand else draw.face(*PRINT)
    if is_hand:
        size = max(size, 26)
    chosen = pen(face, shape.letters(size))
    height = chosen.ascent + chosen.descent
    align = draw.weighted(("left", "middle", "right", "free", "block"), (50, 20, 6, 10, 14))
    spacing = draw.number(0.94, 1.08) if align == "block" else draw.number(0.98, 1.5)
    return _Look(
        shape,
        choose_paper(draw, difficulty),
        chosen,
        round(height * spacing),
        round(shape.width * draw.number(0.02, 0.1)),
        align,
        draw.integer(1, 3) if draw.chance(0.1) else 0,
    )


def _write(draw: Draw, look: _Look, lines: list[str]) -> Image.Image:
    canvas = look.paper.sheet(look.shape)
    height = (len(lines) - 1) * look.step + look.pen.ascent + look.pen.descent
    free = look.shape.height - 2 * look.margin - height
    top = look.margin + max(0, draw.choice((0, free // 2, draw.integer(0, max(free, 0)))))
    widest = max(look.pen.width(text, look.tracking) for text in lines)
    indent = (look.shape.width - 2 * look.margin - widest) // 2
    if look.align == "block":
        top = look.margin + max(0, free // 2)
    for index, text in enumerate(lines):
        room = look.shape.width - 2 * look.margin - look.pen.width(text, look.tracking)
        offsets = {"left": 0, "middle": room // 2, "right": room, "block": max(indent, 0)}
        offset = offsets.get(look.align)
        x = look.margin + (draw.integer(0, max(room, 0)) if offset is None else offset)
        baseline = top + index * look.step + look.pen.ascent
        look.pen.write(canvas, x, baseline, text, look.paper.ink, look.tracking)
    return canvas


def _ask(draw: Draw, lines: list[str]) -> tuple[Turn, ...]:
    first = Turn(draw.choice(READ_ALL), "\n".join(lines), "read")
    others = _questions(draw, lines)
    if len(lines) == 1 and draw.chance(0.9):
        return (first,)
    if draw.chance(0.62):
        return (first, *draw.several(others, draw.integer(0, 1)))
    chosen = draw.several(others, draw.integer(1, 2))
    return tuple({turn.question: turn for turn in chosen}.values())


def _questions(draw: Draw, lines: list[str]) -> list[Turn]:
    index = draw.integer(0, len(lines) - 1)
    turns = [
        Turn(
            draw.choice(("What does the last line say?", "Read the last line.", "The last line?")),
            lines[-1],
        ),
        _about_count(draw, len(lines)),
        Turn(draw.choice(("What is the first word?", "Which word comes first?")),
             lines[0].split()[0]),
        _describe(draw, lines),
    ]  # fmt: skip
    if index < len(ORDINALS):
        ordinal = ORDINALS[index]
        wordings = (
            f"What does the {ordinal} line say?",
            f"What is the {ordinal} line?",
            f"Read the {ordinal} line.",
            f"Read line {index + 1}.",
            f"Only line {index + 1}, please.",
        )
        turns += [Turn(draw.choice(wordings), lines[index])] * 2
    return turns


def _about_count(draw: Draw, count: int) -> Turn:
    wordings = (
        "How many lines are there?",
        "How many lines of text are there?",
        "Count the lines of text.",
        "How many lines does the text have?",
    )
    return Turn(draw.choice(wordings), str(count))


def _describe(draw: Draw, lines: list[str]) -> Turn:
    text = "one line of text" if len(lines) == 1 else f"{len(lines)} lines of text"
    return Turn(draw.choice(DESCRIBE), f'A page with {text}. It begins with "{lines[0]}".')
