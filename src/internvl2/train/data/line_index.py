"""Find any entry of a JSON file of any size by where it begins and ends, which is all that is kept.

A file of lines costs eight bytes a line (sixteen in worker processes, to which it is sent). A file
that is one JSON array is indexed as well, by matching brackets outside of strings. Entries are read
one at a time, from any process.
"""

import json
import mmap
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CHUNK = 1 << 20
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}]', re.DOTALL)
_SHORT = 16
"""Bytes of the longest blank line; a line of a record has more."""


class SampleError(ValueError):
    """A sample that cannot be used, and where it stands; one line."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where, self.reason = where, reason

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass(frozen=True)
class EntryIndex:
    """Where the entries of a file are, in bytes."""

    path: Path
    starts: np.ndarray
    stops: np.ndarray
    lines: np.ndarray | None
    """The line on which each entry begins; None where entry and line count alike."""
    is_array: bool = False

    def __len__(self) -> int:
        return len(self.starts)

    def where(self, entry: int) -> str:
        """File and line of an entry, for people."""
        line = entry + 1 if self.lines is None else int(self.lines[entry])
        place = f"{self.path}:{line}"
        return f"{place} (entry {entry + 1})" if self.is_array else place

    def read(self, entry: int) -> dict[str, Any]:
        """The JSON object of an entry."""
        try:
            with self.path.open("rb") as file:
                file.seek(int(self.starts[entry]))
                text = file.read(int(self.stops[entry] - self.starts[entry]))
        except OSError as error:
            raise SampleError(self.where(entry), f"cannot be read: {error.strerror}") from None
        try:
            found = parse_json(text)
        except UnicodeDecodeError as error:
            reason = f"not UTF-8: byte {error.start + 1} of the record is {text[error.start]:#04x}"
            raise SampleError(self.where(entry), reason) from None
        except json.JSONDecodeError as error:
            reason = f"not JSON: {error.msg} at character {error.pos + 1} of the record"
            raise SampleError(self.where(entry), reason) from None
        except (ValueError, RecursionError) as error:
            raise SampleError(self.where(entry), str(error)) from None
        if not isinstance(found, dict):
            kind = type(found).__name__
            raise SampleError(self.where(entry), f"a JSON object was expected, not a {kind}")
        return found


def parse_json(text: bytes) -> Any:
    """What JSON text says; an object that gives a key twice is an error, for one would be lost."""
    return json.loads(text, object_pairs_hook=_unique)


def index_lines(path: Path) -> EntryIndex:
    """The lines of a file that are not empty."""
    ends = [np.zeros(1, np.int64)]
    size = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            found = np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n"))
            ends.append(found.astype(np.int64) + (size + 1))
            size += len(chunk)
    bounds = np.concatenate(ends)
    if bounds[-1] != size:
        bounds = np.append(bounds, size)
    starts, stops = bounds[:-1], bounds[1:]
    kept = _with_content(path, starts, stops)
    if kept.all():
        return EntryIndex(path, starts, stops, None)
    return EntryIndex(path, starts[kept], stops[kept], np.flatnonzero(kept) + 1)


def index_array(path: Path) -> EntryIndex:
    """The objects of a file that holds one JSON array."""
    starts, stops, lines = array("q"), array("q"), array("q")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        before, line = 0, 1
        for start, stop in _array_objects(path, data):
            line += _newlines(data, before, start)
            between = data[stops[-1] if stops else data.find(b"[") + 1 : start].strip()
            if between != (b"," if stops else b""):
                shown = between[:40].decode(errors="replace")
                raise SampleError(f"{path}:{line}", f"found {shown!r} between two objects")
            starts.append(start)
            stops.append(stop)
            lines.append(line)
            before = start
    entries = (np.frombuffer(column, np.int64) for column in (starts, stops, lines))
    return EntryIndex(path, *entries, is_array=True)


def starts_with(path: Path) -> bytes:
    """The first byte of a file that is not white space; empty for an empty file."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            if text := chunk.removeprefix(b"\xef\xbb\xbf").lstrip():
                return text[:1]
    return b""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is given twice in one object")
    return found


def _with_content(path: Path, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Which lines are more than a line feed; only the shortest are looked at."""
    kept = np.ones(len(starts), bool)
    with path.open("rb") as file:
        for line in np.flatnonzero(stops - starts <= _SHORT):
            file.seek(int(starts[line]))
            kept[line] = bool(file.read(int(stops[line] - starts[line])).strip())
    return kept


def _array_objects(path: Path, data: mmap.mmap) -> Iterator[tuple[int, int]]:
    """First and last byte of every object directly inside the array."""
    depth, start = 0, 0
    for token in _TOKEN.finditer(data):
        kind = data[token.start()]
        if kind in b"[{":
            depth += 1
            if depth == 2:
                start = token.start()
        elif kind in b"]}":
            depth -= 1
            if depth == 1:
                yield start, token.end()
            if depth == 0:
                if data[token.end() :].strip():
                    line = _newlines(data, 0, token.end()) + 1
                    raise SampleError(f"{path}:{line}", "the JSON array ends before the file does")
                return
    line = _newlines(data, 0, len(data)) + 1
    raise SampleError(f"{path}:{line}", "the JSON array is not closed: the file is cut off")


def _newlines(data: mmap.mmap, start: int, stop: int) -> int:
    return sum(data[at : min(at + CHUNK, stop)].count(b"\n") for at in range(start, stop, CHUNK))
