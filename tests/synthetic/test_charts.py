"""Charts: values lie on ticks, extremes have no ties, pictures and splits are what they claim."""

import re
from collections import Counter
from dataclasses import replace

import pytest

from internvl2.eval.metrics import relaxed_accuracy
from internvl2.synthetic.draw import Draw
from internvl2.synthetic.plots import axes
from internvl2.synthetic.plots.canvas import Canvas
from internvl2.synthetic.plots.chart import Chart, Scale, Series
from internvl2.synthetic.plots.questions import ask
from internvl2.synthetic.plots.style import choose_style
from internvl2.synthetic.plots.values import choose_shares, choose_values
from internvl2.synthetic.tasks import charts

KINDS = ("bar", "horizontal", "grouped", "line")


def values_of(seed: int, split: str, kind: str = "bar"):
    draw = Draw(seed, split, "test")
    style = choose_style(draw, 1.0, "dejavu-sans")
    return choose_values(draw, style, kind, (2 if kind == "grouped" else 1, 4), 1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_unwritten_values_of_test_charts_lie_on_ticks_or_half_ticks(kind: str):
    for seed in range(100):
        values = values_of(seed, "test", kind)
        if values.written is None:
            halves = [2 * value / values.scale.step for row in values.rows for value in row]
            assert all(abs(half - round(half)) < 0.3 for half in halves)


def test_many_unwritten_values_of_training_charts_lie_between_half_ticks():
    charts = [values for seed in range(300) if (values := values_of(seed, "train")).written is None]
    between = sum(
        any(abs(2 * v / c.scale.step % 1 - 0.5) < 0.45 for row in c.rows for v in row)
        for c in charts
    )
    assert 0.2 < between / len(charts) < 0.7


@pytest.mark.parametrize(("difficulty", "least"), [(0.2, 18), (0.3, 12), (1.0, 12)])
def test_letters_like_matplotlibs_are_small_only_in_harder_charts(difficulty: float, least: int):
    styles = [choose_style(Draw(seed), difficulty, "dejavu-sans") for seed in range(800)]
    square = [s for s in styles if s.is_default and s.width != 640]
    sizes = [round(448 * s.size / s.width) for s in square]
    assert min(sizes) == least
    assert 0.2 < sum(size <= 15 for size in sizes) / len(sizes) < 0.65 or least == 18


def test_names_at_30_degrees_stand_apart_and_inside():
    style = replace(
        next(s for i in range(99) if (s := choose_style(Draw(i), 1.0, "dejavu-sans")).is_default),
        width=448, height=448, size=13, slant=30, is_always_slanted=True,
    )  # fmt: skip
    few, many = (
        Chart("bar", ("Aberdeen",) * n, (Series("s", (1.0,) * n, (9, 9, 9), None),),
              Scale(0, 2, 1), None)
        for n in (3, 11)
    )  # fmt: skip
    assert [axes._slant(Canvas(style), chart) for chart in (few, many)] == [30, 90]
    image = axes.paint_axes_chart(few, style)
    assert image.crop((0, 0, 4, 448)).getcolors() == [(4 * 448, (255, 255, 255))]


@pytest.mark.parametrize("kind", ["bar", "pie"])
def test_the_plain_wording_is_the_most_frequent(kind: str):
    colours = ((None, (1, 2, 3)), (None, (9, 9, 9)), (None, (99, 9, 9)))
    chart = Chart(
        kind, ("Ant", "Bee", "Cow"), (Series("s", (10.0, 30.0, 60.0), (0, 0, 0), None),),
        Scale(0, 100, 10), (("10", "30", "60"),), colours=colours,
    )  # fmt: skip
    turns = [turn for seed in range(2500) for turn in ask(Draw(seed), chart, 1.0)]

    def first(kind: str) -> str:
        asked = Counter(re.sub("Ant|Bee|Cow", "X", t.question) for t in turns if t.kind == kind)
        return asked.most_common(1)[0][0]

    plain = ("What is the value of X?", "Which bar is the highest?")
    if kind == "pie":
        plain = ("What percentage is X?", "Which slice is the largest?")
    assert (first("value"), first("extreme")) == plain
    assert first("compare") == "Which is greater: X or X?"


@pytest.mark.parametrize("kind", KINDS)
def test_every_value_lies_within_the_scale(kind: str):
    for seed in range(100):
        values = values_of(seed, "train", kind)
        shares = [values.scale.share(value) for row in values.rows for value in row]
        assert all(0 <= share <= 1 for share in shares)


def test_about_half_of_the_bars_have_their_values_written():
    written = sum(values_of(seed, "train").written is not None for seed in range(400))
    assert 120 < written < 240


def test_shares_of_a_pie_differ_and_add_up():
    for seed in range(200):
        values, texts = choose_shares(Draw(seed, "train"), 5)
        assert len(set(texts)) == 5
        assert abs(sum(float(text.rstrip("%")) for text in texts) - 100) < 0.01
        assert min(values) / sum(values) > 0.05


def test_ticks_of_a_scale_are_multiples_of_its_step():
    assert Scale(0, 10.5, 2.5).ticks == (0, 2.5, 5, 7.5, 10)
    assert Scale(13, 41, 10).ticks == (20, 30, 40)


def test_no_question_for_an_extreme_of_equal_values():
    chart = Chart(
        "bar", ("A", "B", "C"), (Series("s", (4.0, 4.0, 4.0), (0, 0, 0), None),), Scale(0, 5, 1),
        None,
    )  # fmt: skip
    questions = [turn.question for seed in range(150) for turn in ask(Draw(seed), chart, 1.0)]
    assert not [q for q in questions if re.search("est|greater|Which .* value", q)]


def test_answers_on_one_bar_chart_are_right():
    series = Series("s", (10.0, 30.0, 20.0), (31, 119, 180), "blue")
    chart = Chart("bar", ("Ant", "Bee", "Cow"), (series,), Scale(0, 31.5, 5), None, title="Legs")
    turns = {t.question: t.answer for seed in range(3000) for t in ask(Draw(seed), chart, 1.0)}
    assert turns["What is the value of Bee?"] == "30"
    assert turns["Which category has the lowest value?"] == "Ant"
    assert turns["Is Cow greater than Ant?"] == "Yes"
    assert turns["What is the sum of Ant and Cow?"] == "30"
    assert turns["What is the title?"] == "Legs"
    assert turns["How many bars are there?"] == "3"
    assert turns["What color are the bars?"] == "blue"


def test_questions_of_test_charts_have_short_answers():
    for seed in range(60):
        sample = charts.make(Draw(seed, "test", "charts"), 1.0)
        answers = [turn.answer for turn in sample.turns]
        assert all(relaxed_accuracy(answer, [answer]) == 1 for answer in answers)
        assert not any(turn.question.startswith("Describe") for turn in sample.turns)


def test_a_seed_gives_the_same_chart_again():
    first, again = (charts.make(Draw(7, "train", "charts"), 0.5) for _ in range(2))
    assert first.turns == again.turns
    assert first.images[0].tobytes() == again.images[0].tobytes()


def test_no_values_belong_to_both_splits():
    rows = [{values_of(seed, split).rows for seed in range(300)} for split in ("train", "test")]
    kept = [
        {row for row in rows[i] if Draw(0, split).belongs(f"bar {row}")}
        for i, split in enumerate(("train", "test"))
    ]
    assert kept[0]
    assert kept[1]
    assert not kept[0] & kept[1]


@pytest.mark.parametrize("difficulty", [0.0, 0.5, 1.0])
def test_every_chart_is_drawn_at_every_difficulty(difficulty: float):
    for seed in range(40):
        sample = charts.make(Draw(seed, "test", "charts"), difficulty)
        (image,) = sample.images
        assert image.mode == "RGB"
        assert len(image.getcolors(maxcolors=2**20) or ()) > 3
        assert sample.turns
