"""What a table says, and what one may ask about it."""

from internvl2.synthetic.draw import Draw
from internvl2.synthetic.papers import Document
from internvl2.synthetic.sample import Turn
from internvl2.synthetic.sheet import Row

LARGEST = {"small": 20, "hundreds": 999, "thousands": 9999, "decimals": 999}


def table(draw: Draw, difficulty: float) -> Document:
    """Names and one to four columns of numbers."""
    layout = draw.of_split(lambda: _layout(draw, difficulty))
    wide, kind, high, scale, titled, place = layout.split("|")
    columns = draw.listed_several("column", int(wide))
    names = draw.listed_several(kind, int(high))
    values = [[_value(draw, scale) for _ in columns] for _ in names]
    corner = {"city": "City", "product": "Item"}.get(kind, "Name")
    title = f"{draw.word().capitalize()} {draw.listed('subject').lower()}"
    has_title = titled == "titled"
    align = "middle" if place == "middle" else "left"
    rows = [Row((title,), align, is_bold=True)] if has_title else []
    rows.append(Row((corner, *columns), "table", gap_above=0.2 * has_title))
    for index, (name, numbers) in enumerate(zip(names, values, strict=True)):
        shown = (name, *(_shown(number, scale) for number in numbers))
        rows.append(Row(shown, "table", rule_above=index == 0))
    turns = _about_size(names, columns)
    turns += _about_cells(draw, names, columns, values, scale)
    if has_title:
        turns.append(Turn("What is the title of the table?", title))
    summary = f"with {len(names)} rows about {' and '.join(column.lower() for column in columns)}"
    return Document("table", tuple(rows), tuple(turns), summary)


def _layout(draw: Draw, difficulty: float) -> str:
    """Columns, what the rows are, how many, size of numbers, and the title."""
    return "|".join(
        (
            str(draw.integer(1, 2 + round(1.5 * difficulty))),
            draw.choice(("city", "first_name", "product", "last_name")),
            str(draw.integer(2, 4 + round(4 * difficulty))),
            draw.choice(tuple(LARGEST)),
            "titled" if draw.chance(0.45) else "",
            draw.choice(("middle", "left")),
        )
    )


def _about_size(names: list[str], columns: list[str]) -> list[Turn]:
    return [
        Turn("How many rows are there below the header?", str(len(names))),
        Turn("How many columns does the table have?", str(len(columns) + 1)),
        Turn("Which name is in the last row?", names[-1]),
        Turn("Which name is in the first row below the header?", names[0]),
    ]


def _about_cells(
    draw: Draw, names: list[str], columns: list[str], values: list[list[int]], scale: str
) -> list[Turn]:
    turns: list[Turn] = []
    for _ in range(6):
        row, column = draw.integer(0, len(names) - 1), draw.integer(0, len(columns) - 1)
        value, label = _shown(values[row][column], scale), columns[column]
        wording = draw.choice(
            ("What is the {label} of {name}?", "{label} of {name}?", "{name}, {label}?",
             "Find the {label} for {name}.", "Which value does {name} have for {label}?")
        )  # fmt: skip
        turns.append(Turn(wording.format(label=label, name=names[row]), value))
    column = draw.integer(0, len(columns) - 1)
    label, numbers = columns[column], [row[column] for row in values]
    if numbers.count(max(numbers)) == 1:
        turns.append(
            Turn(f"Who or what has the highest {label}?", names[numbers.index(max(numbers))])
        )
        turns.append(Turn(f"What is the highest {label}?", _shown(max(numbers), scale)))
    if numbers.count(min(numbers)) == 1:
        turns.append(
            Turn(f"Who or what has the lowest {label}?", names[numbers.index(min(numbers))])
        )
    if scale == "small":
        turns.append(Turn(f"What is the sum of the column {label}?", str(sum(numbers))))
    number = draw.choice(numbers)
    if numbers.count(number) == 1:
        owner = names[numbers.index(number)]
        turns.append(Turn(f"Which row has {_shown(number, scale)} as {label}?", owner))
    return turns


def _value(draw: Draw, scale: str) -> int:
    return draw.integer(1, LARGEST[scale])


def _shown(value: int, scale: str) -> str:
    return f"{value / 10:.1f}" if scale == "decimals" else str(value)
