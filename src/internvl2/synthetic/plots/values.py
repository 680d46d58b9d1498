"""Values of charts and the scales on which they can be read exactly."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from internvl2.synthetic.draw import Draw
from internvl2.synthetic.plots.chart import Scale
from internvl2.synthetic.plots.style import HARDER, Style

STEPS = (1, 1, 2, 2, 5, 5, 5, 10, 10, 10, 10, 20, 20, 20, 25, 50, 50, 100, 200, 250, 500, 0.5, 2.5)
UNITS = (1, 2, 5, 10, 20, 50, 100)
"""Round numbers on which values lie that no tick marks."""
Rows = tuple[tuple[float, ...], ...]
Texts = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Values:
    """One row per series, the axis, and the texts where values are written out."""

    rows: Rows
    scale: Scale
    written: Texts | None


def choose_values(
    draw: Draw, style: Style, kind: str, shape: tuple[int, int], difficulty: float
) -> Values:
    """Values for (series, categories); a half is written out, others can be told by the ticks."""
    series, categories = shape
    step = draw.choice(STEPS)
    intervals = draw.integer(4, 8)
    written = draw.chance(0.5) and (kind != "line" or series == 1)
    decimals = int(step <= 2.5 or draw.chance(0.2)) if step <= 25 and draw.chance(0.6) else 0
    longest = len(f"{step * intervals:.{decimals}f}")
    room = 0.72 * style.width / (categories * series) * (1 if kind == "line" else style.bar_share)
    if kind != "horizontal" and 0.62 * style.size * longest > 1.1 * room:
        written = False
    if written:
        rows = _free_rows(draw, shape, step * intervals, decimals)
        texts = tuple(tuple(f"{value:.{decimals}f}" for value in row) for row in rows)
    else:
        texts = None
        unit = _choose_unit(draw, step, difficulty)
        rows = _rows_of_units(draw, shape, unit, int(intervals * step / unit))
    scale = _scale(draw, style, kind, rows, step, written)
    return Values(rows, scale, texts)


def _choose_unit(draw: Draw, step: float, difficulty: float) -> float:
    """What values are multiples of: ticks and half ticks.

    In training also round numbers anywhere between ticks, as in charts that nobody labelled.
    """
    if draw.split == "train" and difficulty > HARDER:
        units = [unit for unit in UNITS if step / 10 <= unit < step]
        if units and draw.chance(0.45):
            return draw.choice(units)
        if difficulty > 0.5 and draw.chance(0.15):
            return step / 5
    return step / 2 if draw.chance(0.3 + 0.5 * difficulty) else step


def _free_rows(draw: Draw, shape: tuple[int, int], top: float, decimals: int) -> Rows:
    unit = 10**decimals
    low, high = max(1, round(0.1 * top * unit)), round(top * unit)
    return tuple(
        tuple(draw.integer(low, high) / unit for _ in range(shape[1])) for _ in range(shape[0])
    )


def _rows_of_units(draw: Draw, shape: tuple[int, int], unit: float, most: int) -> Rows:
    rows = []
    for _ in range(shape[0]):
        counts = draw.shuffled(range(1, most + 1))[: shape[1]]
        while len(counts) < shape[1]:
            counts.append(draw.integer(1, most))
        rows.append(tuple(round(count * unit, 4) for count in counts))
    return tuple(rows)


def _scale(draw: Draw, style: Style, kind: str, rows: Rows, step: float, written: bool) -> Scale:
    """Room above the highest value, more for a legend within or for values at lying bars."""
    top = max(max(row) for row in rows)
    bottom = min(min(row) for row in rows)
    high = 1.05 * top
    if written and kind == "horizontal":
        high = 1.14 * top
    elif written:
        high = 1.08 * top
    if len(rows) > 1 and style.legend == "inside":
        taken = (1.4 * style.size * len(rows) + 0.5 * style.size + 16) / (0.68 * style.height)
        high = 1.03 * top / (1 - taken)
    if kind == "line" and style.is_default and len(rows) == 1 and top - bottom >= 3 * step:
        reach = 0.05 * (top - bottom)
        return Scale(bottom - reach, top + (2.2 if written else 1) * reach, step)
    if not style.is_default:
        bare = not written and high <= 1.05 * top and draw.chance(0.4)
        high = step * (math.ceil(top / step) if bare else math.ceil(high / step))
    return Scale(0, high, _fewer_ticks(step, high))


def _fewer_ticks(step: float, high: float) -> float:
    """Keeps a legend's room above from doubling the ticks."""
    return step if high / step <= 14 else 2 * step


def choose_shares(draw: Draw, count: int) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """Values of a pie and their percentages as texts, none alike, none too thin to label."""
    decimals = draw.choice((0, 0, 1, 1))
    least = min(8 if decimals else 6, 60 // count)
    while True:
        values = _partition(draw, count, least, 1000 if decimals else 100)
        texts = tuple(f"{value / 10:.1f}%" if decimals else f"{value}%" for value in values)
        if len(set(texts)) == len(texts):
            return tuple(float(value) for value in values), texts


def _partition(draw: Draw, count: int, least: int, total: int) -> Sequence[int]:
    """Whole numbers of the given sum, each at least so many hundredths of it."""
    floor = least * total // 100
    free = total - count * floor
    cuts = sorted(draw.integer(0, free) for _ in range(count - 1))
    ends = (0, *cuts, free)
    return [floor + ends[i + 1] - ends[i] for i in range(count)]
