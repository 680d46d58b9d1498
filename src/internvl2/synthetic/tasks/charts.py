"""Charts: bars, lines and pies with questions on values, extremes, comparisons and labels."""

from PIL import Image

from internvl2.synthetic.draw import Draw
from internvl2.synthetic.page import is_easy
from internvl2.synthetic.plots.axes import MARKERS, paint_axes_chart
from internvl2.synthetic.plots.chart import Chart, Scale, Series
from internvl2.synthetic.plots.first import first_chart, plain_style
from internvl2.synthetic.plots.questions import ask
from internvl2.synthetic.plots.round import Cut, paint_round_chart
from internvl2.synthetic.plots.style import Style, choose_style
from internvl2.synthetic.plots.subjects import UNITS, choose_subject
from internvl2.synthetic.plots.values import choose_shares, choose_values
from internvl2.synthetic.sample import Sample

KINDS = (
    "bar", "bar", "bar", "bar", "bar", "horizontal", "horizontal", "grouped", "grouped",
    "line", "line", "line", "pie", "pie", "pie", "pie", "donut",
)  # fmt: skip
PLAIN = "dejavu-sans"
"""matplotlib's face."""


def make(draw: Draw, difficulty: float) -> Sample:
    """One chart with one to four questions."""
    kind = draw.choice(KINDS)
    style = choose_style(draw, difficulty, PLAIN if draw.split == "train" else draw.face("sans"))
    if is_easy(draw, difficulty):
        kind = draw.choice(("bar", "bar", "horizontal", "pie"))
        style = plain_style(draw, style)
        chart = first_chart(draw, style, kind)
        image = _paint_first(chart, style)
    elif kind in ("pie", "donut"):
        chart = _choose_round(draw, style, kind, difficulty)
        image = paint_round_chart(chart, style, _choose_cut(draw, chart, style))
    else:
        chart = _choose_chart(draw, style, kind, difficulty)
        marker = "o" if style.is_default else draw.choice(MARKERS)
        image = paint_axes_chart(chart, style, marker)
    return Sample("charts", (image,), ask(draw, chart, difficulty))


def _paint_first(chart: Chart, style: Style) -> Image.Image:
    if chart.is_round:
        return paint_round_chart(chart, style, Cut(90, False, False, False))
    return paint_axes_chart(chart, style)


def _choose_chart(draw: Draw, style: Style, kind: str, difficulty: float) -> Chart:
    series, categories = _choose_shape(draw, style, kind, difficulty)
    subject = choose_subject(draw, categories, series)
    while True:
        values = choose_values(draw, style, kind, (series, categories), difficulty)
        if draw.belongs(f"{kind} {values.rows}"):
            break
    many = kind in ("bar", "horizontal") and draw.chance(0.25)
    return Chart(
        kind,
        subject.categories,
        tuple(
            Series(name, row, rgb, colour)
            for name, row, (colour, rgb) in zip(
                subject.series, values.rows, style.colours, strict=False
            )
        ),
        values.scale,
        values.written,
        subject.title if draw.chance(0.75) else None,
        subject.kind if draw.chance(0.45) else None,
        subject.measure + draw.choice(UNITS) if draw.chance(0.55) else None,
        tuple(style.colours[i % len(style.colours)] for i in range(categories)) if many else (),
    )


def _choose_shape(draw: Draw, style: Style, kind: str, difficulty: float) -> tuple[int, int]:
    """Numbers of series and of categories."""
    more = round(4 * difficulty)
    if kind == "grouped":
        return draw.integer(2, 3 if difficulty > 0.5 else 2), draw.integer(2, 3 + more // 2)
    if kind == "line":
        series = draw.choice((1, 1, 1, 2, 2, 3)) if difficulty > 0.3 else 1
        return series, draw.integer(3, 4 + more)
    return 1, draw.integer(2, 4 + more)


def _choose_round(draw: Draw, style: Style, kind: str, difficulty: float) -> Chart:
    count = draw.integer(2, 4 + round(2.4 * difficulty))
    subject = choose_subject(draw, count, 1)
    while True:
        values, texts = choose_shares(draw, count)
        if draw.belongs(f"{kind} {values}"):
            break
    return Chart(
        kind,
        subject.categories,
        (Series(subject.measure, values, (0, 0, 0), None),),
        Scale(0, sum(values), 1),
        (texts,) if draw.chance(0.75) else None,
        subject.title if draw.chance(0.7) else None,
        colours=tuple(style.colours[i % len(style.colours)] for i in range(count)),
    )


def _choose_cut(draw: Draw, chart: Chart, style: Style) -> Cut:
    start = draw.choice((0, 90)) if style.is_default else draw.choice((0, 90, 90, 140, 180, 45))
    has_legend = draw.chance(0.12 if style.is_default else 0.35)
    return Cut(
        start,
        draw.chance(0.2),
        has_legend,
        not style.is_default and draw.chance(0.3),
        not style.is_default and draw.chance(0.25),
    )
