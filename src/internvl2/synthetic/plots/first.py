"""Charts with which one begins: two or three bars or slices, large letters, written values."""

from dataclasses import replace

from internvl2.synthetic.draw import Draw
from internvl2.synthetic.plots.chart import Chart, Scale, Series
from internvl2.synthetic.plots.style import Style
from internvl2.synthetic.plots.subjects import Subject, choose_subject
from internvl2.synthetic.plots.values import choose_shares

SHORT = 7
"""Letters of a name that stands below a narrow bar in large letters."""


def plain_style(draw: Draw, style: Style) -> Style:
    """The style in a square, black on white, without a grid, in large letters."""
    white, black = (255, 255, 255), (0, 0, 0)
    size = draw.integer(22, 28)
    return replace(
        style, width=448, height=448, ground=white, plane=white, ink=black, grid=None, edge=None,
        size=size, title_size=size + 2, is_default=False, is_always_slanted=False,
        bar_share=0.7,
    )  # fmt: skip


def first_chart(draw: Draw, style: Style, kind: str) -> Chart:
    """A bar chart, upright or lying, or a pie, of the split's values."""
    count = draw.integer(2, 3)
    subject = _short_subject(draw, count)
    is_pie = kind == "pie"
    while True:
        if is_pie:
            values, texts = choose_shares(draw, count)
        else:
            values = tuple(float(value) for value in draw.several(range(1, 21), count))
            texts = tuple(f"{value:g}" for value in values)
        if draw.belongs(f"{kind} {values}"):
            break
    top = max(values)
    step = 1 if top <= 4 else 2 if top <= 8 else 5
    colour, rgb = style.colours[0]
    colours = tuple(style.colours[i] for i in range(count)) if is_pie or draw.chance(0.4) else ()
    return Chart(
        kind,
        subject.categories,
        (Series(subject.measure, values, rgb, colour),),
        Scale(0, sum(values), 1) if is_pie else Scale(0, 1.2 * top, step),
        (texts,),
        subject.measure if draw.chance(0.3) else None,
        colours=colours,
    )


def _short_subject(draw: Draw, count: int) -> Subject:
    while True:
        subject = choose_subject(draw, count, 1)
        if max(map(len, subject.categories)) <= SHORT:
            return subject
