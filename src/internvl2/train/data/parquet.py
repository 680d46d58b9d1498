"""Rows of a Parquet file as records; needs the extra `parquet`.

A row group is read as a whole, and the last few are kept. In random order a record of 43 KB costs
2 ms from groups of 100 rows, as image data sets are written, and 20 ms from groups of 1000.
"""

from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from internvl2.train.data.line_index import SampleError

KEPT_BYTES = 1 << 28
"""Row groups are kept up to this size in all; the last one always is."""


@dataclass(frozen=True)
class ParquetRows:
    """The rows of a file, by number."""

    path: Path
    ends: tuple[int, ...]
    """Rows up to the end of each row group."""
    _groups: "OrderedDict[int, Any]" = field(default_factory=OrderedDict, repr=False)
    """The row groups that were read last, by number."""

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def where(self, entry: int) -> str:
        """File and row, from 1."""
        return f"{self.path}:{entry + 1}"

    def read(self, entry: int) -> dict[str, Any]:
        """A row, its columns by name."""
        from pyarrow import ArrowException  # pyright: ignore[reportMissingImports]

        group = bisect_right(self.ends, entry)
        first = self.ends[group - 1] if group else 0
        try:
            return _without_nulls(self._group(group).slice(entry - first, 1).to_pylist()[0])
        except (ArrowException, OSError) as error:
            raise SampleError(self.where(entry), f"cannot be read: {error}") from None

    def _group(self, number: int) -> Any:
        from pyarrow.parquet import ParquetFile  # pyright: ignore[reportMissingImports]

        if number in self._groups:
            self._groups.move_to_end(number)
        else:
            self._groups[number] = ParquetFile(self.path).read_row_group(number, use_threads=False)
            kept = sum(group.nbytes for group in self._groups.values())
            while kept > KEPT_BYTES and len(self._groups) > 1:
                kept -= self._groups.popitem(last=False)[1].nbytes
        return self._groups[number]

    def __reduce__(self) -> tuple[Any, ...]:
        return ParquetRows, (self.path, self.ends)


def _without_nulls(found: Any) -> Any:
    """A value in which no object has empty fields: all rows share the fields of each other."""
    if isinstance(found, dict):
        return {key: _without_nulls(value) for key, value in found.items() if value is not None}
    return [_without_nulls(item) for item in found] if isinstance(found, list) else found


def open_parquet(path: Path) -> ParquetRows:
    """The rows of a Parquet file."""
    try:
        from pyarrow import ArrowException  # pyright: ignore[reportMissingImports]
        from pyarrow.parquet import ParquetFile  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise ValueError(f"{path} needs pyarrow: pip install internvl2[parquet]") from None
    try:
        meta = ParquetFile(path).metadata
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a readable Parquet file: {error}") from None
    sizes = [meta.row_group(group).num_rows for group in range(meta.num_row_groups)]
    if not sum(sizes):
        raise ValueError(f"data set {path} has no record")
    return ParquetRows(path, tuple(accumulate(sizes)))
