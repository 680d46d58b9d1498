"""Documents as rows of cells, fitted to a page: what is written, and the text one should read.

The size of letters follows from the rows, so that all of them fit and none is cut off.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from PIL import Image

from internvl2.synthetic.draw import Draw
from internvl2.synthetic.fonts import Pen, pen
from internvl2.synthetic.page import RGB, Paper, Shape, between, letter_size, rule, snap_down

Align = Literal["left", "middle", "right", "spread", "table"]

SMALLEST = 11


@dataclass(frozen=True)
class Row:
    """One row of a document; a spread row has its last cell at the right edge."""

    cells: tuple[str, ...]
    align: Align = "left"
    is_bold: bool = False
    """Written larger, or in a bold face."""
    rule_above: bool = False
    gap_above: float = 0.0
    """Free space above it, in heights of a row."""

    @property
    def text(self) -> str:
        """The row as one reads it."""
        return " ".join(cell for cell in self.cells if cell)


@dataclass(frozen=True)
class Look:
    """How a document looks, whatever it says."""

    shape: Shape
    paper: Paper
    face: str
    heading_face: str
    spacing: float
    ruling: Literal["line", "dashes", "none"]
    has_grid: bool
    margin: float
    around: RGB | None
    """A paper narrower than the picture, lying on this colour."""
    heading: float = 1.0
    """How much larger bold rows are."""
    is_at_top: bool = False
    reach: float = 1.0
    """The share of the width that spread rows take."""

    def height(self, row: Row) -> float:
        """What a row takes with the space above it, in heights of a plain row."""
        return self.scale(row) + row.gap_above

    def scale(self, row: Row) -> float:
        """How much larger than a plain row it is."""
        return self.heading if row.is_bold else 1.0


BOLD = {
    "dejavu-sans": "dejavu-sans-bold",
    "liberation-sans": "liberation-sans-bold",
    "liberation-serif": "liberation-serif-bold",
    "carlito": "carlito-bold",
    "lato": "lato-bold",
}


def choose_look(draw: Draw, shape: Shape, *, may_lie: bool = False) -> Look:
    """A look by chance, near what documents look like."""
    face = draw.face("sans", "sans", "serif", "mono", "condensed")
    shade = 255 if draw.chance(0.6) else draw.integer(238, 254)
    ground = (shade, shade, max(0, shade - draw.integer(0, 14)))
    ink = draw.colour(0, 20) if draw.chance(0.75) else draw.colour(0, 85)
    return Look(
        shape,
        Paper(ground, ink),
        face,
        BOLD.get(face, face),
        draw.number(1.12, 1.5),
        draw.choice(("line", "line", "dashes", "none")),
        draw.chance(0.4),
        draw.number(0.03, 0.08),
        draw.colour(40, 215) if may_lie and draw.chance(0.35) else None,
        draw.number(1.3, 1.6) if draw.chance(0.3) else 1.0,
        draw.chance(0.3),
    )


def page_look(draw: Draw, shape: Shape) -> Look:
    """A look as of a page of the web: large headings, no rules, at the top, any width."""
    look = choose_look(draw, shape)
    reach = draw.number(0.6, 1.0)
    heading = draw.number(1.3, 1.6)
    return replace(
        look, heading=heading, ruling="none", has_grid=False, is_at_top=draw.chance(0.75),
        reach=reach, spacing=draw.number(1.05, 1.3),
    )  # fmt: skip


def text_of(rows: Sequence[Row]) -> str:
    """All that a document says, row by row."""
    return "\n".join(row.text for row in rows)


def compose(draw: Draw, look: Look, rows: Sequence[Row], difficulty: float) -> Image.Image:
    """The picture of a document."""
    shape = look.shape
    canvas = Image.new("RGB", (shape.width, shape.height), look.around or look.paper.ground)
    left, width = 0, shape.width
    if look.around is not None:
        width = round(shape.width * draw.number(0.72, 0.94))
        left = draw.integer(0, shape.width - width)
        rule(canvas, left, 0, left + width, shape.height, look.paper.ground)
    margin = round(look.margin * width)
    room = width - 2 * margin
    writer, heading = _pens(draw, look, rows, room, difficulty)
    steps = sum(map(look.height, rows))
    wanted = round((writer.ascent + writer.descent) * look.spacing)
    height = min(wanted, int((shape.height - SMALLEST) / steps))
    used = height * steps
    free = shape.height - used - 2 * SMALLEST
    share = 0.0 if look.is_at_top else draw.number(0, 1)
    top = SMALLEST / 2 + max(0.0, share * free)
    table = _Table.measure(rows, writer, left + margin, room)
    for row in rows:
        top += height * row.gap_above
        chosen = heading if row.is_bold else writer
        own = height * look.scale(row)
        baseline = round(top + (own + chosen.ascent - chosen.descent) / 2)
        if row.rule_above and look.ruling != "none":
            _rule(canvas, look, writer, (left + margin, round(top), left + margin + room))
        if row.align == "table":
            table.write(canvas, writer, row.cells, baseline, look.paper.ink)
            if look.has_grid:
                table.frame(canvas, round(top), height, between(*_inks(look), 0.55))
        else:
            share = look.reach if row.align == "spread" else 1.0
            _write(canvas, chosen, row, (left + margin, baseline, round(share * room)),
                   look.paper.ink)  # fmt: skip
        top += own
    return canvas


def _pens(
    draw: Draw, look: Look, rows: Sequence[Row], room: int, difficulty: float
) -> tuple[Pen, Pen]:
    """The largest letters that fit, up to a size by chance, and those of headings."""
    trial, bold = pen(look.face, 20), pen(look.heading_face, 20)
    widths = [_Table.needed(rows, trial)]
    for row in rows:
        inked = sum((bold if row.is_bold else trial).width(cell) for cell in row.cells)
        reach = look.reach if row.align == "spread" else 1.0
        widths.append(round((look.scale(row) * inked + 12 * (len(row.cells) - 1)) / reach))
    widest = max(widths)
    tallness = (trial.ascent + trial.descent) / 20 * look.spacing
    height = sum(map(look.height, rows)) * tallness
    wanted = look.shape.scale * letter_size(draw, difficulty)
    most = min(wanted, 19 * room / widest, (look.shape.height - 2 * SMALLEST) / height)
    size = snap_down(most)
    return pen(look.face, size), pen(look.heading_face, snap_down(size * look.heading))


@dataclass(frozen=True)
class _Table:
    edges: tuple[int, ...]
    """Where columns begin, and where the last ends."""

    @classmethod
    def measure(cls, rows: Sequence[Row], writer: Pen, left: int, room: int) -> "_Table":
        widths = _widths(rows, writer)
        free = max(0, room - sum(widths)) // max(1, len(widths))
        edges = [left]
        for width in widths:
            edges.append(edges[-1] + width + free)
        return cls(tuple(edges))

    @classmethod
    def needed(cls, rows: Sequence[Row], writer: Pen) -> int:
        widths = _widths(rows, writer)
        return sum(widths) + 14 * len(widths)

    def write(
        self, canvas: Image.Image, writer: Pen, cells: Sequence[str], baseline: int, ink: RGB
    ) -> None:
        writer.write(canvas, self.edges[0] + 4, baseline, cells[0], ink)
        for right, cell in zip(self.edges[2:], cells[1:], strict=True):
            writer.write(canvas, right - 5 - writer.width(cell), baseline, cell, ink)

    def frame(self, canvas: Image.Image, top: int, height: int, ink: RGB) -> None:
        rule(canvas, self.edges[0], top, self.edges[-1], top + 1, ink)
        rule(canvas, self.edges[0], top + height, self.edges[-1], top + height + 1, ink)
        for edge in self.edges:
            rule(canvas, edge, top, edge + 1, top + height + 1, ink)


def _widths(rows: Sequence[Row], writer: Pen) -> list[int]:
    table = [row.cells for row in rows if row.align == "table"]
    return [max(map(writer.width, column)) for column in zip(*table, strict=True)]


def _write(canvas: Image.Image, writer: Pen, row: Row, at: tuple[int, int, int], ink: RGB) -> None:
    left, baseline, room = at
    if row.align == "spread":
        writer.write(canvas, left, baseline, " ".join(row.cells[:-1]), ink)
        right = left + room - writer.width(row.cells[-1])
        writer.write(canvas, right, baseline, row.cells[-1], ink)
        return
    free = room - writer.width(row.text)
    offset = {"middle": free // 2, "right": free}.get(row.align, 0)
    writer.write(canvas, left + offset, baseline, row.text, ink)


def _rule(canvas: Image.Image, look: Look, writer: Pen, at: tuple[int, int, int]) -> None:
    left, top, right = at
    ink = between(*_inks(look), 0.3)
    if look.ruling == "line":
        rule(canvas, left, top, right, top + 1, ink)
        return
    for start in range(left, right, writer.size // 2 + 2):
        rule(canvas, start, top, min(right, start + writer.size // 4 + 1), top + 1, ink)


def _inks(look: Look) -> tuple[RGB, RGB]:
    return look.paper.ink, look.paper.ground
