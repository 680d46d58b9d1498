"""The preview: one HTML file with pictures, their boxes and tiles, and what is learned from them.

Pictures are put together from the tiles that the model sees, in the shape that they had.
"""

import base64
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

import numpy as np
from einops import rearrange
from PIL import Image

from internvl2.processing.conversation import Message, Picture, Video
from internvl2.processing.grounding import COLOURS
from internvl2.processing.prompt import MediaSpan, Prompt
from internvl2.processing.video import count_frames
from internvl2.train.data.records import SCALE
from internvl2.train.doctor.findings import Finding, MarkedBox, last_named, marked_boxes
from internvl2.train.doctor.inspection import Opened, Size
from internvl2.train.doctor.report import Found, Report, SetReport, counted, verdict
from internvl2.train.doctor.view import Stretch, printable, shortened

SIDE, SIDE_OF_SEVERAL, SMALLEST_SIDE = 420, 164, 96
"""Pixels of the longer side of what is shown: of one medium, of each of several, of a tiny one."""
LONGEST_WORDS = 6000
"""Characters of a stretch."""
QUALITY = 82
FEW_BOXES = 6
"""Beside more of them a name must not cover its neighbours."""
NARROWEST = 80
"""Thousandths of the picture's width, of such a name."""
LABELS = COLOURS[1:]
"""Of boxes; the first is red, which means that something is wrong."""


@dataclass(frozen=True)
class Card:
    """A sample of the preview."""

    opened: Opened
    stretches: tuple[Stretch, ...]


@dataclass(frozen=True, slots=True)
class _Box:
    marked: MarkedBox
    is_learned: bool
    colour: str


@dataclass(frozen=True)
class _Medium:
    """A picture or frame on the page."""

    image: Image.Image
    columns: int
    rows: int
    caption: str
    boxes: tuple[_Box, ...]


def page(report: Report, cards: Sequence[Sequence[Card]]) -> str:
    """The file's text; `cards` are those of each set of the report."""
    style = files("internvl2.train.doctor").joinpath("page.css").read_text(encoding="utf-8")
    sets = zip(report.sets, cards, strict=True)
    body = "".join(_section(one, of_set) for one, of_set in sets)
    title = f"Data of {report.recipe}"
    mood = "fault" if report.has_faults else "good"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{_text(title)}</title>
<style>
{style}</style>
</head>
<body>
<h1>{_text(title)}</h1>
<p><span class="badge {mood}">{_text(verdict(report))}</span></p>
<p class="faint">As {_text(report.model)} reads it, in packs of {report.pack_tokens:,} tokens and
{report.pack_tiles} tiles. What is learned is green; dashed lines part the tiles; dotted boxes stand
in questions, red ones are not as they should be.</p>
{body}</body>
</html>
"""


def _section(one: SetReport, cards: Sequence[Card]) -> str:
    head = f'<h2>{_text(one.name)} <span class="badge">{one.use}</span></h2>'
    if one.closed is not None:
        reason = f"cannot be opened: {one.closed}"
        return f'<section>{head}<p><span class="badge fault">{_text(reason)}</span></p></section>\n'
    numbers = "".join(
        f"<div><b>{_text(value)}</b><span>{_text(name)}</span></div>"
        for name, value in _numbers(one)
    )
    found = "".join(map(_found, one.found))
    shown = "".join(map(_card, cards))
    return (
        f'<section>{head}<div class="numbers">{numbers}</div>{found}'
        f'<div class="cards">{shown}</div></section>\n'
    )


def _numbers(one: SetReport) -> Iterator[tuple[str, str]]:
    yield "samples", f"{one.stored:,}"
    if one.inspected != one.stored:
        yield "looked at", f"{one.inspected:,}"
    yield "usable", f"{one.usable:,}"
    if one.totals is not None:
        yield "tokens, mean", f"{one.totals.tokens.mean:,.0f}"
        yield "tokens, 95 %", f"{one.totals.tokens.p95:,}"
        yield "tokens, max", f"{one.totals.tokens.max:,}"
        yield "tiles, mean", f"{one.totals.tiles.mean:,.1f}"
        yield "visual tokens", f"{one.totals.visual_share:.1%}"
        yield "learned tokens", f"{one.totals.label_share:.1%}"
    if one.epoch is not None:
        yield "packs an epoch", f"{'~' * one.epoch.is_estimate}{one.epoch.packs:,}"


def _found(found: Found) -> str:
    places = "".join(f"<li>{_text(p.where)}: {_text(p.reason)}</li>" for p in found.first)
    if left := found.count - len(found.first):
        places += f"<li>and {left:,} more</li>"
    kind = "fault" if found.is_fault else "warning"
    return (
        f'<details{" open" * found.is_fault}><summary><span class="badge {kind}">{kind} '
        f"{found.count:,}</span> {_text(found.title)}</summary><ul>{places}</ul></details>"
    )


def _card(card: Card) -> str:
    opened, prompt = card.opened, card.opened.prompt
    assert prompt is not None, opened.where
    size = Size.of(prompt)
    badges = [
        counted(size.tokens, "token"),
        f"{size.learned:,} learned",
        counted(size.tiles, "tile"),
    ]
    media = "".join(map(_figure, _media(opened.messages, prompt)))
    reasons = "".join(map(_reason, opened.findings))
    return (
        f'<article class="card"><header><b>{_text(opened.where)}</b><div class="badges">'
        + "".join(f'<span class="badge">{badge}</span>' for badge in badges)
        + f"</div></header>{reasons}"
        + (f'<div class="pictures">{media}</div>' if media else "")
        + f'<div class="words">{"".join(map(_stretch, card.stretches))}</div></article>'
    )


def _reason(found: Finding) -> str:
    kind = "fault" if found.is_fault else "warning"
    return f'<div class="reason {kind}">{_text(found.reason)}</div>'


def _stretch(stretch: Stretch) -> str:
    tag = {"read": "", "learned": "mark", "picture": "i"}[stretch.kind]
    text = _text(shortened(stretch.text, LONGEST_WORDS))
    return f"<{tag}>{text}</{tag}>" if tag else text


def _media(messages: Sequence[Message], prompt: Prompt) -> Iterator[_Medium]:
    """Every picture and frame of a conversation, each with its boxes."""
    shapes = list(_shapes(messages))
    boxes = list(_boxes(messages))
    side = SIDE if len(shapes) == 1 else SIDE_OF_SEVERAL
    for number, (span, shape) in enumerate(zip(prompt.media, shapes, strict=True), 1):
        own = [b for b in boxes if (b.marked.picture or 1) == number]
        if number == 1:
            own += [b for b in boxes if (b.marked.picture or 1) > len(shapes)]
        tiles = f", {span.columns}x{span.rows} tiles" if span.num_tiles > 1 else ", one tile"
        caption = shape.name + tiles + " and a thumbnail" * span.thumbnail
        image = _fitted(_mosaic(prompt, span), shape.size, side)
        yield _Medium(image, span.columns, span.rows, caption, tuple(own))


@dataclass(frozen=True, slots=True)
class _Shape:
    name: str
    size: tuple[int, int] | None
    """Width and height before it was cut; None for a frame."""


def _shapes(messages: Sequence[Message]) -> Iterator[_Shape]:
    """One for each picture and frame, in the order of a prompt's media."""
    for message in messages:
        for part in message.content:
            if isinstance(part, Picture):
                assert isinstance(part.source, Image.Image), "pictures were opened before"
                width, height = part.source.size
                yield _Shape(f"{width}x{height} pixels", (width, height))
            elif isinstance(part, Video):
                for frame in range(count_frames(part.source, part.num_frames)):
                    yield _Shape(f"frame {frame + 1}", None)


def _boxes(messages: Sequence[Message]) -> Iterator[_Box]:
    """Every box of a conversation, those of one label in one colour."""
    labels: list[str] = []
    picture: int | None = None
    for message in messages:
        for box in marked_boxes(message.text, picture):
            if box.label not in labels:
                labels.append(box.label)
            colour = LABELS[labels.index(box.label) % len(LABELS)]
            yield _Box(box, message.role == "assistant", colour)
        picture = last_named(message.text, picture)


def _mosaic(prompt: Prompt, span: MediaSpan) -> Image.Image:
    """What the model sees of a picture, its thumbnail left out."""
    tiles = prompt.tiles[span.first_tile : span.first_tile + span.columns * span.rows]
    whole = rearrange(tiles, "(rows c) y x rgb -> (rows y) (c x) rgb", rows=span.rows)
    return Image.fromarray(np.ascontiguousarray(whole))


def _fitted(image: Image.Image, size: tuple[int, int] | None, side: int) -> Image.Image:
    """In the shape that it had, its longer side as long as is shown; long strips keep a width."""
    width, height = size or (1, 1)
    longest = max(width, height)
    scale = side / longest if size is None else min(side, max(longest, SMALLEST_SIDE)) / longest
    shown = (max(8, math.ceil(width * scale)), max(8, math.ceil(height * scale)))
    return image.resize(shown, Image.Resampling.LANCZOS)


def _figure(medium: _Medium) -> str:
    file = io.BytesIO()
    medium.image.save(file, "JPEG", quality=QUALITY)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    width, height = medium.image.size
    overlay = "".join([*_grid(medium), *map(_rectangle, medium.boxes)])
    crowded = len(medium.boxes) > FEW_BOXES
    names = "".join(_name(box, crowded) for box in medium.boxes)
    return (
        f'<figure><div class="picture" style="width:{width}px;aspect-ratio:{width}/{height}">'
        f'<img alt="" src="data:image/jpeg;base64,{data}"/>'
        f'<svg viewBox="0 0 {SCALE} {SCALE}" preserveAspectRatio="none">{overlay}</svg>{names}'
        f"</div><figcaption>{_text(medium.caption)}</figcaption></figure>"
    )


def _grid(medium: _Medium) -> Iterator[str]:
    """Lines between the tiles."""
    for column in range(1, medium.columns):
        yield _line((column / medium.columns, 0), (column / medium.columns, 1))
    for row in range(1, medium.rows):
        yield _line((0, row / medium.rows), (1, row / medium.rows))


def _line(start: tuple[float, float], end: tuple[float, float]) -> str:
    (x1, y1), (x2, y2) = ([SCALE * value for value in point] for point in (start, end))
    return (
        f'<line class="grid" vector-effect="non-scaling-stroke" x1="{x1:.1f}" y1="{y1:.1f}" '
        f'x2="{x2:.1f}" y2="{y2:.1f}"/>'
    )


def _rectangle(box: _Box) -> str:
    left, top, right, bottom = _inside(box.marked)  # without width it would not be drawn
    wrong = not box.marked.is_meant
    kind = "wrong" if wrong else "learned" if box.is_learned else "given"
    stroke = "" if wrong else f' stroke="{box.colour}"'
    return (
        f'<rect class="box {kind}" vector-effect="non-scaling-stroke"{stroke} x="{left:.1f}" '
        f'y="{top:.1f}" width="{max(right - left, 1):.1f}" height="{max(bottom - top, 1):.1f}"/>'
    )


def _name(box: _Box, crowded: bool) -> str:
    """A box's label, above it or, where there is no room, in it; beside many, no wider than it."""
    left, top, right, _ = _inside(box.marked)
    numbers = ", ".join(f"{value:g}" for value in box.marked.corners)
    label = box.marked.label if box.marked.is_meant else f"{box.marked.label} [{numbers}]".strip()
    if not label:
        return ""
    colour = box.colour if box.marked.is_meant else "#d40000"
    lifted = ";transform:translateY(calc(-100% - 1px))" if top > SCALE * 0.08 else ""
    # A name near the right side would be cut off, so it ends where its box does.
    side, room = ("left", SCALE - left) if left < SCALE * 0.6 else ("right", right)
    room = min(room, max(right - left, NARROWEST)) if crowded else room
    at = left if side == "left" else SCALE - right
    style = f"{side}:{at / 10:.1f}%;max-width:{room / 10:.1f}%;top:{top / 10:.1f}%"
    text = _text(label)
    return (
        f'<span class="name{" small" * crowded}" dir="auto" title="{text}" '
        f'style="{style};background:{colour}{lifted}">{text}</span>'
    )


def _inside(box: MarkedBox) -> tuple[float, float, float, float]:
    """The corners in order and inside the picture, to draw them at all."""
    x1, y1, x2, y2 = (min(max(value, 0.0), float(SCALE)) for value in box.corners)
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def _text(text: str) -> str:
    return escape(printable(text))
