"""A data set rewritten: entry after entry from its source, faults counted, all or nothing there.

Memory does not grow with the set, COCO's one file excepted. The folder appears under its name when
everything is in it.
"""

import json
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from internvl2.train.conversion.annotations import AnnotatedEntries, Wording
from internvl2.train.conversion.coco import open_coco
from internvl2.train.conversion.forms import FORMS, FormName, write_record
from internvl2.train.conversion.labelme import is_labelme, open_labelme
from internvl2.train.conversion.media import MediaFiles
from internvl2.train.conversion.placing import as_parts, inline
from internvl2.train.conversion.record_sets import BoxOptions, open_records
from internvl2.train.conversion.samples import Notes, Sample, SourceSet
from internvl2.train.conversion.sinks import Sink, open_sink
from internvl2.train.conversion.voc import is_voc, open_voc
from internvl2.train.data.formats import SampleError

Origin = Literal["auto", "records", "coco", "labelme", "voc"]

META, BAD = "meta.json", "bad_samples.jsonl"
NAME = "samples"
"""Of the file, where it holds all sets."""
_HEAD = 4096
_COCO = re.compile(
    rb'(\xef\xbb\xbf)?\s*\{\s*("(info|licenses|annotations|categories|type)"\s*:'
    rb'|"images"\s*:\s*\[\s*\{[^}]*"(file_name|coco_url|license)"\s*:)'
)
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conversion:
    """What is to be rewritten, and how."""

    source: Path
    destination: Path
    form: FormName
    origin: Origin = "auto"
    root: Path | None = None
    """Folder that relative paths of media start from."""
    boxes: BoxOptions = field(default_factory=BoxOptions)
    wording: Wording = field(default_factory=Wording)
    copy_media: bool = False
    skip_bad: int = 0
    """How many entries may be left out; the next fault stops everything."""

    def __post_init__(self) -> None:
        if self.skip_bad < 0:
            raise ValueError(f"--skip-bad is {self.skip_bad}; give 0 or more")
        if self.destination.suffix in (".json", ".jsonl", ".parquet"):
            raise ValueError(f"{self.destination} is named like a file; give a folder to make")


@dataclass(frozen=True, slots=True)
class Converted:
    """What came of it."""

    samples: int
    left_out: int
    main: Path
    """The file to train with."""
    notes: tuple[str, ...]


def convert(
    request: Conversion, advance: Callable[[int], object] = lambda count: None
) -> Converted:
    """Rewrites a data set into a new folder; `advance` is told of entries that are done.

    A fault is a `SampleError` with file and line, and leaves nothing behind.
    """
    from internvl2.checkpoint.convert import building, require_free

    require_free(request.destination)
    notes = Notes()
    sets = open_sets(request, notes)
    if request.form != "official" and (special := [one for one in sets if not one.is_plain]):
        raise ValueError(
            f"the set {special[0].name!r} has repeats, a tile budget or augmentation, which "
            f"{request.form} cannot hold; official can"
        )
    with building(request.destination) as partial:
        media = MediaFiles(partial, request.destination, request.copy_media)
        run = _Run(request, partial, media, notes, advance)
        main = run.write_sets(sets)
        if not run.samples:
            why = "; ".join(notes)
            raise ValueError(
                f"none of the entries of {request.source} gives a sample" + (why and f" ({why})")
            )
    notes.add("hosts whose media are left where they are", len(media.remote))
    return Converted(run.samples, run.left_out, request.destination / main, tuple(notes))


def open_sets(request: Conversion, notes: Notes) -> list[SourceSet]:
    """The data sets of the source."""
    path, root = request.source, request.root
    if not path.exists():
        raise FileNotFoundError(f"{path} is absent")
    if root is not None and not root.is_dir():
        raise FileNotFoundError(f"the root {root} is no folder")
    origin = _origin(path) if request.origin == "auto" else request.origin
    if origin == "records":
        if request.wording != Wording():
            raise ValueError("--samples, --question and --empty are for coco, labelme and voc")
        if request.boxes.drawn_on is not None and request.boxes.unit is None:
            raise ValueError("--drawn-on needs to know what boxes are in: give --boxes too")
        return open_records(path, root, request.boxes, notes)
    if request.boxes.unit is not None:
        raise ValueError(f"--boxes is for records; {origin} has its boxes in pixels")
    if origin == "coco":
        pictures = open_coco(path, root, notes)
        if pictures.has_captions and (request.wording.samples, request.wording.empty) != (
            "picture",
            False,
        ):
            raise ValueError("--samples and --empty are for boxes; captions are a sample each")
    else:
        pictures = open_voc(path, root) if origin == "voc" else open_labelme(path, root, notes)
    entries = AnnotatedEntries(pictures, request.wording, request.boxes.drawn_on, notes)
    return [SourceSet(path.stem, entries)]


def _origin(path: Path) -> Origin:
    """What a source is, by how it looks."""
    if path.is_dir():
        return _origin_of_folder(path)
    if path.suffix == ".xml":
        return "voc"
    if path.suffix != ".json":
        return "records"
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if _COCO.match(head):
        return "coco"
    return "labelme" if b'"shapes"' in head and is_labelme(path) else "records"


def _origin_of_folder(folder: Path) -> Origin:
    if is_voc(folder):
        return "voc"
    if next(folder.glob("*.parquet"), None):
        return "records"
    first = min(folder.rglob("*.json"), default=None)
    if first and is_labelme(first):
        return "labelme"
    raise ValueError(
        f"{folder} is a folder without VOC's xml, LabelMe's json or Parquet files; "
        "name a file in it"
    )


class _Run:
    """A conversion that is going on."""

    def __init__(
        self,
        request: Conversion,
        partial: Path,
        media: MediaFiles,
        notes: Notes,
        advance: Callable[[int], object],
    ) -> None:
        self.request, self.partial, self.media = request, partial, media
        self.notes, self.advance = notes, advance
        self.samples = self.left_out = 0

    def write_sets(self, sets: list[SourceSet]) -> str:
        """Writes all sets, and gives the name of the file to train with."""
        suffix = FORMS[self.request.form].suffix
        if self.request.form != "official":
            with open_sink(self.partial / f"{NAME}{suffix}") as sink:
                for one in sets:
                    self._write(one, sink)
            return f"{NAME}{suffix}"
        meta: dict[str, dict[str, Any]] = {}
        for one, name in zip(sets, _file_names(sets), strict=True):
            with open_sink(self.partial / name) as sink:
                meta[one.name] = _meta_entry(one, name, self._write(one, sink))
        text = json.dumps(meta, ensure_ascii=False, indent=2)
        (self.partial / META).write_text(text + "\n", encoding="utf-8")
        return META

    def _write(self, one: SourceSet, sink: Sink) -> int:
        """Writes the samples of a set, and counts them."""
        before = self.samples
        for entry in range(len(one.entries)):
            try:
                records = [self._record(sample) for sample in one.entries.read(entry)]
            except SampleError as error:
                self._leave_out(error)
            except ValueError as error:
                self._leave_out(SampleError(one.entries.where(entry), str(error)))
            else:
                for record in records:
                    sink(record)
                self.samples += len(records)
            self.advance(1)
        return self.samples - before

    def _record(self, sample: Sample) -> dict[str, Any]:
        record = write_record(self.request.form, sample.messages, self.media)
        if self.request.form == "openai" and inline(as_parts(sample.messages)) != inline(
            sample.messages
        ):
            self.notes.add("samples whose pictures get the labels and line breaks of a prompt")
        return record if sample.identity is None else {"id": sample.identity} | record

    def _leave_out(self, error: SampleError) -> None:
        self.left_out += 1
        if self.left_out > self.request.skip_bad:
            raise error
        _logger.warning("left out %s", error)
        line = json.dumps({"where": error.where, "reason": error.reason}, ensure_ascii=False)
        with (self.partial / BAD).open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def _file_names(sets: list[SourceSet]) -> Iterator[str]:
    """A file for each set, named like it as far as file systems allow."""
    taken = {META, BAD}
    for one in sets:
        stem = re.sub(r"[^\w.-]+", "_", one.name).strip("._") or NAME
        number, name = 1, f"{stem}.jsonl"
        while name in taken:
            number += 1
            name = f"{stem}-{number}.jsonl"
        taken.add(name)
        yield name


def _meta_entry(one: SourceSet, name: str, length: int) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "root": "",
        "annotation": name,
        "data_augment": one.augment,
        "repeat_time": one.repeat,
        "length": length,
    }
    return entry if one.max_tiles is None else entry | {"max_dynamic_patch": one.max_tiles}
