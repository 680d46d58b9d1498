"""Boxes in the texts of samples: found, measured, and written again in thousandths."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from internvl2.processing.conversation import Message, Text
from internvl2.train.conversion.geometry import SCALE, WORDS, Frame, Number, Unit

_NUMBER = r"\s*-?\d+(?:\.\d+)?(?:[eE]-?\d+)?\s*"
_ROW = rf"\[{_NUMBER}(?:,{_NUMBER}){{3}}\]"
_ROWS = rf"\[\s*{_ROW}(?:\s*,\s*{_ROW})*\s*\]"
_TAGGED = r"<box>(?P<tagged>.*?)</box>"
_IN_TAGS = re.compile(_TAGGED, re.DOTALL)
_ANYWHERE = re.compile(rf"{_TAGGED}|(?P<bare>{_ROWS}|{_ROW})", re.DOTALL)

Box = list[Number]


def boxes_in(text: str, *, bare: bool) -> Iterator[Box]:
    """Every box in `<box>` tags, with `bare` also lists of four numbers that stand without."""
    for match in (_ANYWHERE if bare else _IN_TAGS).finditer(text):
        yield from _rows(match)


def has_boxes(text: str, *, bare: bool) -> bool:
    """Whether there is any, well formed or not."""
    return (_ANYWHERE if bare else _IN_TAGS).search(text) is not None


def count_bare(text: str) -> int:
    """How many lists of four numbers stand without `<box>` around them."""
    return sum(match.lastgroup == "bare" for match in _ANYWHERE.finditer(text))


def count_shares(text: str) -> int:
    """How many boxes in `<box>` tags look like shares of a picture's sides, not thousandths."""
    found = 0
    for match in _IN_TAGS.finditer(text):
        try:
            rows = _rows(match)
        except ValueError:
            continue  # no box that could be looked at
        found += sum(_is_share(row) for row in rows)
    return found


def with_boxes(
    messages: tuple[Message, ...], change: Callable[[Box], list[int]], *, bare: bool
) -> tuple[Message, ...]:
    """The conversation with every box changed, in `<box>` tags."""

    def written(match: re.Match[str]) -> str:
        return f"<box>{json.dumps([change(row) for row in _rows(match)])}</box>"

    pattern = _ANYWHERE if bare else _IN_TAGS
    return tuple(
        replace(
            message,
            content=tuple(
                Text(pattern.sub(written, part.text)) if isinstance(part, Text) else part
                for part in message.content
            ),
        )
        for message in messages
    )


def _rows(match: re.Match[str]) -> list[Box]:
    """One box or a list of them."""
    text = match[match.lastgroup or 0]
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise ValueError(
            f"malformed box {match[0][:80]!r}; [left, top, right, bottom] was expected"
        )
    return found if found and all(isinstance(row, list) for row in found) else [found]


def _is_share(row: Box) -> bool:
    numbers = [value for value in row if type(value) in (int, float)]
    return 0 < max(numbers, default=0) <= 1 and any(value % 1 for value in numbers)


@dataclass
class Evidence:
    """What the boxes of a data set say about the unit that they are in."""

    boxes: int = 0
    shares: int = 0
    """No number is above 1."""
    beyond_scale: int = 0
    """A number is above 1000."""
    beyond_picture: int = 0
    """A number is at most 1000, but outside of the picture's pixels."""
    by_format: int = 0
    """They would fit both, but their format has pixels unless it says otherwise."""

    def add(self, box: Box, pixels: Callable[[], Frame], *, usually_pixels: bool) -> None:
        """Looks at a box; `pixels` opens its picture, where that can tell more."""
        if len(box) != 4 or not all(type(value) in (int, float) for value in box):
            return  # a fault that is told when the box is to be changed
        self.boxes += 1
        if max(box) <= 1:
            self.shares += 1
        elif max(box) > SCALE:
            self.beyond_scale += 1
        elif not self.beyond_scale and not pixels().holds(box):
            self.beyond_picture += 1
        elif usually_pixels:
            self.by_format += 1

    def unit(self, name: str) -> Unit | None:
        """The one unit that fits all; None without any box; raises where that is open."""
        if not self.boxes:
            return None
        if self.shares == self.boxes:
            return "unit"
        if self.shares or (self.beyond_scale and self.beyond_picture):
            raise ValueError(f"{name} has boxes in several units: {self}; say which with --boxes")
        if self.beyond_scale or self.by_format == self.boxes:
            return "pixel"
        if self.beyond_picture:
            return "thousand"
        raise ValueError(
            f"{name}: its {self.boxes} boxes can be pixels as well as thousandths; "
            "give --boxes pixel or --boxes thousand"
        )

    def __str__(self) -> str:
        return (
            f"of {self.boxes} boxes, {self.shares} within 0 to 1, {self.beyond_scale} beyond 1000, "
            f"{self.beyond_picture} within 1000 but beyond their picture's pixels"
        )


def verdict(name: str, evidence: Evidence, unit: Unit | None) -> str:
    """What was found, for people."""
    if unit is None:
        return f"{name} has no boxes"
    return f"boxes of {name} are {WORDS[unit]}: {evidence}"
