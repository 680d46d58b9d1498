"""Annotated pictures as samples: questions about what is where, answers in `<ref>` and `<box>`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from internvl2.processing.conversation import Message, Picture
from internvl2.train.conversion.geometry import (
    DrawnOn,
    Number,
    annotated_frame,
    thousandths,
)
from internvl2.train.conversion.samples import Notes, Sample

QUESTIONS = {
    "picture": "Find all objects in the picture, and give their names and boxes.",
    "category": "Please provide the bounding box coordinate of the region this sentence describes: "
    "<ref>{category}</ref>",
    "caption": "Describe the picture in one sentence.",
}
"""That for a category is the one the family was trained and is scored with."""
NOTHING = "There are none."


@dataclass(frozen=True, slots=True)
class Wording:
    """What is asked about annotated pictures."""

    samples: Literal["picture", "category"] = "picture"
    """One question for a picture, or one for each category that is in it."""
    question: str | None = None
    """May hold `{category}`, of a question for one, and `{categories}`, those of the whole set."""
    empty: bool = False
    """Pictures without annotation are asked about too; the answer is that there are none."""

    def __post_init__(self) -> None:
        if self.empty and self.samples == "category":
            raise ValueError("--empty goes with --samples picture: no category is asked about")
        if self.question is not None and not self.question.strip():
            raise ValueError("--question is empty")
        by_category = self.samples == "category"
        if self.question and by_category and "{category}" not in self.question:
            raise ValueError(f"--question {self.question!r} lacks {{category}}")
        if self.question and not by_category and "{category}" in self.question:
            raise ValueError("{category} in --question goes with --samples category")


@dataclass(frozen=True, slots=True)
class Shape:
    """Something that was marked."""

    label: str
    box: tuple[Number, Number, Number, Number]
    """Left, top, right, bottom in pixels."""


@dataclass(frozen=True, slots=True)
class Annotated:
    """A picture with what was marked on it, or said about it."""

    source: Path | bytes
    size: tuple[int, int] | None
    """Width and height that the annotation tells."""
    shapes: tuple[Shape, ...]
    captions: tuple[str, ...] | None = None
    """Sentences about it, where the set has these in place of boxes."""
    identity: str | int | None = None


@runtime_checkable
class AnnotatedPictures(Protocol):
    """The pictures of an annotated set, by number."""

    @property
    def usual(self) -> DrawnOn:
        """What those who made the set drew on."""
        ...

    def categories(self) -> Sequence[str]:
        """All that is marked anywhere in the set, in its own order."""
        ...

    def __len__(self) -> int: ...

    def where(self, entry: int) -> str:
        """File, and what of it, for people."""
        ...

    def read(self, entry: int) -> Annotated:
        """The picture; a `ValueError` says what is wrong with its annotation."""
        ...


@dataclass(frozen=True)
class AnnotatedEntries:
    """Annotated pictures as questions and answers."""

    pictures: AnnotatedPictures
    wording: Wording
    drawn_on: DrawnOn | None
    notes: Notes

    def __len__(self) -> int:
        return len(self.pictures)

    def where(self, entry: int) -> str:
        """File, and what of it."""
        return self.pictures.where(entry)

    def read(self, entry: int) -> tuple[Sample, ...]:
        """The samples of a picture: none where nothing is marked, unless that is asked for."""
        found = self.pictures.read(entry)
        if found.captions is not None:
            return self._captioned(found)
        if not found.shapes:
            self.notes.add(
                "pictures without annotation" + ("" if self.wording.empty else ", left out")
            )
            return (self._sample(found, self._question(), NOTHING),) if self.wording.empty else ()
        boxes = self._boxes(found)
        if self.wording.samples == "picture":
            answer = "\n".join(_answer(label, rows) for label, rows in boxes.items())
            return (self._sample(found, self._question(), answer),)
        return tuple(
            self._sample(found, self._question(label), _answer(label, rows))
            for label, rows in boxes.items()
        )

    def _captioned(self, found: Annotated) -> tuple[Sample, ...]:
        question = self.wording.question or QUESTIONS["caption"]
        if not found.captions:
            self.notes.add("pictures without caption, left out")
        return tuple(self._sample(found, question, text) for text in found.captions or ())

    def _question(self, category: str = "") -> str:
        text = self.wording.question or QUESTIONS[self.wording.samples]
        if "{categories}" in text:
            text = text.replace("{categories}", ", ".join(self.pictures.categories()))
        return text.replace("{category}", category)

    def _sample(self, found: Annotated, question: str, answer: str) -> Sample:
        picture = Picture(found.source, inline=True)
        asked = Message.user(picture, f"\n{question}")
        return Sample((asked, Message.assistant(answer)), found.identity)

    def _boxes(self, found: Annotated) -> dict[str, list[list[int]]]:
        """Boxes by category; categories as they come, boxes from the top and then from the left."""
        frame = annotated_frame(found.source, found.size, self.drawn_on, self.pictures.usual)
        boxes: dict[str, list[list[int]]] = {}
        for shape in found.shapes:
            corners = thousandths(frame, shape.box, self.notes)
            boxes.setdefault(shape.label, []).append(corners)
        return {label: sorted(rows, key=_reading_order) for label, rows in boxes.items()}


def enclosing(points: Sequence[Sequence[Number]]) -> tuple[float, float, float, float]:
    """The smallest box around points."""
    columns = [float(point[0]) for point in points]
    rows = [float(point[1]) for point in points]
    return min(columns), min(rows), max(columns), max(rows)


def label_of(name: object) -> str:
    """A category's name on one line; raises for one that cannot be written between tags."""
    found = " ".join(name.split()) if isinstance(name, str) else ""
    if not found or "<" in found:
        raise ValueError(
            f"{name!r} cannot be the name of a category: words without '<' were expected"
        )
    return found


def _answer(label: str, rows: list[list[int]]) -> str:
    return f"<ref>{label}</ref><box>{rows}</box>"


def _reading_order(box: list[int]) -> tuple[int, int]:
    return box[1], box[0]
