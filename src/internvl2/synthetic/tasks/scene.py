"""Text in scenes: signs, boards, labels and plates, turned, shaded, grained, photographed."""

import math
from dataclasses import dataclass

from PIL import Image

from internvl2.synthetic import camera
from internvl2.synthetic.draw import Draw
from internvl2.synthetic.fonts import Pen, pen
from internvl2.synthetic.lines import fact, money
from internvl2.synthetic.page import RGB, contrast, is_easy, rule, snap, square
from internvl2.synthetic.sample import Sample, Turn
from internvl2.synthetic.wordings import DESCRIBE, READ

READ_ALL = (
    *READ, "What does the sign say?", "Read the sign.", "What is written on the sign?",
    "What text is on the sign?", "Transcribe the text in this photo.", "What text do you see?",
)  # fmt: skip
COLOURS: tuple[tuple[str, RGB], ...] = (
    ("red", (200, 30, 35)), ("green", (20, 120, 60)), ("blue", (25, 75, 180)),
    ("yellow", (250, 210, 40)), ("orange", (245, 135, 25)), ("black", (20, 20, 20)),
    ("white", (250, 250, 250)), ("brown", (110, 65, 30)), ("purple", (105, 45, 140)),
    ("gray", (120, 120, 120)), ("pink", (245, 150, 190)),
)  # fmt: skip


@dataclass(frozen=True)
class _Sign:
    panel: camera.Panel
    rows: list[str]
    colour: str
    ink: str


def make(draw: Draw, difficulty: float) -> Sample:
    """A sign somewhere in a scene, and one or two questions about it."""
    shape = square(draw)
    if is_easy(draw, difficulty):
        return _first_sign(draw, (shape.width, shape.height))
    ground = _ground(draw, (shape.width, shape.height))
    width = shape.width * draw.number(0.62, 0.94)
    sign = _sign(draw, width, difficulty, _text(draw, difficulty))
    corners = _corners(draw, sign.panel.size, ground.size, difficulty)
    camera.place(ground, sign.panel, corners)
    return Sample("scene", (_photographed(draw, ground, difficulty),), _ask(draw, sign))


def _first_sign(draw: Draw, size: tuple[int, int]) -> Sample:
    """A large sign of one row or two short ones, upright on a plain ground."""
    while True:
        rows = _text(draw, 0.0)
        if max(map(len, rows)) <= 10:
            break
    sign = _sign(draw, size[0] * draw.number(0.8, 0.96), 0.0, rows)
    ground = Image.new("RGB", size, draw.colour(30, 240))
    free = (size[axis] - sign.panel.size[axis] for axis in (0, 1))
    left, top = (round(room * draw.number(0.1, 0.9)) for room in free)
    camera.place_flat(ground, sign.panel, left, top)
    return Sample("scene", (ground,), _ask(draw, sign))


def _sign(draw: Draw, width: float, difficulty: float, rows: list[str]) -> _Sign:
    colour, fill, ink_name, ink = _colours(draw)
    face = draw.face("sans", "sans", "serif", "condensed", "round", "mono")
    longest = max(rows, key=len)
    trial = pen(face, 20)
    room = width * draw.number(0.78, 0.92)
    most = 90 - 30 * difficulty
    size = snap(max(16, min(most, 20 * room / max(trial.width(longest), 1))))
    writer = pen(face, size)
    inner = max(writer.width(row) for row in rows)
    step = round((writer.ascent + writer.descent) * draw.number(0.95, 1.2))
    pad = round(size * draw.number(0.25, 0.8))
    mask = Image.new("L", (inner + 2 * pad, step * len(rows) + 2 * pad))
    _border(draw, mask, pad)
    left = draw.chance(0.2)
    for index, row in enumerate(rows):
        x = pad + (0 if left else (inner - writer.width(row)) // 2)
        _letter(draw, mask, writer, (x, pad + index * step + writer.ascent), row)
    return _Sign(camera.Panel(mask, fill, ink), rows, colour, ink_name)


def _letter(draw: Draw, mask: Image.Image, writer: Pen, at: tuple[int, int], row: str) -> None:
    """The row, at times with a shadow of a tone between ground and ink."""
    if writer.size >= 30 and draw.chance(0.06):
        writer.write(mask, at[0] + 2, at[1] + 2, row, 100)
    writer.write(mask, at[0], at[1], row, 255)


def _text(draw: Draw, difficulty: float) -> list[str]:
    kind = draw.weighted(
        ("sign", "shop", "words", "street", "price", "plate", "fact"), (34, 18, 20, 8, 8, 6, 6)
    )
    if kind == "sign":
        text = draw.listed("sign")
        rows = _broken(draw, text.split())
    elif kind == "shop":
        rows = _broken(draw, draw.company().split())
        if draw.chance(0.3):
            rows.append(draw.choice((draw.phone, draw.street, draw.time))())
    elif kind == "words":
        words = draw.words(draw.integer(1, 2 + round(3 * difficulty)))
        style = draw.choice((str.lower, str.capitalize, str.upper))
        rows = _broken(draw, [style(word) for word in words])
    elif kind == "street":
        rows = [draw.listed("street")]
    elif kind == "price":
        rows = [draw.listed("product"), money(draw, draw.price())]
    elif kind == "plate":
        rows = [draw.code()]
    else:
        rows = [fact(draw)]
    if kind in ("sign", "shop", "street") and draw.chance(0.4):
        rows = [row.upper() for row in rows]
    return rows


def _broken(draw: Draw, words: list[str]) -> list[str]:
    """The words in one row, or a few."""
    if len(words) > 1 and draw.chance(0.5):
        cut = draw.integer(1, len(words) - 1)
        return [" ".join(words[:cut]), " ".join(words[cut:])]
    if len(words) > 3:
        return [" ".join(words[i : i + 2]) for i in range(0, len(words), 2)]
    return [" ".join(words)]


def _colours(draw: Draw) -> tuple[str, RGB, str, RGB]:
    """Names and tones of the panel's and the letters' colour; pairs are of the split."""
    while True:
        (panel, fill), (name, ink) = draw.choice(COLOURS), draw.choice(COLOURS)
        usual = draw.chance(0.4) or name in ("white", "black", "yellow")
        if usual and contrast(fill, ink) > 3.6 and draw.belongs(f"{name} on {panel}"):
            return panel, _tone(draw, fill), name, ink


def _tone(draw: Draw, colour: RGB) -> RGB:
    red, green, blue = (min(255, max(0, channel + draw.integer(-14, 14))) for channel in colour)
    return red, green, blue


def _border(draw: Draw, mask: Image.Image, pad: int) -> None:
    width, height = mask.size
    if not draw.chance(0.45):
        return
    gap, thick = draw.integer(0, max(0, pad // 3)), max(1, min(6, pad // 5))
    rule(mask, gap, gap, width - gap, gap + thick, 255)
    rule(mask, gap, height - gap - thick, width - gap, height - gap, 255)
    rule(mask, gap, gap, gap + thick, height - gap, 255)
    rule(mask, width - gap - thick, gap, width - gap, height - gap, 255)


def _ground(draw: Draw, size: tuple[int, int]) -> Image.Image:
    kind = draw.integer(0, 3)
    if kind == 0:
        return camera.gradient(draw, size, draw.colour(40, 230), draw.colour(40, 230))
    if kind == 1:
        return camera.blotches(draw, size, draw.integer(3, 24))
    if kind == 2:
        return camera.stripes(draw, size)
    return Image.new("RGB", size, draw.colour(30, 240))


def _corners(
    draw: Draw, panel: tuple[int, int], ground: tuple[int, int], difficulty: float
) -> camera.Quad:
    """Turned, leaning and seen from a side, and scaled so that all of it is in the picture."""
    angle = math.radians(draw.number(-1, 1) * draw.number(2, 5 + 17 * difficulty))
    half_x, half_y = panel[0] / 2, panel[1] / 2
    lean = 0.05 + 0.12 * difficulty
    points: list[tuple[float, float]] = []
    for side, end in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
        x = side * half_x * (1 + draw.number(-lean, 0))
        y = end * half_y * (1 + draw.number(-lean, lean / 2))
        cos, sin = math.cos(angle), math.sin(angle)
        points.append((x * cos - y * sin, x * sin + y * cos))
    width = max(x for x, _ in points) - min(x for x, _ in points)
    height = max(y for _, y in points) - min(y for _, y in points)
    scale = min(1.0, 0.97 * ground[0] / width, 0.97 * ground[1] / height)
    free_x, free_y = ground[0] - width * scale, ground[1] - height * scale
    left = draw.number(0.05, 0.95) * free_x - scale * min(x for x, _ in points)
    top = draw.number(0.05, 0.95) * free_y - scale * min(y for _, y in points)
    first, second, third, fourth = ((x * scale + left, y * scale + top) for x, y in points)
    return first, second, third, fourth


def _photographed(draw: Draw, image: Image.Image, difficulty: float) -> Image.Image:
    if draw.chance(0.3):
        image = camera.shadow(draw, image, 0.25 + 0.35 * difficulty)
    if draw.chance(0.08 * difficulty):
        image = camera.blurred(image, draw.number(0.3, 1.0))
    if draw.chance(0.1 + 0.2 * difficulty):
        image = camera.noise(draw, image, draw.integer(4, 8 + round(18 * difficulty)))
    if draw.chance(0.15):
        image = camera.jpeg(image, draw.integer(92 - round(55 * difficulty), 95))
    return image


def _ask(draw: Draw, sign: _Sign) -> tuple[Turn, ...]:
    text = "\n".join(sign.rows)
    read = Turn(draw.choice(READ_ALL), text, "read")
    colour = Turn(
        draw.choice(("What color is the sign?", "Which color has the sign?")), sign.colour
    )
    ink = Turn(draw.choice(("What color are the letters?", "What color is the text?")), sign.ink)
    said = " ".join(sign.rows)
    article = "An" if sign.colour == "orange" else "A"
    describe = Turn(
        draw.choice(DESCRIBE),
        f'{article} {sign.colour} sign with {sign.ink} letters. It says "{said}".',
    )
    if draw.chance(0.7):
        return (read, *draw.several([colour, ink], draw.integer(0, 1)))
    return (draw.choice((describe, colour, ink)),)
