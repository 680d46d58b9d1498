"""What was measured: one row a quantity, with the limit of the device where it is known."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from internvl2.bench.timing import Spread

WIDTH = 50
"""Of what a row is called."""
Unit = Literal["ms", "tokens/s", "requests/s"]


@dataclass(frozen=True, slots=True)
class Row:
    """One quantity over several rounds."""

    what: str
    unit: Unit
    spread: Spread
    limit: float | None = None
    """The best that the device allows, in the same unit; None where that is not known."""

    @property
    def share(self) -> float | None:
        """How much of the limit is reached, 1 being all of it."""
        if self.limit is None:
            return None
        median = self.spread.median
        return self.limit / median if self.unit == "ms" else median / self.limit

    def as_json(self) -> Mapping[str, object]:
        """Every number."""
        return asdict(self) | {"share": self.share}


def table(rows: Iterable[Row]) -> Iterator[str]:
    """Lines for people, the first of which names the columns."""
    columns = f"{'median':>10}{'lowest':>10}{'highest':>10}"
    yield f"{'':<{WIDTH}}{columns}  {'':<10}{'limit':>10}{'share':>7}"
    for row in rows:
        spread = row.spread
        numbers = "".join(f"{_short(n):>10}" for n in (spread.median, spread.low, spread.high))
        limit = "" if row.limit is None else f"{_short(row.limit):>10}{row.share:>7.0%}"
        yield f"{row.what:<{WIDTH}}{numbers}  {row.unit:<10}{limit}".rstrip()


def _short(number: float) -> str:
    digits = 0 if number >= 1000 else 1 if number >= 10 else 2
    return f"{number:,.{digits}f}"
