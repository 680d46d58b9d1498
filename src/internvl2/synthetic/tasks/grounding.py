"""Where something is: boxes, in thousandths of the picture, of shapes, words and fields."""

from dataclasses import dataclass

from PIL import Image

from internvl2.synthetic.draw import Draw
from internvl2.synthetic.forms import RGB, Box
from internvl2.synthetic.lettering import choose_ink, letter
from internvl2.synthetic.page import is_easy
from internvl2.synthetic.sample import Sample, Turn
from internvl2.synthetic.scenes import WHITE, choose_ground, choose_size
from internvl2.synthetic.tasks.shapes import mixed_scene, plural
from internvl2.synthetic.wordings import DESCRIBE

FIELDS = (
    "Name", "Date", "City", "Street", "Phone", "Total", "Tax", "Invoice", "Order", "Room", "Price",
    "Number", "Code", "Age", "Country", "Amount", "Seat", "Gate", "Time", "Status",
)  # fmt: skip
WHERE = (
    "Please provide the bounding box coordinate of the region this sentence describes: "
    "<ref>{}</ref>",
    "Where is the {}?",
    "Locate the {}.",
    "Give the bounding box of the {}.",
    "Find the {} in the picture.",
    "Detect the {} and give its box.",
)


@dataclass(frozen=True)
class Thing:
    """Something to point at, and what it is called when asked what a box holds."""

    name: str
    boxes: tuple[Box, ...]
    content: str


@dataclass(frozen=True)
class Line:
    """How and on which base line one writes."""

    face: str
    size: int
    ink: RGB
    base: int


def make(draw: Draw, difficulty: float) -> Sample:
    """One picture with questions for boxes; in training also for what a box holds."""
    kind = draw.choice(("shapes", "shapes", "shapes", "words", "words", "fields"))
    if kind == "fields" and is_easy(draw, difficulty):
        kind = "words"
    if kind == "shapes":
        image, things = _shapes(draw, difficulty)
    elif kind == "words":
        image, things = _words(draw, difficulty)
    else:
        image, things = _fields(draw, difficulty)
    turns = []
    for thing in draw.shuffled(things)[: draw.more(draw.integer(1, 4))]:
        single = len(thing.boxes) == 1
        backwards = single and draw.split == "train" and draw.chance(0.3)
        turns.append((_what_is_in if backwards else _where)(draw, thing, image))
    if draw.split == "train" and kind == "words" and draw.chance(0.1):
        turns.append(Turn(draw.choice(DESCRIBE), _listed(things)))
    return Sample("grounding", (image,), tuple(turns))


def box_text(box: Box, image: Image.Image) -> str:
    """The box in thousandths of the picture, as the family writes boxes."""
    across, down = 1000 / image.width, 1000 / image.height
    corners = (box.left * across, box.top * down, box.right * across, box.bottom * down)
    return f"[{', '.join(str(min(1000, round(corner))) for corner in corners)}]"


def _listed(things: list[Thing]) -> str:
    """The words of a picture, the highest first."""
    order = sorted(things, key=lambda thing: thing.boxes[0].top)
    return f"Words: {', '.join(thing.content for thing in order)}."


def _where(draw: Draw, thing: Thing, image: Image.Image) -> Turn:
    boxes = ", ".join(box_text(box, image) for box in thing.boxes)
    if len(thing.boxes) > 1:
        wording = draw.choice(("Where are the {}?", "Locate all {}.", "Give the boxes of all {}."))
    else:
        wording = draw.choice(WHERE)
    return Turn(wording.format(thing.name), f"<ref>{thing.name}</ref><box>[{boxes}]</box>")


def _what_is_in(draw: Draw, thing: Thing, image: Image.Image) -> Turn:
    box = f"<box>[{box_text(thing.boxes[0], image)}]</box>"
    wording = draw.choice(("What is in {}?", "What does the region {} show?", "What is at {}?"))
    return Turn(wording.format(box), thing.content)


def _shapes(draw: Draw, difficulty: float) -> tuple[Image.Image, list[Thing]]:
    scene = mixed_scene(draw, difficulty)
    image, boxes = scene.paint()
    found: dict[str, list[Box]] = {}
    for form, box in zip(scene.forms, boxes, strict=True):
        found.setdefault(form.name, []).append(box)
    most = 1 + round(2 * difficulty)
    things = [
        Thing(name if len(group) == 1 else _plural(name), tuple(_in_order(group)), name)
        for name, group in found.items()
        if len(group) <= most
    ]
    shapes = {form.shape for form in scene.forms}
    for shape in sorted(shapes):
        group = [box for f, box in zip(scene.forms, boxes, strict=True) if f.shape == shape]
        if len(group) == 1:
            things.append(Thing(shape, tuple(group), shape))
    return (image, things) if things else _shapes(draw, difficulty)


def _plural(name: str) -> str:
    colour, shape = name.split()
    return f"{colour} {plural(shape)}"


def _in_order(boxes: list[Box]) -> list[Box]:
    return sorted(boxes, key=lambda box: (box.left, box.top))


def _words(draw: Draw, difficulty: float) -> tuple[Image.Image, list[Thing]]:
    """Words and numbers anywhere, each once."""
    easy = is_easy(draw, difficulty)
    ground = WHITE if easy else choose_ground(draw)
    width, height = choose_size(draw)
    canvas = Image.new("RGB", (width, height), ground.rgb)
    placed: list[Box] = []
    things: list[Thing] = []
    face = draw.face()
    most = 2 if easy else 4 + round(5 * difficulty)
    for text in _different_texts(draw, draw.integer(1 if easy else 2, most)):
        size = draw.integer(44, 90) if easy else draw.integer(round(26 - 8 * difficulty), 44)
        written = letter(face, size, text, width - 30)
        spot = _free_spot(draw, (width, height), written.mask.size, placed)
        if spot is None:
            continue
        box = written.paste(canvas, *spot, choose_ink(draw, ground))
        placed.append(box)
        kind = "number" if text.isdigit() else "word"
        things.append(Thing(f'{kind} "{text}"', (box,), text))
    return canvas, things


def _different_texts(draw: Draw, count: int) -> list[str]:
    texts: list[str] = []
    while len(texts) < count:
        text = draw.word() if draw.chance(0.75) else str(draw.integer(10, 9999))
        if draw.chance(0.3):
            text = text.capitalize()
        if text.isdigit() and not draw.belongs(text):
            continue
        if text.lower() not in (other.lower() for other in texts):
            texts.append(text)
    return texts


def _free_spot(
    draw: Draw, extent: tuple[int, int], size: tuple[int, int], placed: list[Box]
) -> tuple[int, int] | None:
    for _ in range(15):
        left = draw.integer(8, max(8, extent[0] - size[0] - 8))
        top = draw.integer(8, max(8, extent[1] - size[1] - 8))
        if all(
            left > box.right + 12 or box.left > left + size[0] + 12
            or top > box.bottom + 10 or box.top > top + size[1] + 10
            for box in placed
        ):  # fmt: skip
            return left, top
    return None


def _fields(draw: Draw, difficulty: float) -> tuple[Image.Image, list[Thing]]:
    """A form: labels, and values behind them or in a column of their own."""
    ground = choose_ground(draw)
    side = draw.choice((384, 448, 448, 512))
    canvas = Image.new("RGB", (side, side), ground.rgb)
    face, ink = draw.face(), choose_ink(draw, ground)
    count = draw.integer(2, 4 + round(4 * difficulty))
    size = draw.integer(round(22 - 5 * difficulty), 26)
    step = draw.integer(round(1.5 * size), min(60, (side - 40) // count))
    left = draw.integer(12, 40)
    top = draw.integer(16, max(16, side - 20 - count * step))
    column = left + round(5.2 * size) if draw.chance(0.6) else None
    things = []
    for i, label in enumerate(draw.shuffled(FIELDS)[:count]):
        line = Line(face, size, ink, top + i * step + size)
        head = _line_at(canvas, line, f"{label}:", left)
        value = _field_value(draw)
        box = _line_at(canvas, line, value, column or head.right + size // 2)
        things.append(Thing(f"value of {label}", (box,), value))
        things.append(Thing(f'text "{value}"', (box,), value))
    values = [thing.content for thing in things]
    return canvas, [thing for thing in things if values.count(thing.content) == 2]


def _field_value(draw: Draw) -> str:
    kind = draw.choice(("word", "word", "number", "money", "date"))
    if kind == "word":
        return draw.word().capitalize()
    if kind == "number":
        return str(draw.integer(10, 99999))
    if kind == "money":
        return f"${draw.integer(1, 999)}.{draw.integer(0, 99):02d}"
    return f"{draw.integer(1, 28):02d}/{draw.integer(1, 12):02d}/{draw.integer(1990, 2035)}"


def _line_at(canvas: Image.Image, line: Line, text: str, left: int) -> Box:
    """Writes on the line and returns the tight box."""
    written = letter(line.face, line.size, text, canvas.width - left - 8)
    return written.paste(canvas, left, line.base - written.rise, line.ink)
