"""What a chart shows: its kind, categories, series, scale and titles."""

from dataclasses import dataclass

from internvl2.synthetic.forms import RGB

KINDS = {
    "bar": "bar chart",
    "horizontal": "horizontal bar chart",
    "grouped": "grouped bar chart",
    "line": "line chart",
    "pie": "pie chart",
    "donut": "donut chart",
}


@dataclass(frozen=True)
class Scale:
    """A value axis: ticks at multiples of `step` between `low` and `high`."""

    low: float
    high: float
    step: float

    @property
    def ticks(self) -> tuple[float, ...]:
        """The values at which ticks stand, rounded to what a label shows."""
        first = round(self.low / self.step + 0.499)
        last = int(self.high / self.step + 1e-6)
        return tuple(round(i * self.step, 4) for i in range(first, last + 1))

    def share(self, value: float) -> float:
        """How far up the axis a value lies, from 0 to 1."""
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Series:
    """Values of one colour; `colour` is its name, where it has a clear one."""

    name: str
    values: tuple[float, ...]
    rgb: RGB
    colour: str | None


@dataclass(frozen=True)
class Chart:
    """One chart; a pie has one series and a colour for every category instead of the series'."""

    kind: str
    categories: tuple[str, ...]
    series: tuple[Series, ...]
    scale: Scale
    written: tuple[tuple[str, ...], ...] | None
    """Each series' values as texts in the picture; None where they must be read off an axis."""
    title: str | None = None
    category_label: str | None = None
    value_label: str | None = None
    colours: tuple[tuple[str | None, RGB], ...] = ()
    """Of the categories: all slices of a pie, or bars that differ in colour."""

    @property
    def is_round(self) -> bool:
        """Whether it is a pie or a donut."""
        return self.kind in ("pie", "donut")

    def shown(self, series: int, category: int) -> str:
        """A value as one reads it: the text in the picture, else the number on the axis."""
        if self.written is not None:
            return self.written[series][category]
        return f"{self.series[series].values[category]:g}"
