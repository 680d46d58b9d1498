"""Where an answer points: `<ref>` and `<box>` tags become boxes that are drawn over the picture.

Grounded answers read `<ref>the cat</ref><box>[[x1, y1, x2, y2], ...]</box>`, in thousandths of the
picture's width and height. They come from a model, so they are matched digit by digit and clamped;
nothing is evaluated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

SCALE = 1000
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")

_NUMBER = r"\s*(-?\d{1,9}(?:\.\d{1,9})?)\s*"
_BOX = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")
_TAG = re.compile(r"<ref>(?P<ref>[^<]*)</ref>|<box>(?P<box>[^<]*)</box>")


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in thousandths of the picture's sides, ordered and inside the picture."""

    label: str
    left: float
    top: float
    right: float
    bottom: float


def find_boxes(text: str) -> tuple[Box, ...]:
    """Every box of an answer, labelled with the `<ref>` before it (empty where there is none)."""
    boxes: list[Box] = []
    label = ""
    for tag in _TAG.finditer(text):
        if tag["ref"] is not None:
            label = " ".join(tag["ref"].split())
            continue
        boxes.extend(_box(label, match.groups()) for match in _BOX.finditer(tag["box"]))
    return tuple(boxes)


def draw_boxes(image: Image, boxes: tuple[Box, ...]) -> Image:
    """A copy of the picture with the boxes and their labels over it; one colour per label."""
    from PIL import ImageDraw

    drawn = image.convert("RGB")
    canvas = ImageDraw.Draw(drawn)
    width = max(2, round(max(drawn.size) / 300))
    labels = list(dict.fromkeys(box.label for box in boxes))
    for box in boxes:
        colour = COLOURS[labels.index(box.label) % len(COLOURS)]
        left, right = (round(x * (drawn.width - 1) / SCALE) for x in (box.left, box.right))
        top, bottom = (round(y * (drawn.height - 1) / SCALE) for y in (box.top, box.bottom))
        canvas.rectangle((left, top, right, bottom), outline=colour, width=width)
        if box.label:
            _label(drawn, box.label, (left, top), colour)
    return drawn


def _box(label: str, numbers: tuple[str, ...]) -> Box:
    x1, y1, x2, y2 = (min(max(float(number), 0.0), float(SCALE)) for number in numbers)
    return Box(label, min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))


def _label(image: Image, text: str, corner: tuple[int, int], colour: str) -> None:
    """The label on a filled strip at the corner, kept inside the picture."""
    from PIL import ImageDraw, ImageFont

    canvas = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=max(10, round(max(image.size) / 50)))
    text = (
        text
        if isinstance(font, ImageFont.FreeTypeFont)
        else text.encode("ascii", "replace").decode()
    )
    box = canvas.textbbox((0, 0), text, font=font)
    width, height = round(box[2]) + 4, round(box[3]) + 4
    left = max(0, min(corner[0], image.width - width))
    top = max(0, corner[1] - height)
    canvas.rectangle((left, top, left + width, top + height), fill=colour)
    canvas.text((left + 2, top + 2), text, fill="white", font=font)
