"""Files that grow by one record at a time: lines, one JSON array, Parquet."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROWS_PER_GROUP = 100
"""As image data sets are written; a group is what is held in memory, and what is read at once."""


Sink = Callable[[Mapping[str, Any]], None]
"""Takes records, one after the other."""


@contextmanager
def open_sink(path: Path) -> Iterator[Sink]:
    """A new file for records, of the kind that its suffix says; whole when the block ends well."""
    kinds = {".jsonl": _lines, ".json": _array, ".parquet": _parquet}
    with kinds[path.suffix](path) as sink:
        yield sink


@contextmanager
def _lines(path: Path) -> Iterator[Sink]:
    with path.open("x", encoding="utf-8") as file:

        def write(record: Mapping[str, Any]) -> None:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

        yield write


@contextmanager
def _array(path: Path) -> Iterator[Sink]:
    between = "[\n"
    with path.open("x", encoding="utf-8") as file:

        def write(record: Mapping[str, Any]) -> None:
            nonlocal between
            file.write(between + json.dumps(record, ensure_ascii=False))
            between = ",\n"

        yield write
        file.write("[]\n" if between == "[\n" else "\n]\n")


@contextmanager
def _parquet(path: Path) -> Iterator[Sink]:
    try:
        import pyarrow as arrow  # pyright: ignore[reportMissingImports]
        from pyarrow.parquet import ParquetWriter  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise ValueError(f"{path.name} needs pyarrow: pip install internvl2[parquet]") from None
    medium = arrow.struct({"bytes": arrow.binary(), "path": arrow.string()})
    schema = arrow.schema(
        {
            "id": arrow.string(),
            "messages": arrow.list_(
                arrow.struct({"role": arrow.string(), "content": arrow.string()})
            ),
            "images": arrow.list_(medium),
            "videos": arrow.list_(medium),
            "clip": arrow.list_(arrow.float64()),
        }
    )
    rows: list[Mapping[str, Any]] = []
    with ParquetWriter(path, schema) as file:

        def flush() -> None:
            file.write_table(arrow.Table.from_pylist(rows, schema))
            rows.clear()

        def write(record: Mapping[str, Any]) -> None:
            name = record.get("id")
            rows.append({**record, "id": None if name is None else str(name)})
            if len(rows) == ROWS_PER_GROUP:
                flush()

        yield write
        if rows:
            flush()
