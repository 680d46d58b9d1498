"""Pies and donuts: slices, names beside them or in a legend, percentages within."""

import math
from dataclasses import dataclass

from PIL import Image, ImageDraw

from internvl2.synthetic.forms import RGB, Point
from internvl2.synthetic.plots.canvas import Canvas
from internvl2.synthetic.plots.chart import Chart
from internvl2.synthetic.plots.style import Style

SMOOTHING = 2


@dataclass(frozen=True)
class Cut:
    """How a pie is cut and labelled."""

    start: int
    """Angle of the first slice's beginning in degrees, counter-clockwise from three o'clock."""
    clockwise: bool
    has_legend: bool
    has_gaps: bool
    """White lines between the slices."""
    has_names_with_values: bool = False
    """Percentages stand behind the names instead of in the slices."""


@dataclass(frozen=True)
class Disc:
    """Where the pie lies, and how thick its ring is."""

    x: float
    y: float
    radius: float
    hole: float


def paint_round_chart(chart: Chart, style: Style, cut: Cut) -> Image.Image:
    """The chart as a picture."""
    canvas = Canvas(style)
    legend = _legend_width(canvas, chart) if cut.has_legend else 0
    disc = _disc(canvas, chart, cut, legend)
    middles = _paint_slices(canvas, chart, cut, disc)
    for i, angle in enumerate(middles):
        _label_slice(canvas, chart, cut, disc, i, angle)
    if cut.has_legend:
        _paint_legend(canvas, chart, cut, style.width - legend)
    if chart.title:
        top = disc.y - max(1.28 * disc.radius, 1.1 * disc.radius + 0.7 * style.size + 5)
        top = max(style.title_size + 4, top)
        canvas.write_title((style.width / 2 if legend else disc.x, top), chart.title)
    return canvas.image


def _disc(canvas: Canvas, chart: Chart, cut: Cut, legend: int) -> Disc:
    """As large as names at both sides and the title allow; like matplotlib where that fits."""
    style = canvas.style
    top = style.title_size + 12 if chart.title else 8
    beside, above = 8.0, 8
    if not cut.has_legend:
        beside = 10 + max(canvas.width_of(_outer_text(chart, cut, i)) for i in range(_count(chart)))
        above = round(1.5 * style.size)
    room = min((style.width - legend - 2 * beside) / 2.2, (style.height - top - 2 * above) / 2.1)
    usual = 0.308 * min(style.width, style.height) if style.is_default else room
    radius = max(50.0, min(room, usual))
    hole = 0.48 * radius if chart.kind == "donut" else 0
    if style.is_default and radius == usual and not legend:
        return Disc(0.5125 * style.width, 0.505 * style.height, radius, hole)
    return Disc((style.width - legend) / 2, (style.height + top) / 2, radius, hole)


def _count(chart: Chart) -> int:
    return len(chart.categories)


def _outer_text(chart: Chart, cut: Cut, index: int) -> str:
    name = chart.categories[index]
    if chart.written is not None and cut.has_names_with_values:
        return f"{name} {chart.written[0][index]}"
    return name


def _paint_slices(canvas: Canvas, chart: Chart, cut: Cut, disc: Disc) -> list[float]:
    """Paints the slices and returns the angles, in radians, of their middles."""
    side = 2 * math.ceil(disc.radius) + 4
    centre = side / 2 * SMOOTHING
    radius = disc.radius * SMOOTHING
    sheet = Image.new("RGB", (side * SMOOTHING, side * SMOOTHING), canvas.style.ground)
    pen = ImageDraw.Draw(sheet)
    values = chart.series[0].values
    total, begun = sum(values), float(cut.start)
    turn = -1 if cut.clockwise else 1
    middles = []
    for value, (_, rgb) in zip(values, chart.colours, strict=True):
        sweep = turn * 360 * value / total
        pen.polygon(_wedge(centre, radius, begun, sweep), rgb)
        middles.append(math.radians(begun + sweep / 2))
        begun += sweep
    if cut.has_gaps:
        _paint_gaps(pen, centre, radius, cut.start, [turn * 360 * v / total for v in values])
    if disc.hole:
        hole = disc.hole * SMOOTHING
        box = (centre - hole, centre - hole, centre + hole, centre + hole)
        pen.ellipse(box, canvas.style.ground)
    corner = (round(disc.x - side / 2), round(disc.y - side / 2))
    canvas.image.paste(sheet.reduce(SMOOTHING), corner)
    return middles


def _wedge(centre: float, radius: float, start: float, sweep: float) -> list[Point]:
    steps = max(2, round(abs(sweep) / 4))
    angles = (math.radians(start + sweep * i / steps) for i in range(steps + 1))
    rim = [(centre + radius * math.cos(a), centre - radius * math.sin(a)) for a in angles]
    return [(centre, centre), *rim]


def _paint_gaps(
    pen: ImageDraw.ImageDraw, centre: float, radius: float, start: float, sweeps: list[float]
) -> None:
    angle = start
    for sweep in sweeps:
        turn = math.radians(angle)
        rim = (centre + 1.02 * radius * math.cos(turn), centre - 1.02 * radius * math.sin(turn))
        pen.line([(centre, centre), rim], (255, 255, 255), 2 * SMOOTHING)
        angle += sweep


def _label_slice(
    canvas: Canvas, chart: Chart, cut: Cut, disc: Disc, index: int, angle: float
) -> None:
    cos, sin = math.cos(angle), math.sin(angle)
    if not cut.has_legend:
        anchor = ("l" if cos >= 0 else "r") + "m"
        at = (disc.x + 1.1 * disc.radius * cos, disc.y - 1.1 * disc.radius * sin)
        canvas.write(at, _outer_text(chart, cut, index), anchor)
    if chart.written is None or cut.has_names_with_values:
        return
    reach = disc.radius * (0.6 if not disc.hole else 0.74)
    rgb = chart.colours[index][1]
    canvas.write(
        (disc.x + reach * cos, disc.y - reach * sin),
        chart.written[0][index],
        "mm",
        _ink_on(rgb, canvas.style.is_default),
    )


def _ink_on(rgb: RGB, is_default: bool) -> RGB:
    """Black as matplotlib's, else white on what is dark."""
    luma = 0.3 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2]
    return (0, 0, 0) if luma > 110 or (is_default and luma > 60) else (255, 255, 255)


def _legend_width(canvas: Canvas, chart: Chart) -> int:
    widest = max(canvas.width_of(_outer_text(chart, _IN_LEGEND, i)) for i in range(_count(chart)))
    return round(widest + 2.6 * canvas.style.size)


def _paint_legend(canvas: Canvas, chart: Chart, cut: Cut, left: int) -> None:
    size = canvas.style.size
    top = canvas.style.height / 2 - 0.7 * size * _count(chart)
    for i, (_, rgb) in enumerate(chart.colours):
        middle = top + (i + 0.5) * 1.45 * size
        canvas.draw.rectangle(
            (left, middle - 0.4 * size, left + 1.3 * size, middle + 0.4 * size), rgb
        )
        canvas.write((left + 1.8 * size, middle), _outer_text(chart, cut, i), "lm")


_IN_LEGEND = Cut(0, False, True, False, True)
