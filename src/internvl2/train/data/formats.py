"""Data sets in every form that people have them, as one kind of source: `len` and `[i]`.

Files are opened through an index of where their entries are, so that memory stays flat.
"""

import difflib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from internvl2.processing.conversation import Message
from internvl2.train.data.line_index import (
    SampleError,
    index_array,
    index_lines,
    parse_json,
    starts_with,
)
from internvl2.train.data.records import Reading, check_conversation, read_record

__all__ = [
    "Indexed",
    "Named",
    "Record",
    "SampleError",
    "Source",
    "SourceOptions",
    "from_records",
    "indexed",
    "join",
    "named_sources",
    "open_source",
]


META_KEYS = (
    "root",
    "annotation",
    "data_augment",
    "repeat_time",
    "max_dynamic_patch",
    "length",  # told for people; counted here
)
META_BYTES = 1 << 24
"""A larger file is no meta.json, and is never read as a whole."""
PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
"""How files begin that must be unpacked first."""


@dataclass(frozen=True, slots=True)
class Record:
    """A conversation to learn from, and where it stands."""

    messages: tuple[Message, ...]
    where: str
    """File and line, for people."""
    max_tiles: int | None = None
    """Tile budget that its pictures share; None takes the run's."""
    augment: bool = False
    """Its tiles are re-encoded as JPEG of random quality."""


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How a data set is read."""

    root: str | Path | None = None
    """Folder that relative paths of media start from; the file's own folder unless given."""
    repeat: float = 1.0
    """How often an epoch sees the set; below 1, the first such share of it."""
    max_tiles: int | None = None
    """Tile budget of a record, shared by its pictures; None takes the run's."""
    augment: bool | None = None
    """Re-encode tiles as JPEG of random quality; None leaves it to a meta.json, else it is off."""
    num_frames: int = 8
    """How many frames a video gives."""
    template: str = ""
    """Name of the model's chat template; the official code strips and drops turns by it."""

    def __post_init__(self) -> None:
        if self.repeat <= 0:
            raise ValueError(f"repeat is {self.repeat}; it must be above 0")
        if self.num_frames < 1:
            raise ValueError(f"num_frames is {self.num_frames}; it must be at least 1")

    def reading(self, root: Path) -> Reading:
        """How records are read, their media below `root` unless told otherwise."""
        given = root if self.root is None else Path(self.root)
        return Reading(given, self.template, self.num_frames)


@runtime_checkable
class Source(Protocol):
    """Records by number; asking for one that cannot be used raises a `SampleError`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


@runtime_checkable
class Raw(Protocol):
    """Stored records by number, before they are understood."""

    def __len__(self) -> int: ...

    def where(self, entry: int) -> str:
        """The place of a record, for people."""
        ...

    def read(self, entry: int) -> Mapping[str, Any] | Sequence[Message]:
        """The stored record."""
        ...


@dataclass(frozen=True)
class DataSet:
    """The records of one file or list, as often as an epoch sees them."""

    raw: Raw
    reading: Reading
    options: SourceOptions
    checked: bool = True
    """False gives records with boxes and turns that nobody should learn, for who counts them."""

    def __len__(self) -> int:
        return int(len(self.raw) * self.options.repeat)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        entry = index % len(self.raw)
        where = self.raw.where(entry)
        stored = self.raw.read(entry)
        try:
            if isinstance(stored, Mapping):
                messages = read_record(stored, self.reading)
            else:
                messages = tuple(stored)
            if self.checked:
                check_conversation(messages)
        except ValueError as error:
            raise SampleError(where, str(error)) from error
        return Record(messages, where, self.options.max_tiles, bool(self.options.augment))


@dataclass(frozen=True)
class Joined:
    """Several sources, one after the other."""

    sources: tuple[Source, ...]
    ends: tuple[int, ...]

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        part = bisect_right(self.ends, index)
        return self.sources[part][index - (self.ends[part - 1] if part else 0)]


@runtime_checkable
class Indexed(Protocol):
    """Records by number, which may be made when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class RecordList:
    """Records that a program made."""

    records: Indexed
    name: str

    def __len__(self) -> int:
        return len(self.records)

    def where(self, entry: int) -> str:
        """The record's number, from 1."""
        return f"{self.name}:{entry + 1}"

    def read(self, entry: int) -> Mapping[str, Any] | Sequence[Message]:
        """The record: an object of any known form, or messages."""
        record = self.records[entry]
        is_messages = isinstance(record, Sequence) and all(isinstance(m, Message) for m in record)
        if isinstance(record, Mapping) or is_messages:
            return record
        kind = type(record).__name__
        raise SampleError(self.where(entry), f"a record or messages were expected, not a {kind}")


@dataclass(frozen=True, slots=True)
class Named:
    """A data set that is not opened yet."""

    name: str
    """Its path, and its own name where a meta.json gives one."""
    open: Callable[[], Source]
    """Opens it; an error says why it cannot be."""


def open_source(path: str | Path, options: SourceOptions | None = None) -> Source:
    """The data set in a file: lines, one array, Parquet, or a meta.json that names several.

    A folder of Parquet files is one data set.
    """
    sources = [named.open() for named in named_sources(path, options)]
    return sources[0] if len(sources) == 1 else join(sources)


def named_sources(path: str | Path, options: SourceOptions | None = None) -> list[Named]:
    """The data set in a file, or those that a meta.json names, each to be opened by itself."""
    options = options or SourceOptions()
    path = Path(path)
    meta = _meta(path) if path.suffix == ".json" and path.is_file() else None
    if meta is None:
        return [Named(str(path), partial(_open_file, path, options))]
    return [
        Named(f"{path} {name!r}", partial(_open_entry, path, name, entry, options))
        for name, entry in meta.items()
    ]


def _open_file(path: Path, options: SourceOptions) -> Source:
    if path.is_dir():
        return _open_folder(path, options)
    if not path.is_file():
        raise FileNotFoundError(f"data set {path} is absent")
    if path.suffix == ".parquet":
        from internvl2.train.data.parquet import open_parquet

        return _data_set(open_parquet(path), path, options)
    _refuse_packed(path)
    first = starts_with(path)
    if not first:
        raise ValueError(f"data set {path} is empty")
    index = index_array(path) if first == b"[" else index_lines(path)
    return _data_set(index, path, options)


def from_records(
    records: Iterable[Any] | Indexed,
    options: SourceOptions | None = None,
    *,
    name: str = "records",
) -> Source:
    """A source of what a program gives: records of any known form, or conversations."""
    options = options or SourceOptions()
    return DataSet(RecordList(indexed(records), name), options.reading(Path()), options)


def indexed(records: Iterable[Any] | Indexed) -> Indexed:
    """What can be asked for its records by number, as it is; anything else as a tuple."""
    return records if isinstance(records, Indexed) else tuple(records)


def join(sources: Sequence[Source]) -> Source:
    """One source of several, in their order."""
    return Joined(tuple(sources), tuple(accumulate(len(source) for source in sources)))


def _data_set(raw: Raw, path: Path, options: SourceOptions) -> Source:
    found = DataSet(raw, options.reading(path.parent), options)
    if not len(raw):
        raise ValueError(f"data set {path} has no record")
    if not len(found):
        raise ValueError(f"data set {path}: {options.repeat:g} of {len(raw)} records is none")
    return found


def _open_folder(path: Path, options: SourceOptions) -> Source:
    files = sorted(path.glob("*.parquet"))
    if not files:
        raise ValueError(f"data set {path} is a folder without Parquet files; name a file in it")
    return join([open_source(file, options) for file in files])


def _refuse_packed(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(8)
    for start, kind in PACKED.items():
        if head.startswith(start):
            raise ValueError(f"data set {path} is compressed ({kind}); unpack it first")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"data set {path} is UTF-16; save it as UTF-8")


def _meta(path: Path) -> dict[str, Any] | None:
    """The sets that an official meta.json names; None where the file holds records."""
    if path.stat().st_size > META_BYTES or starts_with(path) != b"{":
        return None
    text = path.read_bytes()
    try:
        found = parse_json(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" or b'"annotation"' not in text:
            return None
        raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if any(isinstance(entry, dict) and "annotation" in entry for entry in found.values()):
        return found
    if text.count(b"\n", 0, len(text.rstrip())):
        raise ValueError(
            f"data set {path} is one object with the keys {', '.join(map(repr, found))}; records "
            "stand in lines or in an array, and each set of a meta.json has an 'annotation'"
        )
    return None


def _open_entry(meta: Path, name: str, entry: Any, options: SourceOptions) -> Source:
    """A set of a meta.json; of what is also given in `options`, that is taken."""
    where = f"{meta}: data set {name!r}"
    _check_entry(where, entry)
    given = options.max_tiles
    own = replace(
        options,
        root=_near(meta, entry.get("root") or "") if options.root is None else options.root,
        repeat=options.repeat * float(_number(where, entry, "repeat_time", 1.0)),
        max_tiles=_whole(where, entry, "max_dynamic_patch", None) if given is None else given,
        augment=entry.get("data_augment") if options.augment is None else options.augment,
    )
    annotation = _near(meta, entry["annotation"])
    if not annotation.is_file():
        raise FileNotFoundError(f"{where}: the annotation {entry['annotation']} is absent")
    return open_source(annotation, own)


def _check_entry(where: str, entry: Any) -> None:
    if not isinstance(entry, dict) or "annotation" not in entry:
        raise ValueError(f"{where} lacks an 'annotation'")
    for key in entry:
        if key not in META_KEYS:
            near = difflib.get_close_matches(key, META_KEYS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(META_KEYS)}"
            raise ValueError(f"{where} has the unknown key {key!r}; {hint}")
    kinds: dict[str, tuple[type, str]] = {
        "root": (str, "a folder"),
        "annotation": (str, "a file"),
        "data_augment": (bool, "true or false"),
    }
    for key, (kind, wanted) in kinds.items():
        value = entry.get(key)
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{where}: {key} is {value!r}; {wanted} was expected")


def _near(meta: Path, given: str) -> Path:
    """A path of a meta.json, seen from its own folder or, as officially, from the current one."""
    beside = meta.parent / given
    return beside if beside.exists() else Path(given)


def _number(where: str, entry: dict[str, Any], name: str, default: Any) -> Any:
    value = entry.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise ValueError(f"{where}: {name} is {value!r}; a number above 0 was expected")
    return value


def _whole(where: str, entry: dict[str, Any], name: str, default: int | None) -> int | None:
    value = _number(where, entry, name, default)
    if value is not None and not isinstance(value, int):
        raise ValueError(f"{where}: {name} is {value!r}; a whole number was expected")
    return value
