"""Data sets in any form that is trained from, as entries to be written in another."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from internvl2.processing.conversation import Message, Picture, Video
from internvl2.train.conversion.geometry import DrawnOn, Frame, Unit, frame_of, thousandths
from internvl2.train.conversion.samples import Notes, Sample, SourceSet
from internvl2.train.conversion.text_boxes import (
    Box,
    Evidence,
    boxes_in,
    count_bare,
    count_shares,
    has_boxes,
    verdict,
    with_boxes,
)
from internvl2.train.data.formats import (
    DataSet,
    Joined,
    Named,
    SampleError,
    Source,
    SourceOptions,
    named_sources,
)
from internvl2.train.data.line_index import parse_json
from internvl2.train.data.records import conversation_flaws, read_record

_READ = {
    *("id", "conversations", "messages", "texts", "question", "answer", "query", "response"),
    *("system", "history", "image", "images", "video", "videos", "clip", "objects"),
}
"""Fields that a conversation is made of; others are not carried over, and counted."""
_KEEPS_ALL = "internvl2_5"
"""The template for which nothing of a record is dropped or stripped when it is read."""
_TYPES: dict[str, Unit] = {"real": "pixel", "norm1": "unit", "norm1000": "thousand"}
"""Units by the names that ms-swift has for them."""


@dataclass(frozen=True, slots=True)
class BoxOptions:
    """In what the boxes of a source are, and where they stand."""

    unit: Unit | Literal["auto"] | None = None
    """None leaves texts as they are, in thousandths, and `objects` in what they say."""
    bare: bool = False
    """Lists of four numbers without `<box>` are boxes too."""
    drawn_on: DrawnOn | None = None
    """None is the usual of the source: COCO and VOC stored, others shown."""

    def __post_init__(self) -> None:
        if self.bare and self.unit is None:
            raise ValueError("--bare-boxes needs to know what they are in: give --boxes too")


@dataclass(frozen=True)
class RecordEntries:
    """The records of one or more files that are one data set."""

    parts: tuple[DataSet, ...]
    boxes: BoxOptions
    unit: Unit | None
    """What its boxes are in; None where they are not looked at."""
    notes: Notes

    def __len__(self) -> int:
        return sum(len(part.raw) for part in self.parts)

    def where(self, entry: int) -> str:
        """File and line."""
        part, index = self._find(entry)
        return part.raw.where(index)

    def read(self, entry: int) -> tuple[Sample, ...]:
        """The conversation of a record, its boxes in thousandths."""
        part, index = self._find(entry)
        stored = _stored(part, index)
        for name in (name for name in stored if name not in _READ):
            self.notes.add(f"samples whose field {name!r} is not carried over")
        if self.unit is None:
            messages = read_record(stored, part.reading)
            shares = sum(count_shares(message.text) for message in messages)
            self.notes.add("boxes of shares from 0 to 1, left as they are (--boxes unit)", shares)
        elif _listed_boxes(stored):
            messages = read_record(self._with_scaled_objects(stored, part, self.unit), part.reading)
        else:
            messages = self._scaled(read_record(stored, part.reading), self.unit)
        for flaw in conversation_flaws(messages):
            hint = "; --boxes says what they are in" if flaw.kind == "box" and not self.unit else ""
            raise ValueError(f"{flaw.reason}{hint}")
        return (Sample(messages, stored.get("id")),)

    def _find(self, entry: int) -> tuple[DataSet, int]:
        for part in self.parts:
            if entry < len(part.raw):
                return part, entry
            entry -= len(part.raw)
        raise IndexError(entry)

    def _scaled(self, messages: tuple[Message, ...], unit: Unit) -> tuple[Message, ...]:
        """The conversation with the boxes of its texts in thousandths."""
        if not self.boxes.bare:
            bare = sum(count_bare(message.text) for message in messages)
            self.notes.add("lists of four numbers without <box>, left alone (--bare-boxes)", bare)
        if not any(has_boxes(message.text, bare=self.boxes.bare) for message in messages):
            return messages
        frame = frame_of_all(messages, unit, self._drawn_on)
        scaled = partial(thousandths, frame, notes=self.notes)
        return with_boxes(messages, scaled, bare=self.boxes.bare)

    def _with_scaled_objects(
        self, stored: Mapping[str, Any], part: DataSet, unit: Unit
    ) -> Mapping[str, Any]:
        """A record of ms-swift with the boxes of its `objects` in thousandths."""
        messages = read_record(_without_objects(stored), part.reading)
        if any(has_boxes(message.text, bare=False) for message in messages):
            raise ValueError("boxes stand both in 'objects' and in the text; one was expected")
        objects = stored["objects"]
        told = _unit_told(objects, unit)
        rows = []
        for number, box in enumerate(objects["bbox"]):
            if not isinstance(box, list):
                raise ValueError(f"objects.bbox[{number}] is {box!r}; four numbers were expected")
            frame = frame_of(object_picture(objects, number, messages), told, self._drawn_on)
            rows.append(thousandths(frame, box, self.notes))
        return {**stored, "objects": {**objects, "bbox": rows, "bbox_type": "norm1000"}}

    @property
    def _drawn_on(self) -> DrawnOn:
        return self.boxes.drawn_on or "shown"


def open_records(path: Path, root: Path | None, boxes: BoxOptions, notes: Notes) -> list[SourceSet]:
    """The data sets of a file or folder, or those that a meta.json names."""
    named = named_sources(path, SourceOptions(root=root, template=_KEEPS_ALL))
    names = [path.stem]
    if [one.name for one in named] != [str(path)]:
        names = list(parse_json(path.read_bytes()))
    return [_open_set(name, one, boxes, notes) for name, one in zip(names, named, strict=True)]


def frame_of_all(messages: Sequence[Message], unit: Unit, drawn_on: DrawnOn) -> Frame:
    """What the boxes of a conversation are measured against; its pictures must agree on that."""
    media = [part for message in messages for part in message.content]
    pictures = [part.source for part in media if isinstance(part, Picture)]
    if unit != "pixel" and drawn_on == "shown":
        return frame_of(b"", unit, drawn_on)
    if any(isinstance(part, Video) for part in media):
        raise ValueError("boxes in pixels of a video have no picture to be measured against")
    frames = {frame_of(_file(source), unit, drawn_on) for source in pictures}
    if len(frames) != 1:
        raise ValueError(
            f"boxes in pixels need one picture, or several of one size; the sample has "
            f"{len(pictures)} of {len(frames)} sizes"
        )
    return frames.pop()


def object_picture(
    objects: Mapping[str, Any], number: int, messages: Sequence[Message]
) -> str | Path | bytes:
    """The picture that a box of `objects` belongs to; the first unless told otherwise."""
    pictures = [part.source for m in messages for part in m.content if isinstance(part, Picture)]
    ids = objects.get("image_id") or []
    picture = ids[number] if isinstance(ids, list) and number < len(ids) else 0
    if type(picture) is not int or not 0 <= picture < len(pictures):
        raise ValueError(f"objects.bbox[{number}] belongs to picture {picture!r}, which is absent")
    return _file(pictures[picture])


def _open_set(name: str, named: Named, boxes: BoxOptions, notes: Notes) -> SourceSet:
    parts = tuple(_data_sets(named.open()))
    unit = boxes.unit
    if unit == "auto":
        unit = _find_unit(name, parts, boxes, notes) or "thousand"
    options = parts[0].options
    return SourceSet(
        name,
        RecordEntries(parts, boxes, unit, notes),
        options.repeat,
        options.max_tiles,
        bool(options.augment),
    )


def _data_sets(source: Source) -> Iterator[DataSet]:
    if isinstance(source, Joined):
        for part in source.sources:
            yield from _data_sets(part)
    else:
        assert isinstance(source, DataSet), type(source)
        yield source


def _find_unit(name: str, parts: Sequence[DataSet], boxes: BoxOptions, notes: Notes) -> Unit | None:
    """What the boxes of a set are in, by a look at all of them; None where it has none."""
    evidence = Evidence()
    for part in parts:
        for index in range(len(part.raw)):
            try:
                _add_evidence(evidence, part, index, boxes)
            except ValueError:
                continue  # a fault that is told when the sample is read
    unit = evidence.unit(name)
    notes.say(verdict(name, evidence, unit))
    return unit


def _add_evidence(evidence: Evidence, part: DataSet, index: int, boxes: BoxOptions) -> None:
    stored = _stored(part, index)
    listed = _listed_boxes(stored)
    if listed and stored["objects"].get("bbox_type") is not None:
        return
    messages = read_record(_without_objects(stored), part.reading)
    drawn_on = boxes.drawn_on or "shown"
    for number, box in enumerate(listed):
        picture = partial(object_picture, stored["objects"], number, messages)
        evidence.add(box, partial(_pixels, picture, drawn_on), usually_pixels=True)
    for box in (box for m in messages for box in boxes_in(m.text, bare=boxes.bare)):
        pixels = partial(frame_of_all, messages, "pixel", drawn_on)
        evidence.add(box, pixels, usually_pixels=False)


def _pixels(picture: Callable[[], str | Path | bytes], drawn_on: DrawnOn) -> Frame:
    return frame_of(picture(), "pixel", drawn_on)


def _stored(part: DataSet, index: int) -> Mapping[str, Any]:
    stored = part.raw.read(index)
    if not isinstance(stored, Mapping):
        raise SampleError(part.raw.where(index), "a record was expected")
    return stored


def _listed_boxes(stored: Mapping[str, Any]) -> list[Box]:
    objects = stored.get("objects")
    found = objects.get("bbox") if isinstance(objects, Mapping) else None
    return found if isinstance(found, list) else []


def _without_objects(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: value for name, value in stored.items() if name != "objects"}


def _unit_told(objects: Mapping[str, Any], unit: Unit) -> Unit:
    """What the `objects` of a record are in: what they say themselves, else what the set is in."""
    kind = objects.get("bbox_type")
    if kind is not None and (not isinstance(kind, str) or kind not in _TYPES):
        raise ValueError(f"objects.bbox_type is {kind!r}; known: {', '.join(_TYPES)}")
    return unit if kind is None else _TYPES[kind]


def _file(source: Any) -> str | Path | bytes:
    if not isinstance(source, str | Path | bytes):
        raise ValueError(f"{source!r} is no path, URL or bytes of a picture")
    return source
