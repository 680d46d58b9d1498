"""Boxes in pixels or shares of a picture's sides, in thousandths of the picture that is shown.

A file may say that its rows have to be turned before anybody sees them (EXIF). What we train on is
the turned picture, so boxes that were drawn on the rows as stored are turned with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal

from internvl2.processing.pixels import picture_header
from internvl2.train.conversion.samples import Notes

Unit = Literal["pixel", "unit", "thousand"]
Number = int | float
DrawnOn = Literal["stored", "shown"]
"""Whether whoever drew the boxes saw the rows as stored, or as EXIF turns them."""

SCALE = 1000
PIXEL_SLACK = 1.0
"""Tools count pixels from 0 or 1 and round; a box that far outside of its picture is cut off."""
WORDS: dict[Unit, str] = {
    "pixel": "pixels",
    "unit": "shares of the sides, 0 to 1",
    "thousand": "thousandths of the sides",
}


@dataclass(frozen=True, slots=True)
class Scaled:
    """A box that a model can learn."""

    corners: tuple[int, int, int, int]
    """Left, top, right, bottom in thousandths of the picture as shown."""
    was_cut: bool
    """It reached a little beyond the picture."""

    @property
    def is_flat(self) -> bool:
        """It has no width or no height, as where its numbers are not what they were taken for."""
        left, top, right, bottom = self.corners
        return left == right or top == bottom


@dataclass(frozen=True, slots=True)
class Frame:
    """What boxes are measured against."""

    width: Number
    height: Number
    orientation: int = 1
    """EXIF orientation that is still to be applied, 1 to 8."""
    slack: Number = 0.0
    """How far a box may reach out, by which it is cut off; 0 unless sides are in pixels."""

    def scale(self, box: Sequence[Number]) -> Scaled:
        """The box in thousandths, each `round(value / side * 1000)`; raises for one outside."""
        self._check(box)
        limits = (self.width, self.height) * 2
        inside = [min(max(value, 0.0), limit) for value, limit in zip(box, limits, strict=True)]
        turned = turn((inside[0], inside[1], inside[2], inside[3]), self)
        sides = (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)
        x1, y1, x2, y2 = (
            round(value / side * SCALE) for value, side in zip(turned, sides * 2, strict=True)
        )
        return Scaled((x1, y1, x2, y2), inside != list(box))

    def holds(self, box: Sequence[Number]) -> bool:
        """Whether a box of four numbers lies inside."""
        x1, y1, x2, y2 = box
        low, right, bottom = -self.slack, self.width + self.slack, self.height + self.slack
        return (
            low <= min(x1, x2)
            and low <= min(y1, y2)
            and max(x1, x2) <= right
            and max(y1, y2) <= bottom
        )

    def _check(self, box: Sequence[Number]) -> None:
        numbers = [value for value in box if type(value) in (int, float) and isfinite(value)]
        if len(numbers) != 4 or len(box) != 4:
            raise ValueError(f"the box {list(box)} was expected to be four numbers")
        if box[0] > box[2] or box[1] > box[3]:
            raise ValueError(
                f"the box {list(box)} has its corners the wrong way round; "
                "left, top, right, bottom was expected"
            )
        if not self.holds(box) and not self.slack:
            raise ValueError(f"the box {list(box)} has numbers outside of 0 to {self.width:g}")
        if not self.holds(box):
            raise ValueError(
                f"the box {list(box)} reaches beyond its picture, "
                f"which is {self.width:g} wide and {self.height:g} high"
            )


def thousandths(frame: Frame, box: Sequence[Number], notes: Notes) -> list[int]:
    """The corners of a box that a frame is for; what was odd about it is noted."""
    scaled = frame.scale(box)
    notes.add("boxes cut off, less than a pixel beyond their picture", scaled.was_cut)
    notes.add("boxes without width or height in thousandths", scaled.is_flat)
    return list(scaled.corners)


def turn(
    box: tuple[Number, Number, Number, Number], frame: Frame
) -> tuple[Number, Number, Number, Number]:
    """A box on the rows as stored, where it is once they are turned as EXIF says."""
    x1, y1, x2, y2 = box
    width, height = frame.width, frame.height
    if frame.orientation in (2, 3, 7, 8):  # the left is on the right, or goes to the bottom
        x1, x2 = width - x2, width - x1
    if frame.orientation in (3, 4, 6, 7):
        y1, y2 = height - y2, height - y1
    return (y1, x1, y2, x2) if frame.orientation >= 5 else (x1, y1, x2, y2)


def frame_of(source: str | Path | bytes, unit: Unit, drawn_on: DrawnOn) -> Frame:
    """What boxes of a picture are measured against; its file is opened only where that matters."""
    sides = {"unit": 1.0, "thousand": float(SCALE)}
    if unit != "pixel" and drawn_on == "shown":
        return Frame(sides[unit], sides[unit])
    header = picture_header(source)
    if unit != "pixel":
        return Frame(sides[unit], sides[unit], header.orientation)
    if drawn_on == "shown":
        return Frame(*header.shown, slack=PIXEL_SLACK)
    return Frame(*header.stored, header.orientation, PIXEL_SLACK)


def annotated_frame(
    source: str | Path | bytes,
    told: tuple[int, int] | None,
    drawn_on: DrawnOn | None,
    usual: DrawnOn,
) -> Frame:
    """The picture that an annotation is about, whose size it tells.

    The size decides between stored and shown where they differ; else `drawn_on` does, or what is
    `usual` for the tool. Raises where the picture has another size than was annotated.
    """
    header = picture_header(source)
    fitting = {"stored": header.stored == told, "shown": header.shown == told}
    if told is not None and not any(fitting.values()):
        raise ValueError(
            f"the picture has {header.shown[0]}x{header.shown[1]} pixels, "
            f"but {told[0]}x{told[1]} were annotated"
        )
    if told is not None and drawn_on is not None and not fitting[drawn_on]:
        raise ValueError(
            f"boxes on the picture as {drawn_on} were expected, "
            f"but {told[0]}x{told[1]} pixels were annotated, as the other way has"
        )
    found = drawn_on or usual
    if told is not None and not fitting[found]:
        found = "shown" if found == "stored" else "stored"
    return frame_of(source, "pixel", found)
