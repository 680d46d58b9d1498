"""Documents with which reading them begins: a heading and one or two short rows."""

from internvl2.synthetic.draw import Draw
from internvl2.synthetic.papers import Document
from internvl2.synthetic.sample import Turn
from internvl2.synthetic.sheet import Row

FIELDS = ("Name", "Date", "City", "Room", "Total", "Age", "Time")


def slip(draw: Draw, difficulty: float) -> Document:
    """Wares with prices, or fields with values, one or two; a heading at times."""
    is_receipt = draw.chance(0.5)
    most = 2 if difficulty < 0.1 else 3
    count = draw.integer(1, most)
    pairs = _wares(draw, count) if is_receipt else _fields(draw, count)
    heading = draw.word().capitalize() if draw.chance(0.35) else None
    rows = [Row((heading,), "middle", is_bold=True)] if heading else []
    align = draw.choice(("left", "spread"))
    mark = "" if is_receipt else ":"
    rows += [Row((label + mark, value), align) for label, value in pairs]
    asked = "What is the price of {}?" if is_receipt else "What is the {}?"
    turns = [
        Turn(asked.format(label if is_receipt else label.lower()), value) for label, value in pairs
    ]
    kind = "receipt" if is_receipt else "form"
    said = ", ".join(f"{label} {value}" for label, value in pairs)
    return Document(kind, tuple(rows), tuple(turns), f"with {said}")


def _wares(draw: Draw, count: int) -> list[tuple[str, str]]:
    names: list[str] = []
    while len(names) < count:
        name = draw.listed("product")
        if name not in names and len(name) <= 8:
            names.append(name)
    return [(name, f"{draw.price(50, 1999) / 100:.2f}") for name in names]


def _fields(draw: Draw, count: int) -> list[tuple[str, str]]:
    def value(field: str) -> str:
        makers = {
            "Name": lambda: draw.listed("first_name"),
            "Date": lambda: draw.of_split(lambda: f"{draw.integer(1, 28)}.{draw.integer(1, 12)}."),
            "City": lambda: draw.listed("city"),
            "Total": lambda: f"{draw.price(50, 9999) / 100:.2f}",
            "Time": draw.time,
        }
        return makers.get(field, lambda: str(draw.integer(1, 99)))()

    return [(field, value(field)) for field in draw.several(FIELDS, count)]
