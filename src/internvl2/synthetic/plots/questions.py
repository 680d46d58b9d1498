"""Questions on a chart, asked only where the picture settles the answer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from internvl2.synthetic.draw import Draw
from internvl2.synthetic.plots.chart import KINDS, Chart
from internvl2.synthetic.sample import Turn
from internvl2.synthetic.wordings import DESCRIBE, plain_or

CLEAR = 0.03
"""Share of the scale by which written values must differ to be compared."""
CLEAR_UNWRITTEN_SLICE = 0.06


@dataclass(frozen=True)
class Ask:
    """A chart to ask about, and the draw that chooses what."""

    draw: Draw
    chart: Chart

    @property
    def can_read(self) -> bool:
        """Whether single values can be told."""
        return not self.chart.is_round or self.chart.written is not None

    def differ(self, a: float, b: float) -> bool:
        """Whether two values differ clearly in the picture."""
        chart = self.chart
        extent = chart.scale.high - chart.scale.low
        least = CLEAR if chart.written is not None or not chart.is_round else CLEAR_UNWRITTEN_SLICE
        return abs(a - b) >= least * extent

    def place(self) -> tuple[int, int]:
        """Any (series, category)."""
        chart, draw = self.chart, self.draw
        return (
            draw.integer(0, len(chart.series) - 1),
            draw.integer(0, len(chart.categories) - 1),
        )

    def of(self, series: int) -> str:
        """ " for North" where there are several series to tell apart."""
        return f" for {self.chart.series[series].name}" if len(self.chart.series) > 1 else ""


def ask(draw: Draw, chart: Chart, difficulty: float) -> tuple[Turn, ...]:
    """Questions, no two alike; only training pictures begin with a description."""
    asking = Ask(draw, chart)
    wanted = draw.more(draw.integer(1, 4))
    turns: list[Turn] = []
    if draw.split == "train" and draw.chance(0.08):
        turns.append(_describe(asking))
    kinds = (*_ASKS, *_HARD_ASKS) if difficulty > 0.4 else _ASKS
    while len(turns) < wanted:
        make = draw.choice(kinds)
        turn = make(asking)
        if turn is None:
            continue
        turn = replace(turn, kind=_KINDS_OF_ASKS.get(make, "other"))
        if any(turn.question == other.question for other in turns):
            wanted -= 1
        else:
            turns.append(turn)
    return tuple(turns)


def _value(asking: Ask) -> Turn | None:
    if not asking.can_read:
        return None
    chart = asking.chart
    series, category = asking.place()
    name = chart.categories[category]
    if chart.is_round:
        plain = "What percentage is {}?"
        wordings = [
            "What is the percentage of {}?", "What share does {} have?",
            "How many percent does {} make up?", "What is the value of {}?",
            "What percentage of the chart is {}?",
        ]  # fmt: skip
    elif len(chart.series) > 1:
        of = chart.series[series].name
        plain = f"What is the value of {of} for {{}}?"
        wordings = [
            f"What value does {of} have in {{}}?",
            f"What is {of} at {{}}?", f"What is the value of {{}} for {of}?",
            f"How much is {of} for {{}}?",
        ]  # fmt: skip
    else:
        plain = "What is the value of {}?"
        wordings = [
            "What is the value for {}?", "What value does {} have?",
            "How much is {}?", "What is shown for {}?", "Read the value of {}.",
        ]  # fmt: skip
        if chart.kind in ("bar", "horizontal"):
            wordings += ["What is the value of the bar {}?", "What number does the bar {} reach?"]
        if chart.value_label:
            measure = chart.value_label.split(" (")[0].lower()
            wordings += [f"What is the {measure} for {{}}?", f"What is the {measure} of {{}}?"]
    wording = plain_or(asking.draw, plain, wordings)
    return Turn(wording.format(name), chart.shown(series, category))


def _extreme(asking: Ask) -> Turn | None:
    chart, draw = asking.chart, asking.draw
    series, _ = asking.place()
    values = chart.series[series].values
    highest = draw.chance(0.55)
    order = sorted(range(len(values)), key=values.__getitem__, reverse=highest)
    if not asking.differ(values[order[0]], values[order[1]]):
        return None
    words = ("highest", "largest", "greatest") if highest else ("lowest", "smallest")
    word = draw.choice(words)
    of = asking.of(series)
    if draw.chance(0.25) and asking.can_read:
        return Turn(f"What is the {word} value{of}?", chart.shown(series, order[0]))
    wordings = [
        "Which category has the {} value{}?", "What has the {} value{}?",
        "Which one has the {} value{}?", "Which has the {} value{}?",
    ]  # fmt: skip
    plain = wordings[0]
    if chart.is_round:
        plain = f"Which slice is the {'largest' if highest else 'smallest'}?"
        wordings += ["Which slice is the {}?", "Which category has the {} share?"]
    elif chart.kind in ("bar", "horizontal"):
        plain = f"Which bar is the {'highest' if highest else 'lowest'}?"
        tall = "tallest" if highest else "shortest"
        wordings += ["Which bar is the {}?", f"Which bar is the {tall}?"]
    wording = plain_or(draw, plain, wordings)
    return Turn(wording.format(word, of), chart.categories[order[0]])


def _compare(asking: Ask) -> Turn | None:
    chart, draw = asking.chart, asking.draw
    series, _ = asking.place()
    values = chart.series[series].values
    first, second = draw.shuffled(range(len(values)))[:2]
    if not asking.differ(values[first], values[second]):
        return None
    a, b, of = chart.categories[first], chart.categories[second], asking.of(series)
    greater = values[first] > values[second]
    if draw.chance(0.4):
        word, holds = draw.choice(
            (("greater", greater), ("larger", greater), ("higher", greater),
             ("smaller", not greater), ("lower", not greater), ("less", not greater))
        )  # fmt: skip
        return Turn(f"Is {a} {word} than {b}{of}?", "Yes" if holds else "No")
    plain = ("Which is greater{}: {} or {}?", True)
    wording, high = plain if draw.chance(0.55) else draw.choice(
        (("Which is larger{}: {} or {}?", True),
         ("Which has the higher value{}, {} or {}?", True),
         ("Which is smaller{}: {} or {}?", False),
         ("Which has the lower value{}, {} or {}?", False))
    )  # fmt: skip
    return Turn(wording.format(of, a, b), a if greater == high else b)


def _compare_series(asking: Ask) -> Turn | None:
    chart, draw = asking.chart, asking.draw
    if len(chart.series) < 2:
        return None
    _, category = asking.place()
    values = [series.values[category] for series in chart.series]
    highest = draw.chance(0.6)
    order = sorted(range(len(values)), key=values.__getitem__, reverse=highest)
    if not asking.differ(values[order[0]], values[order[1]]):
        return None
    word = "highest" if highest else "lowest"
    what = "line" if chart.kind == "line" else "series"
    question = f"Which {what} is {word} in {chart.categories[category]}?"
    return Turn(question, chart.series[order[0]].name)


def _which_has(asking: Ask) -> Turn | None:
    if not asking.can_read:
        return None
    chart = asking.chart
    series, category = asking.place()
    values = chart.series[series].values
    others = [value for i, value in enumerate(values) if i != category]
    if any(not asking.differ(values[category], value) for value in others):
        return None
    shown = chart.shown(series, category)
    wording = asking.draw.choice(
        ("Which category has the value {}{}?", "What has a value of {}{}?", "Which one is {}{}?")
    )
    return Turn(wording.format(shown, asking.of(series)), chart.categories[category])


def _how_many(asking: Ask) -> Turn:
    chart, draw = asking.chart, asking.draw
    count = len(chart.categories)
    if len(chart.series) > 1 and draw.chance(0.5):
        what = "lines" if chart.kind == "line" else "series"
        return Turn(f"How many {what} are there?", str(len(chart.series)))
    what = "categories"
    if chart.is_round:
        what = draw.choice(("slices", "categories", "parts"))
    elif chart.kind in ("bar", "horizontal"):
        what = draw.choice(("bars", "bars", "categories"))
    elif chart.kind == "line" and len(chart.series) == 1:
        what = draw.choice(("points", "categories"))
    wording = draw.choice(
        ("How many {} are there?", "How many {} are shown?", "How many {} does the chart have?")
    )
    return Turn(wording.format(what), str(count))


def _title(asking: Ask) -> Turn | None:
    if asking.chart.title is None:
        return None
    wording = asking.draw.choice(
        ("What is the title of the chart?", "What is the title?", "Read the title of this chart.",
         "What is the chart called?", "What is written above the chart?")
    )  # fmt: skip
    return Turn(wording, asking.chart.title)


def _axis_label(asking: Ask) -> Turn | None:
    chart, draw = asking.chart, asking.draw
    across = draw.chance(0.5)
    is_value = across == (chart.kind == "horizontal")
    label = chart.value_label if is_value else chart.category_label
    if label is None:
        return None
    axis = draw.choice(("x-axis", "horizontal axis") if across else ("y-axis", "vertical axis"))
    wording = draw.choice(("What is the label of the {}?", "What does the {} show?",
                           "What is written on the {}?"))  # fmt: skip
    return Turn(wording.format(axis), label)


def _kind(asking: Ask) -> Turn:
    wording = asking.draw.choice(
        (
            "What kind of chart is this?",
            "What type of chart is shown?",
            "Which type of chart is it?",
        )
    )
    return Turn(wording, KINDS[asking.chart.kind])


def _colour(asking: Ask) -> Turn | None:
    chart, draw = asking.chart, asking.draw
    pairs = list(zip(chart.categories, (name for name, _ in chart.colours), strict=False))
    thing = "slice" if chart.is_round else "bar"
    if not pairs:
        pairs = [(series.name, series.colour) for series in chart.series]
        thing = "line" if chart.kind == "line" else "series"
    names = [colour for _, colour in pairs]
    if None in names or len(set(names)) < len(names):
        return None
    name, colour = draw.choice(pairs)
    assert colour is not None
    spelling = draw.choice(("colour", "color"))
    if not chart.colours and len(chart.series) == 1:
        bars = "line" if chart.kind == "line" else "bars"
        return Turn(f"What {spelling} {'is' if bars == 'line' else 'are'} the {bars}?", colour)
    if draw.chance(0.5):
        return Turn(f"What {spelling} is the {thing} of {name}?", colour)
    return Turn(f"What does the {colour} {thing} stand for?", name)


def _trend(asking: Ask) -> Turn | None:
    chart, draw = asking.chart, asking.draw
    if chart.kind != "line":
        return None
    series, end = asking.place()
    values = chart.series[series].values
    if end == 0 or not asking.differ(values[end - 1], values[end]):
        return None
    span = f"from {chart.categories[end - 1]} to {chart.categories[end]}"
    subject = chart.series[series].name if len(chart.series) > 1 else "the line"
    question = draw.choice(("Does {} rise or fall {}?", "Does {} go up or down {}?"))
    words = ("rises", "falls") if "rise" in question else ("up", "down")
    answer = words[0] if values[end] > values[end - 1] else words[1]
    return Turn(question.format(subject, span), answer)


def _all_values(asking: Ask) -> Turn | None:
    chart = asking.chart
    if not asking.can_read or len(chart.series) > 1 or len(chart.categories) > 6:
        return None
    wording = asking.draw.choice(
        ("List all categories with their values.", "Read out all values of the chart.",
         "Convert the chart to text: one line per category.")
    )  # fmt: skip
    return Turn(wording, "\n".join(_pairs(chart)))


def _pairs(chart: Chart) -> list[str]:
    return [f"{chart.categories[i]}: {chart.shown(0, i)}" for i in _from_top(chart)]


def _from_top(chart: Chart) -> range:
    """Categories in reading order: lying bars are drawn upwards."""
    count = len(chart.categories)
    return range(count - 1, -1, -1) if chart.kind == "horizontal" else range(count)


def _names(asking: Ask) -> Turn:
    chart = asking.chart
    if len(chart.series) > 1:
        return Turn("Which series are in the legend?",
                    ", ".join(series.name for series in chart.series))  # fmt: skip
    names = ", ".join(chart.categories[i] for i in _from_top(chart))
    return Turn("Which categories are shown?", names)


def _difference(asking: Ask) -> Turn | None:
    chart, draw = asking.chart, asking.draw
    if not asking.can_read:
        return None
    series, _ = asking.place()
    first, second = draw.shuffled(range(len(chart.categories)))[:2]
    percent = "%" if chart.is_round else ""
    a, b = (float(chart.shown(series, i).rstrip("%")) for i in (first, second))
    if a > 999 or b > 999 or not asking.differ(a, b):
        return None
    names, of = f"{chart.categories[first]} and {chart.categories[second]}", asking.of(series)
    if draw.chance(0.5):
        return Turn(f"What is the difference between {names}{of}?",
                    f"{round(abs(a - b), 2):g}{percent}")  # fmt: skip
    return Turn(f"What is the sum of {names}{of}?", f"{round(a + b, 2):g}{percent}")


def _describe(asking: Ask) -> Turn:
    chart = asking.chart
    question = asking.draw.choice(
        (*DESCRIBE, "Describe the chart.", "What does this chart show?", "Summarize the chart.")
    )
    kind = KINDS[chart.kind]
    title = f' titled "{chart.title}"' if chart.title else ""
    if len(chart.series) > 1:
        rest = f" with {', '.join(chart.categories)} for " + " and ".join(
            series.name for series in chart.series
        )
    elif asking.can_read and len(chart.categories) <= 6:
        rest = ". " + ", ".join(_pairs(chart))
    else:
        rest = " with " + ", ".join(chart.categories)
    return Turn(question, f"A {kind}{title}{rest}.")


_ASKS: tuple[Callable[[Ask], Turn | None], ...] = (
    _value, _value, _value, _value, _value, _value, _extreme, _extreme, _extreme, _compare,
    _compare, _compare_series, _which_has, _how_many, _title, _axis_label, _kind, _colour, _trend,
)  # fmt: skip
_KINDS_OF_ASKS: Mapping[Callable[[Ask], Turn | None], str] = MappingProxyType(
    {
        _value: "value",
        _extreme: "extreme",
        _compare: "compare",
        _compare_series: "compare",
        _trend: "compare",
        _difference: "compare",
    }
)
_HARD_ASKS = (_difference, _all_values, _names)
