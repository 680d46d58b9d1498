"""Pictures that cannot be read: blank, grain, blur, gradients, and what looks like a photograph.

The right answer says so instead of inventing, and names what can be seen.
"""

import math

from PIL import Image

from internvl2.synthetic import camera
from internvl2.synthetic.draw import Draw
from internvl2.synthetic.fonts import pen
from internvl2.synthetic.page import RGB, choose_paper, snap, square
from internvl2.synthetic.photos import photo
from internvl2.synthetic.sample import Sample, Turn
from internvl2.synthetic.wordings import DESCRIBE, READ

DESCRIBE_IT = (*DESCRIBE, "What is this?", "What is in this photo?", "Describe this photo.")
SIGNS = ("What does the sign say?", "Read the document.", "Read the sign.")
OBJECTS = (
    "What animal is this?", "Is there a person in the picture?", "Who is this?",
    "What is the person doing?", "Where was this photo taken?", "Is there a dog?",
    "What objects do you see?", "How many people are there?", "What food is this?",
    "What is in the background?", "Is this a car?", "What is the weather in this photo?",
)  # fmt: skip
COLOURS = ("What colors do you see?", "Which colors does the picture have?", "What are the main "
           "colors?", "What colours are in the picture?")  # fmt: skip
ASK = (
    "What is the total?", "What is the date?", "Who wrote this letter?",
    "Which bar is the highest?",
    "How many rows are there?", "What is the name of the shop?", "What is the result?",
    "What is the title?", "What is the invoice number?", "What is the price?", "Total?",
    "What is the phone number?", "How much is it?", "What is the name?", "When is it due?",
)  # fmt: skip
ANY_TEXT = ("Is there any text?", "Is there text in the picture?", "Do you see any text?")
CANNOT_READ = "I can't read this."
NO_TEXT = "I see no text."
UNLIKE = 150
"""Distance of red, green and blue from which on two colours are told apart, shaded too."""
NAMES: tuple[tuple[str, RGB], ...] = (
    ("red", (205, 30, 35)), ("green", (40, 150, 60)), ("blue", (40, 80, 205)),
    ("yellow", (245, 215, 50)), ("orange", (245, 140, 30)), ("black", (12, 12, 12)),
    ("white", (250, 250, 250)), ("brown", (115, 70, 35)), ("purple", (120, 50, 150)),
    ("gray", (128, 128, 128)), ("pink", (248, 150, 190)),
)  # fmt: skip


def make(draw: Draw, difficulty: float) -> Sample:
    """A picture without legible text, and one or two questions about it."""
    shape = square(draw)
    size = (
        (shape.width // 2, shape.height // 2) if draw.chance(0.5) else (shape.width, shape.height)
    )
    kinds = ("blank", "grain", "blurred", "gradient", "soft", "photo")
    kind = draw.weighted(kinds, (16, 10, 24, 8, 8, 34))
    if kind == "blank":
        return _blank(draw, size)
    if kind == "grain":
        return _grain(draw, size)
    if kind == "blurred":
        return _blurred(draw, size)
    if kind == "photo":
        return _photo(draw, size)
    return _soft(draw, size, is_gradient=kind == "gradient")


def _blank(draw: Draw, size: tuple[int, int]) -> Sample:
    name, colour = draw.choice(NAMES)
    image = Image.new("RGB", size, _near(draw, colour))
    turns = [
        _ask(draw, NO_TEXT, f"A plain {name} picture."),
        Turn(draw.choice(("What color is it?", "What color is the picture?")), name),
        Turn(draw.choice(ANY_TEXT), "No."),
    ]
    return Sample("unreadable", (image,), tuple(draw.several(turns, draw.integer(1, 2))))


def _grain(draw: Draw, size: tuple[int, int]) -> Sample:
    base = Image.new("RGB", size, (128, 128, 128))
    image = camera.noise(draw, base, draw.choice((40, 60, 80, 100)))
    return Sample("unreadable", (image,), (_ask(draw, NO_TEXT, "Only noise."),))


def _blurred(draw: Draw, size: tuple[int, int]) -> Sample:
    """Text reduced to a few pixels a line, then enlarged: nobody can read it."""
    small = (max(size[0] // 3, 60), max(size[1] // 3, 60))
    paper = choose_paper(draw)
    ground, ink = paper.ground, paper.ink
    sheet = Image.new("RGB", small, ground)
    writer = pen(draw.face(), snap(draw.integer(11, 15)))
    baseline = draw.integer(14, 40)
    while baseline < small[1]:
        words = " ".join(draw.words(draw.integer(1, 4)))
        writer.write(sheet, draw.integer(3, 10), baseline, words, ink)
        baseline += round(writer.size * draw.number(1.2, 1.6))
    factor = draw.integer(7, 10)
    image = sheet.reduce(factor).resize(size, camera.BILINEAR)
    return Sample("unreadable", (image,), (_ask(draw, CANNOT_READ, "A blurry picture."),))


def _soft(draw: Draw, size: tuple[int, int], *, is_gradient: bool) -> Sample:
    first, second = draw.several(NAMES, 2)
    names = sorted((first[0], second[0]))
    if is_gradient:
        image = camera.gradient(draw, size, _near(draw, first[1]), _near(draw, second[1]))
        seen = f"A soft picture in {names[0]} and {names[1]}."
    else:
        image = camera.blotches(draw, size, draw.integer(3, 14))
        seen = "A blurry picture without text."
    return Sample("unreadable", (image,), (_ask(draw, NO_TEXT, seen),))


def _photo(draw: Draw, size: tuple[int, int]) -> Sample:
    """Two colours that nobody mixes up, and no more than that is said."""
    while True:
        first, second = draw.several(NAMES, 2)
        if math.dist(first[1], second[1]) > UNLIKE:
            break
    image = photo(draw, size, _near(draw, first[1]), _near(draw, second[1]))
    names = " and ".join(sorted((first[0], second[0])))
    turns = [
        _ask(draw, NO_TEXT, f"A picture without text in {names}."),
        Turn(draw.choice(OBJECTS), f"I can't tell what it shows. I see {names}."),
        Turn(draw.choice(COLOURS), f"{names.capitalize()}."),
        Turn(draw.choice(ANY_TEXT), "No."),
    ]
    chosen = turns[draw.weighted((0, 1, 2, 3), (60, 24, 8, 8))]
    return Sample("unreadable", (image,), (chosen,))


def _ask(draw: Draw, answer: str, seen: str) -> Turn:
    kind = draw.number(0, 1)
    if kind < 0.5:
        return Turn(draw.choice([*READ, *SIGNS]), answer)
    if kind < 0.78:
        return Turn(draw.choice(DESCRIBE_IT), seen)
    return Turn(draw.choice(ASK), f"{answer} {seen}")


def _near(draw: Draw, colour: RGB) -> RGB:
    red, green, blue = (min(255, max(0, part + draw.integer(-9, 9))) for part in colour)
    return red, green, blue
