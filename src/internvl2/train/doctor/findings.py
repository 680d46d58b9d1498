"""What can be wrong with a sample: its kinds, and those that its words alone show."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal

from internvl2.processing.conversation import Message
from internvl2.processing.tokenizer import MARKUP, Tokenizer
from internvl2.train.data.records import BOX, SCALE, conversation_flaws

Kind = Literal[
    "unreadable record",
    "unusable record",
    "unreadable media",
    "turns",
    "no answer",
    "empty answer",
    "box",
    "reversed box",
    "too long",
    "too many tiles",
    "duplicate",
    "also trained on",
    "control token",
    "flat box",
    "ref without box",
    "tiny picture",
    "extreme shape",
]

FAULTS: dict[Kind, str] = {
    "unreadable record": "lines that are no record",
    "unusable record": "records of which no conversation can be made",
    "unreadable media": "pictures and videos that cannot be read",
    "turns": "turns in disorder",
    "no answer": "nothing to learn",
    "empty answer": "empty answers",
    "box": f"boxes that are not four numbers from 0 to {SCALE}",
    "reversed box": "boxes that end before they begin",
    "too long": "longer than a pack",
    "too many tiles": "more tiles than a pack holds",
}
"""A run would stop at them, or learn what nobody meant."""
WARNINGS: dict[Kind, str] = {
    "duplicate": "the same as another sample",
    "also trained on": "for validation, and in the training data as well",
    "control token": "control tokens in the text, which are read as plain letters",
    "flat box": "boxes without area",
    "ref without box": "answers that name something with <ref> and give no box",
    "tiny picture": "tiny pictures",
    "extreme shape": "pictures that are squeezed",
}
"""They may be meant."""

OF_LEARNING: tuple[Kind, ...] = (
    "turns",
    "no answer",
    "empty answer",
    "box",
    "reversed box",
    "too long",
    "too many tiles",
    "flat box",
    "ref without box",
)
"""What keeps nobody from asking a question and scoring the answer."""
REPEATED: tuple[Kind, ...] = ("duplicate", "also trained on")
"""What is found out by comparing samples."""

_ANY_BOX = re.compile(r"<box>([^<]*(?:<(?!/?box>)[^<]*)*)</box>")
_LABELLED = re.compile(
    rf"<ref>([^<]*(?:<(?!/?ref>)[^<]*)*)</ref>|{_ANY_BOX.pattern}|\bImage-(\d{{1,9}})\b"
)
_LONE_REF = re.compile(r"<ref>[^<]*</ref>(?!\s*<(?:box|quad)>)")
_PLACEHOLDERS = ("<image>", "<video>")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a sample, or may be."""

    kind: Kind
    reason: str

    @property
    def is_fault(self) -> bool:
        """Whether a run must not start with it."""
        return self.kind in FAULTS


@dataclass(frozen=True, slots=True)
class MarkedBox:
    """A box of a conversation, as it is written."""

    label: str
    corners: tuple[float, float, float, float]
    """Left, top, right and bottom, whatever their order and range."""
    picture: int | None
    """The picture named last before it, as in `Image-2`, from 1; None where none is."""

    @property
    def is_meant(self) -> bool:
        """Whether it lies in the picture, its corners in order."""
        left, top, right, bottom = self.corners
        return 0 <= left <= right <= SCALE and 0 <= top <= bottom <= SCALE


def marked_boxes(text: str, picture: int | None = None) -> Iterator[MarkedBox]:
    """Every box of a text that has four numbers, labelled with the `<ref>` before it.

    `picture` is the one that was named last before the text.
    """
    label = ""
    for tag in _LABELLED.finditer(text):
        if tag[3] is not None:
            picture = int(tag[3])
        elif tag[1] is not None:
            label = " ".join(tag[1].split())
        else:
            for row in _rows(tag[2]):
                yield MarkedBox(label, row, picture)


def last_named(text: str, picture: int | None) -> int | None:
    """The picture that is named last in a text; else the one named before it."""
    named = [int(tag[3]) for tag in _LABELLED.finditer(text) if tag[3] is not None]
    return named[-1] if named else picture


def control_tokens(tokenizer: Tokenizer) -> re.Pattern[str]:
    """Finds what looks like a control token of this tokenizer, or like a placeholder."""
    texts = {*tokenizer.added, *_PLACEHOLDERS} - {*MARKUP}
    escaped = [re.escape(text) for text in sorted(texts, key=len, reverse=True)]
    return re.compile("|".join(escaped))


def text_findings(messages: Sequence[Message], controls: re.Pattern[str]) -> Iterator[Finding]:
    """All that is wrong with the words of a conversation, and what may be."""
    for flaw in conversation_flaws(messages):
        yield Finding(flaw.kind, flaw.reason)
    for number, message in enumerate(messages, 1):
        yield from _box_order(message.text, number)
        if message.role == "assistant":
            yield from _tags(message.text, number)
        if control := controls.search(message.text):
            yield Finding("control token", f"turn {number} has {control[0]} as text")


def _rows(text: str) -> Iterator[tuple[float, float, float, float]]:
    try:
        found = json.loads(text)
    except ValueError:
        return
    listed = isinstance(found, list) and found
    rows = found if listed and all(isinstance(row, list) for row in found) else [found]
    for row in rows:
        if isinstance(row, list) and len(row) == 4 and all(map(_is_number, row)):
            left, top, right, bottom = map(float, row)
            yield left, top, right, bottom


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _box_order(text: str, turn: int) -> Iterator[Finding]:
    for box in marked_boxes(text):
        left, top, right, bottom = box.corners
        shown = [f"{value:g}" for value in box.corners]
        name = f"turn {turn} has the box [{', '.join(shown)}]"
        if right < left or bottom < top:
            yield Finding("reversed box", f"{name}; left, top, right, bottom were expected")
        elif right == left or bottom == top:
            yield Finding("flat box", f"{name}, which has no area")


def _tags(text: str, turn: int) -> Iterator[Finding]:
    """Tags of an answer that belong to nothing."""
    whole = len(BOX.findall(text))
    if text.count("<box>") != whole or text.count("</box>") != whole:
        loose = next((m[0] for m in _ANY_BOX.finditer(text) if not BOX.fullmatch(m[0])), "<box>")
        expected = "<box>[[left, top, right, bottom]]</box> was expected"
        yield Finding("box", f"turn {turn} has {loose[:80]!r}; {expected}")
    if text.count("<ref>") != text.count("</ref>"):
        yield Finding("ref without box", f"turn {turn} has a <ref> that is not closed")
    elif lone := _LONE_REF.search(text):
        yield Finding("ref without box", f"turn {turn} has {lone[0][:80]} and no box after it")
