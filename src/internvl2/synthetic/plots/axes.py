"""Charts with two axes: bars upright, lying or grouped, and lines with markers."""

from dataclasses import dataclass

from PIL import Image

from internvl2.synthetic.forms import RGB, Point
from internvl2.synthetic.plots.canvas import Canvas, turned_text
from internvl2.synthetic.plots.chart import Chart, Series
from internvl2.synthetic.plots.style import Style

MARKERS = ("o", "s", "d", "")


@dataclass(frozen=True)
class Plane:
    """The rectangle between the axes, in pixels."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        """From the left axis to the right edge."""
        return self.right - self.left

    @property
    def height(self) -> int:
        """From the top edge to the lower axis."""
        return self.bottom - self.top


def paint_axes_chart(chart: Chart, style: Style, marker: str = "o") -> Image.Image:
    """The chart as a picture."""
    canvas = Canvas(style)
    slant = _slant(canvas, chart)
    plane = _plane(canvas, chart, slant)
    if style.plane != style.ground:
        canvas.draw.rectangle((plane.left, plane.top, plane.right, plane.bottom), style.plane)
    if chart.kind == "horizontal":
        _paint_value_axis_across(canvas, chart, plane)
        _paint_names_down(canvas, chart, plane)
        _paint_lying_bars(canvas, chart, plane)
    else:
        _paint_value_axis_down(canvas, chart, plane)
        _paint_names_across(canvas, chart, plane, slant)
        if chart.kind == "line":
            _paint_lines(canvas, chart, plane, marker)
        else:
            _paint_bars(canvas, chart, plane)
    _paint_spines(canvas, plane)
    _paint_titles(canvas, chart, plane)
    if len(chart.series) > 1:
        _paint_legend(canvas, chart, plane, marker)
    return canvas.image


def tick_text(value: float, step: float) -> str:
    """A tick's label, with as many decimals as the step needs."""
    decimals = 0 if step == int(step) else 1 if round(step * 10, 6).is_integer() else 2
    return f"{value:.{decimals}f}"


def _tick_texts(chart: Chart) -> tuple[str, ...]:
    return tuple(tick_text(tick, chart.scale.step) for tick in chart.scale.ticks)


def _slot(style: Style, chart: Chart) -> float:
    """A category's share of the width, before the margins are known."""
    legend = 0.2 if style.legend == "right" and len(chart.series) > 1 else 0
    return style.width * (0.78 - legend) / len(chart.categories)


def _slant(canvas: Canvas, chart: Chart) -> int:
    """The angle of the names; one of 30 degrees only where it keeps them apart and inside."""
    style, slot = canvas.style, _slot(canvas.style, chart)
    widest = max(canvas.width_of(name) for name in chart.categories)
    if widest <= 0.94 * slot and not style.is_always_slanted:
        return 0
    fits = slot >= 2.5 * style.size and 0.87 * widest <= slot + style.size
    return 90 if style.slant == 30 and not fits else style.slant


def _plane(canvas: Canvas, chart: Chart, slant: int) -> Plane:
    """Leaves room for what stands around; matplotlib's own margins where those suffice."""
    style = canvas.style
    lying = chart.kind == "horizontal"
    beside = chart.categories if lying else _tick_texts(chart)
    left = style.tick_length + 8 + max(canvas.width_of(text) for text in beside)
    below = style.tick_length + 6 + style.size
    if slant and not lying:
        masks = [turned_text(canvas.font, name, slant) for name in chart.categories]
        below = style.tick_length + 6 + max(mask.height for mask in masks)
    side_label = chart.category_label if lying else chart.value_label
    low_label = chart.value_label if lying else chart.category_label
    left += style.size + 6 if side_label else 2
    below += style.size + 6 if low_label else 2
    top = style.title_size + 14 if chart.title else style.size // 2 + 6
    right: float = style.size
    if lying:
        right = max(right, canvas.width_of(_tick_texts(chart)[-1]) / 2 + 6)
    if len(chart.series) > 1 and style.legend == "right":
        right = _legend_width(canvas, chart) + 16
    elif len(chart.series) > 1 and style.legend == "top":
        top += round(1.5 * style.size)
    if style.is_default:
        left, right = max(left, 0.125 * style.width), max(right, 0.1 * style.width)
        top, below = max(top, 0.12 * style.height), max(below, 0.11 * style.height)
    return Plane(round(left), round(top), round(style.width - right), round(style.height - below))


def _places(style: Style, chart: Chart) -> list[float]:
    """Where categories stand along their axis, from 0 to 1."""
    count = len(chart.categories)
    if not style.is_default or count == 1:
        return [(i + 0.5) / count for i in range(count)]
    body = 0.0 if chart.kind == "line" else style.bar_share
    extent = count - 1 + body
    return [(i + body / 2 + 0.05 * extent) / (1.1 * extent) for i in range(count)]


def _bar_width(style: Style, chart: Chart, length: int) -> float:
    places = _places(style, chart)
    slot = places[1] - places[0] if len(places) > 1 else 1 / 1.1
    return slot * style.bar_share * length / len(chart.series)


def _paint_value_axis_down(canvas: Canvas, chart: Chart, plane: Plane) -> None:
    style = canvas.style
    for tick, text in zip(chart.scale.ticks, _tick_texts(chart), strict=True):
        y = plane.bottom - round(chart.scale.share(tick) * plane.height)
        if style.grid:
            canvas.draw.line((plane.left, y, plane.right, y), style.grid)
        if style.tick_length:
            canvas.draw.line((plane.left - style.tick_length, y, plane.left, y), style.ink)
        canvas.write((plane.left - style.tick_length - 4, y), text, "rm")


def _paint_value_axis_across(canvas: Canvas, chart: Chart, plane: Plane) -> None:
    style = canvas.style
    texts = _tick_texts(chart)
    room = plane.width / max(1, len(texts) - 1)
    every = 1 if max(canvas.width_of(text) for text in texts) < 0.85 * room else 2
    for i, (tick, text) in enumerate(zip(chart.scale.ticks, texts, strict=True)):
        x = plane.left + round(chart.scale.share(tick) * plane.width)
        if style.grid:
            canvas.draw.line((x, plane.top, x, plane.bottom), style.grid)
        if style.tick_length:
            canvas.draw.line((x, plane.bottom, x, plane.bottom + style.tick_length), style.ink)
        if i % every == 0:
            canvas.write((x, plane.bottom + style.tick_length + 3), text, "ma")


def _paint_names_across(canvas: Canvas, chart: Chart, plane: Plane, slant: int) -> None:
    style = canvas.style
    for place, name in zip(_places(style, chart), chart.categories, strict=True):
        x = plane.left + round(place * plane.width)
        if style.tick_length:
            canvas.draw.line((x, plane.bottom, x, plane.bottom + style.tick_length), style.ink)
        below = plane.bottom + style.tick_length + 3
        if slant:
            canvas.write_turned((x, below), name, slant, "t" if slant == 30 else "r")
        else:
            canvas.write((x, below), name, "ma")


def _paint_names_down(canvas: Canvas, chart: Chart, plane: Plane) -> None:
    style = canvas.style
    for place, name in zip(_places(style, chart), chart.categories, strict=True):
        y = plane.bottom - round(place * plane.height)
        if style.tick_length:
            canvas.draw.line((plane.left - style.tick_length, y, plane.left, y), style.ink)
        canvas.write((plane.left - style.tick_length - 4, y), name, "rm")


def _paint_bars(canvas: Canvas, chart: Chart, plane: Plane) -> None:
    width = _bar_width(canvas.style, chart, plane.width)
    places = _places(canvas.style, chart)
    for index, series in enumerate(chart.series):
        offset = (index - len(chart.series) / 2) * width
        for i, value in enumerate(series.values):
            left = plane.left + places[i] * plane.width + offset
            top = plane.bottom - chart.scale.share(value) * plane.height
            box = (round(left), round(top), round(left + width) - 1, plane.bottom)
            _paint_bar(canvas, box, _fill(chart, series, i))
            if chart.written is not None:
                middle = (left + width / 2, round(top) - 3)
                canvas.write(middle, chart.written[index][i], "ms")


def _paint_lying_bars(canvas: Canvas, chart: Chart, plane: Plane) -> None:
    width = _bar_width(canvas.style, chart, plane.height)
    (series,) = chart.series
    for i, place in enumerate(_places(canvas.style, chart)):
        middle = plane.bottom - place * plane.height
        right = plane.left + round(chart.scale.share(series.values[i]) * plane.width)
        box = (plane.left, round(middle - width / 2), right, round(middle + width / 2) - 1)
        _paint_bar(canvas, box, _fill(chart, series, i))
        if chart.written is not None:
            canvas.write((right + 4, middle), chart.written[0][i], "lm")


def _paint_bar(canvas: Canvas, box: tuple[int, int, int, int], rgb: RGB) -> None:
    canvas.draw.rectangle(box, fill=rgb, outline=canvas.style.edge)


def _fill(chart: Chart, series: Series, category: int) -> RGB:
    return chart.colours[category][1] if chart.colours else series.rgb


def _paint_lines(canvas: Canvas, chart: Chart, plane: Plane, marker: str) -> None:
    thickness = max(1.5, canvas.style.size / 7)
    places = _places(canvas.style, chart)
    for index, series in enumerate(chart.series):
        points = [
            (
                plane.left + place * plane.width,
                plane.bottom - chart.scale.share(value) * plane.height,
            )
            for place, value in zip(places, series.values, strict=True)
        ]
        canvas.stroke(points, thickness, series.rgb)
        for i, point in enumerate(points):
            _paint_marker(canvas, point, 2.1 * thickness, series.rgb, marker)
            if chart.written is not None:
                above = (point[0], point[1] - 2.1 * thickness - 3)
                canvas.write(above, chart.written[index][i], "ms")


def _paint_marker(canvas: Canvas, at: Point, reach: float, rgb: RGB, marker: str) -> None:
    x, y = at
    if marker == "o":
        canvas.stroke([(x, y), (x + 0.02, y)], 0.1, rgb)
        canvas.draw.ellipse((x - reach, y - reach, x + reach, y + reach), rgb)
    elif marker == "s":
        canvas.draw.rectangle((x - reach, y - reach, x + reach, y + reach), rgb)
    elif marker == "d":
        far = 1.4 * reach
        canvas.draw.polygon([(x, y - far), (x + far, y), (x, y + far), (x - far, y)], rgb)


def _paint_spines(canvas: Canvas, plane: Plane) -> None:
    style, pen = canvas.style, canvas.draw
    if style.has_box:
        pen.rectangle((plane.left, plane.top, plane.right, plane.bottom), outline=style.ink)
    elif style.has_spines:
        pen.line((plane.left, plane.top, plane.left, plane.bottom), style.ink)
        pen.line((plane.left, plane.bottom, plane.right, plane.bottom), style.ink)


def _paint_titles(canvas: Canvas, chart: Chart, plane: Plane) -> None:
    style = canvas.style
    lying = chart.kind == "horizontal"
    middle = (plane.left + plane.right) / 2
    if chart.title:
        half = canvas.title_pen.width(chart.title) / 2
        middle = min(max(middle, half + 4), max(style.width - half - 4, style.width / 2))
        lift = round(1.5 * style.size) if _has_legend_on_top(style, chart) else 0
        canvas.write_title((middle, plane.top - 7 - lift), chart.title)
    low = chart.value_label if lying else chart.category_label
    side = chart.category_label if lying else chart.value_label
    if low:
        _paint_low_label(canvas, chart, plane, low)
    if side:
        beside = chart.categories if lying else _tick_texts(chart)
        widest = max(canvas.width_of(text) for text in beside)
        x = plane.left - style.tick_length - widest - 10 - style.size / 2
        canvas.write_turned(
            (max(x, style.size / 2 + 3), (plane.top + plane.bottom) / 2), side, 90, "m"
        )


def _paint_low_label(canvas: Canvas, chart: Chart, plane: Plane, text: str) -> None:
    """Right below the names where these lie flat, else at the edge of the picture."""
    style = canvas.style
    middle = (plane.left + plane.right) / 2
    if chart.kind != "horizontal" and _slant(canvas, chart):
        canvas.write((middle, style.height - 5), text, "md")
    else:
        below = plane.bottom + style.tick_length + round(1.15 * style.size) + 6
        canvas.write((middle, below), text, "ma")


def _has_legend_on_top(style: Style, chart: Chart) -> bool:
    return len(chart.series) > 1 and style.legend == "top"


def _legend_width(canvas: Canvas, chart: Chart) -> int:
    widest = max(canvas.width_of(series.name) for series in chart.series)
    return round(widest + 2.4 * canvas.style.size)


def _paint_legend(canvas: Canvas, chart: Chart, plane: Plane, marker: str) -> None:
    style = canvas.style
    if style.legend == "top":
        entry = _legend_width(canvas, chart) + style.size
        x = (plane.left + plane.right) / 2 - entry * len(chart.series) / 2
        for i, series in enumerate(chart.series):
            _paint_entry(canvas, chart, series, (x + i * entry, plane.top - style.size), marker)
        return
    width = _legend_width(canvas, chart)
    height = round(1.4 * style.size * len(chart.series) + 0.4 * style.size)
    left, top = plane.right - width - 7, plane.top + 7
    if style.legend == "right":
        left = plane.right + 8
    else:
        frame = (left - 4, top, left + width, top + height)
        border = (204, 204, 204) if sum(style.plane) > 384 else (90, 90, 90)
        canvas.draw.rounded_rectangle(frame, 3, fill=style.plane, outline=border)
    for i, series in enumerate(chart.series):
        middle = top + (0.9 + 1.4 * i) * style.size
        _paint_entry(canvas, chart, series, (left, middle), marker)


def _paint_entry(canvas: Canvas, chart: Chart, series: Series, at: Point, marker: str) -> None:
    """A legend's line: a patch or a piece of line, then the name; `at` is its left middle."""
    x, y = at
    size = canvas.style.size
    if chart.kind == "line":
        canvas.draw.line((x, y, x + 1.8 * size, y), series.rgb, round(size / 7))
        _paint_marker(canvas, (x + 0.9 * size, y), 0.28 * size, series.rgb, marker)
    else:
        canvas.draw.rectangle((x, y - 0.35 * size, x + 1.6 * size, y + 0.35 * size), series.rgb)
    canvas.write((x + 2.1 * size, y), series.name, "lm")
