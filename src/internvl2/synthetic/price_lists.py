"""Price lists: a page with a large heading, a date, a sentence or two, and wares with prices."""

from internvl2.synthetic.draw import Draw
from internvl2.synthetic.lines import words_that_fit
from internvl2.synthetic.papers import Document
from internvl2.synthetic.sample import Turn
from internvl2.synthetic.sheet import Row


def price_list(draw: Draw, difficulty: float) -> Document:
    """A heading alone above, and below it what a plain page of the web says."""
    layout = draw.of_split(lambda: _layout(draw, difficulty))
    label, sentences, wares, place = layout.split("|")
    heading = draw.company() if draw.chance(0.7) else draw.listed("subject")
    date = draw.date()
    names = draw.listed_several("product", int(wares))
    prices = [f"{draw.price() / 100:.2f}" for _ in names]
    rows = [Row((heading,), "middle" if place == "middle" else "left", is_bold=True)]
    rows.append(Row((label, date), gap_above=draw.number(0.4, 1.0)))
    rows += [Row((_sentence(draw),)) for _ in range(int(sentences))]
    gap = draw.number(0.3, 0.8)
    for index, pair in enumerate(zip(names, prices, strict=True)):
        rows.append(Row(pair, "spread", gap_above=0 if index else gap))
    turns = [Turn("What is the date?", date)] * 3
    turns += [Turn("What is the heading?", heading), Turn("What is the title?", heading)]
    turns.append(Turn("How many items are listed?", str(len(names))))
    for name, price in zip(names, prices, strict=True):
        turns += [Turn(f"What is the price of {name}?", price)] * 2
        turns += [Turn(f"How much is {name}?", price), Turn(f"{name}?", price)]
    summary = f'titled "{heading}" with {len(names)} items'
    return Document("price list", tuple(rows), tuple(turns), summary)


def _layout(draw: Draw, difficulty: float) -> str:
    """The date's label, sentences, wares, and where the heading stands."""
    return "|".join(
        (
            draw.choice(("Date:", "", "Updated:", "Prices of", "As of", "Last change:")),
            str(draw.integer(0, 2)),
            str(draw.integer(2, 3 + round(2 * difficulty))),
            draw.choice(("left", "left", "middle")),
        )
    )


def _sentence(draw: Draw) -> str:
    words = words_that_fit(draw, 0.4, lambda text: len(text) <= 34)
    return f"{words.capitalize()}."
