"""Sums written in a picture: one or several, in a row or one number above the other."""

from dataclasses import dataclass

from PIL import Image, ImageDraw

from internvl2.synthetic.draw import Draw
from internvl2.synthetic.lettering import choose_ink, letter
from internvl2.synthetic.page import is_easy
from internvl2.synthetic.sample import Sample, Turn
from internvl2.synthetic.scenes import WHITE, Ground, choose_ground
from internvl2.synthetic.wordings import DESCRIBE

ORDINALS = ("first", "second", "third", "fourth")
RESULT = (
    "What is the result?", "Calculate the result.", "What is the answer?", "Solve this.",
    "How much is it?", "What does this come to?", "Work out the sum in the picture.",
    "Please compute the expression.", "What is the value of the expression?", "Solve.",
    "Result?", "Compute this.", "Calculate.", "Can you solve this?", "What does it equal?",
)  # fmt: skip
READ = (
    "What is written in the picture?",
    "Read the text.",
    "What does it say?",
    "OCR this image.",
    "Read the expression.",
    "Which expression is shown?",
)


@dataclass(frozen=True)
class Sum:
    """An expression and its value; `terms` are the two numbers and the sign of a simple one."""

    text: str
    value: int
    terms: tuple[int, str, int] | None = None


def make(draw: Draw, difficulty: float) -> Sample:
    """One expression, or two to four, or two numbers to compare."""
    if is_easy(draw, difficulty):
        return _first_sums(draw)
    kind = draw.choice(("one", "one", "one", "one", "column", "several", "several", "gap", "check",
                        "compare"))  # fmt: skip
    others = {"several": _several, "compare": _compare, "gap": _gap, "check": _check}
    if kind in others:
        return others[kind](draw, difficulty)
    chosen = choose_sum(draw, difficulty)
    if kind == "column" and chosen.terms is not None and chosen.terms[1] in "+-":
        image = _paint_column(draw, chosen.terms, difficulty)
        return Sample("arithmetic", (image,), (Turn(draw.choice(RESULT), str(chosen.value)),))
    text = chosen.text + draw.choice(("", " =", " = ?", " = ?"))
    turns = [Turn(draw.choice(RESULT), str(chosen.value))]
    if draw.chance(0.3):
        turns.append(Turn(draw.choice(READ), text))
    if draw.split == "train" and draw.chance(0.05):
        turns.insert(0, Turn(draw.choice(DESCRIBE), f"A calculation is written here: {text}"))
    image = _paint_lines(draw, [text], difficulty)
    return Sample("arithmetic", (image,), tuple(turns))


def _first_sums(draw: Draw) -> Sample:
    """A sum or a difference of single figures, in large ones on white."""
    while True:
        chosen = _two(draw, draw.choice("++-"), 0.0)
        if chosen.terms is not None and max(chosen.terms[0], chosen.terms[2]) < 10:
            break
    text = chosen.text + draw.choice(("", " =", " = ?"))
    side = draw.choice((320, 384, 448))
    canvas = Image.new("RGB", (side, side), (255, 255, 255))
    written = letter(draw.face(), draw.integer(56, 110), text, side - 40)
    free_x, free_y = side - written.width, side - written.height
    at = round(free_x * draw.number(0.2, 0.8)), round(free_y * draw.number(0.2, 0.8))
    written.paste(canvas, *at, choose_ink(draw, WHITE))
    turns = [Turn(draw.choice(RESULT), str(chosen.value)), Turn(draw.choice(READ), text)]
    return Sample("arithmetic", (canvas,), tuple(draw.several(turns, draw.integer(1, 2))))


def choose_sum(draw: Draw, difficulty: float) -> Sum:
    """Sums and differences up to 99, tables up to 12, three numbers at high difficulty.

    A fifth of those of larger numbers is held out for test. The tables are facts that one knows or
    not, so they belong to both splits.
    """
    while True:
        kind = draw.choice("++++----**/3" if difficulty > 0.4 else "+++---*")
        chosen = _three(draw) if kind == "3" else _two(draw, kind, difficulty)
        if is_table(chosen) or draw.belongs(" ".join(chosen.text.split())):
            return chosen


def is_table(chosen: Sum) -> bool:
    """Whether it is a fact to know by heart: a product, a quotient, or one of single digits."""
    if chosen.terms is None:
        return False
    first, sign, second = chosen.terms
    return sign in "*/" or (max(first, second) < 10) or (sign == "-" and first < 20 > second * 2)


def _two(draw: Draw, sign: str, difficulty: float) -> Sum:
    most = round(12 + 87 * difficulty)
    if sign == "+":
        first, second = draw.integer(0, most), draw.integer(0, most)
        value = first + second
    elif sign == "-":
        first = draw.integer(1, most)
        second = draw.integer(0, first)
        value = first - second
    elif sign == "*":
        first, second = draw.integer(1, 12 if difficulty > 0.7 else 10), draw.integer(1, 10)
        value = first * second
    else:
        second, value = draw.integer(1, 10), draw.integer(1, 10)
        first = second * value
    shown = {"*": draw.choice("××x*"), "/": draw.choice("÷÷/")}
    return Sum(f"{first} {shown.get(sign, sign)} {second}", value, (first, sign, second))


def _three(draw: Draw) -> Sum:
    a, b, c = draw.integer(1, 20), draw.integer(1, 20), draw.integer(1, 9)
    if draw.chance(0.3):
        a, b = 1 + a // 5, 1 + b // 4
        return Sum(f"({a} + {b}) × {c}", (a + b) * c)
    if a + b > c and draw.chance(0.5):
        return Sum(f"{a} + {b} - {c}", a + b - c)
    return Sum(f"{a} + {b} + {c}", a + b + c)


def _several(draw: Draw, difficulty: float) -> Sample:
    count = draw.integer(2, 4 if difficulty > 0.3 else 3)
    sums = [choose_sum(draw, difficulty) for _ in range(count)]
    marks = draw.choice(((), (), "abcd", "1234"))
    lines = [(f"{marks[i]}) " if marks else "") + f"{one.text} =" for i, one in enumerate(sums)]
    image = _paint_lines(draw, lines, difficulty)
    turns = []
    for place in draw.shuffled(range(count))[: draw.integer(1, count)]:
        asked = f"{marks[place]})" if marks and draw.chance(0.6) else f"the {ORDINALS[place]} line"
        wording = draw.choice(("What is the result of {}?", "Solve {}.", "Calculate {}."))
        turns.append(Turn(wording.format(asked), str(sums[place].value)))
    if draw.chance(0.2):
        turns.append(Turn("Solve all of them, one result per line.",
                          "\n".join(str(one.value) for one in sums)))  # fmt: skip
    return Sample("arithmetic", (image,), tuple(turns))


def _compare(draw: Draw, difficulty: float) -> Sample:
    most = round(20 + 979 * difficulty)
    while True:
        first, second = draw.integer(0, most), draw.integer(0, most)
        if first != second and draw.belongs(f"{first} ? {second}"):
            break
    between = draw.choice(("    ", "   ?   ", "  and  "))
    image = _paint_lines(draw, [f"{first}{between}{second}"], difficulty)
    greater = draw.chance(0.6)
    word = draw.choice(("larger", "greater", "bigger") if greater else ("smaller",))
    answer = max(first, second) if greater else min(first, second)
    return Sample("arithmetic", (image,), (Turn(f"Which number is {word}?", str(answer)),))


def _gap(draw: Draw, difficulty: float) -> Sample:
    while True:
        chosen = choose_sum(draw, 0.6 * difficulty)
        if chosen.terms is not None and chosen.terms[1] in "+-":
            break
    first, sign, second = chosen.terms
    gap = draw.choice(("?", "?", "__", "[ ]"))
    first_missing = draw.chance(0.4)
    shown = f"{gap} {sign} {second}" if first_missing else f"{first} {sign} {gap}"
    image = _paint_lines(draw, [f"{shown} = {chosen.value}"], difficulty)
    question = draw.choice(
        ("Which number is missing?", "What is the missing number?", "Fill in the missing number.")
    )
    return Sample(
        "arithmetic", (image,), (Turn(question, str(first if first_missing else second)),)
    )


def _check(draw: Draw, difficulty: float) -> Sample:
    chosen = choose_sum(draw, difficulty)
    right = draw.chance(0.5)
    shown = chosen.value
    if not right:
        shown += draw.choice((-10, -2, -1, 1, 2, 10))
        shown = chosen.value + 1 if shown < 0 else shown
    image = _paint_lines(draw, [f"{chosen.text} = {shown}"], difficulty)
    question = draw.choice(("Is this correct?", "Is the calculation right?", "Is this sum right?"))
    turns = [Turn(question, "Yes" if right else "No")]
    if not right and draw.chance(0.6):
        turns.append(Turn("What would be the right result?", str(chosen.value)))
    return Sample("arithmetic", (image,), tuple(turns))


def _choose_size(draw: Draw, difficulty: float) -> int:
    return draw.integer(round(40 - 18 * difficulty), 90 if draw.chance(0.2) else 60)


def _sheet(draw: Draw) -> tuple[Image.Image, Ground]:
    ground = choose_ground(draw)
    side = draw.choice((320, 384, 448, 448, 448, 512))
    height = side // 2 if draw.chance(0.08) else side
    canvas = Image.new("RGB", (side, height), ground.rgb)
    if draw.chance(0.15) and not ground.is_dark:
        _rule(canvas, draw.choice((16, 24, 32)))
    return canvas, ground


def _rule(canvas: Image.Image, every: int) -> None:
    """Squared paper."""
    pen = ImageDraw.Draw(canvas)
    for x in range(every // 2, canvas.width, every):
        pen.line((x, 0, x, canvas.height), (205, 220, 235))
    for y in range(every // 2, canvas.height, every):
        pen.line((0, y, canvas.width, y), (205, 220, 235))


def _paint_lines(draw: Draw, lines: list[str], difficulty: float) -> Image.Image:
    canvas, ground = _sheet(draw)
    size = min(_choose_size(draw, difficulty), round(0.55 * canvas.height / len(lines)))
    face, ink = draw.face(), choose_ink(draw, ground)
    widest = max(letter(face, size, line).width for line in lines)
    size = min(size, round(size * (canvas.width - 40) / widest))
    inks = [letter(face, size, line) for line in lines]
    step = round(size * draw.number(1.35, 1.9)) if len(lines) > 1 else size
    step = min(step, (canvas.height - 24) // len(lines))
    widest = max(written.width for written in inks)
    left = draw.integer(12, max(12, canvas.width - widest - 12))
    top = draw.integer(12, max(12, canvas.height - step * len(lines) - 12))
    for i, written in enumerate(inks):
        written.paste(canvas, left, top + i * step + size - written.rise, ink)
    return canvas


def _paint_column(draw: Draw, terms: tuple[int, str, int], difficulty: float) -> Image.Image:
    canvas, ground = _sheet(draw)
    size = min(_choose_size(draw, difficulty), canvas.height // 5)
    face, ink = draw.face(), choose_ink(draw, ground)
    first, sign, second = terms
    rows = [letter(face, size, str(term)) for term in (first, second)]
    mark = letter(face, size, sign)
    width = max(row.width for row in rows) + mark.width + size // 2
    right = draw.integer(width + 16, canvas.width - 16)
    top = draw.integer(12, canvas.height - 3 * size - 12)
    for i, row in enumerate(rows):
        row.paste(canvas, right - row.width, top + round(1.2 * i * size), ink)
    middle = top + round(1.2 * size) + rows[1].height // 2
    mark.paste(canvas, right - width, middle - mark.height // 2, ink)
    y = top + round(1.2 * size) + rows[1].height + size // 4
    ImageDraw.Draw(canvas).line((right - width, y, right, y), ink, max(2, size // 14))
    return canvas
