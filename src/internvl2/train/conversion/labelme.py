"""LabelMe: a folder of JSON files, each with the shapes that were drawn on one picture.

LabelMe turns a picture as EXIF says before it is drawn on. Rectangles keep their corners in the
order of the mouse; of polygons, masks and circles the enclosing box is taken.
"""

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import dist
from pathlib import Path
from typing import Any

from internvl2.train.conversion.annotations import (
    Annotated,
    Shape,
    enclosing,
    known_labels,
    label_of,
)
from internvl2.train.conversion.geometry import DrawnOn
from internvl2.train.conversion.samples import Notes
from internvl2.train.data.line_index import parse_json

_CLOSED = ("rectangle", "polygon", "mask", "oriented_rectangle", "circle")
_OPEN = ("point", "points", "line", "linestrip")


@dataclass(frozen=True)
class LabelMePictures:
    """The pictures of a folder, in the order of their files' names."""

    files: tuple[Path, ...]
    root: Path | None
    notes: Notes
    usual: DrawnOn = "shown"

    def categories(self) -> Sequence[str]:
        """By name; needs a look into every file."""
        return self._categories

    def __len__(self) -> int:
        return len(self.files)

    def where(self, entry: int) -> str:
        """The file."""
        return str(self.files[entry])

    def read(self, entry: int) -> Annotated:
        """The picture of a file, with its shapes."""
        path = self.files[entry]
        found = _read(path)
        shapes = tuple(_shapes(found["shapes"], self.notes))
        width, height = found.get("imageWidth"), found.get("imageHeight")
        size = (width, height) if isinstance(width, int) and isinstance(height, int) else None
        return Annotated(_source(found, self.root or path.parent), size, shapes)

    @cached_property
    def _categories(self) -> Sequence[str]:
        return known_labels(self.files, lambda path: _shapes(_read(path)["shapes"], Notes()))


def open_labelme(path: Path, root: Path | None, notes: Notes) -> LabelMePictures:
    """The files of a folder and of those in it, or one file."""
    files = tuple(sorted(path.rglob("*.json"))) if path.is_dir() else (path,)
    if not files:
        raise ValueError(f"{path} holds no .json file")
    return LabelMePictures(files, root, notes)


def is_labelme(path: Path) -> bool:
    """Whether a JSON file has what LabelMe writes."""
    try:
        _read(path)
    except ValueError:
        return False
    return True


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found = parse_json(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(found, Mapping) or not isinstance(found.get("shapes"), list):
        raise ValueError("no LabelMe file: 'shapes' is no list")
    return found


def _shapes(shapes: Sequence[Any], notes: Notes) -> Iterator[Shape]:
    for index, shape in enumerate(shapes):
        where = f"shapes[{index}]"
        if not isinstance(shape, Mapping):
            raise ValueError(f"{where} is {shape!r}; an object was expected")
        kind = shape.get("shape_type") or "polygon"
        if kind in _OPEN:
            notes.add(f"shapes of type {kind}, which have no box, left out")
        elif kind in _CLOSED:
            yield Shape(label_of(shape.get("label")), _box(shape.get("points"), kind, where))
        else:
            known = ", ".join((*_CLOSED, *_OPEN))
            raise ValueError(f"{where} has the shape_type {kind!r}; known: {known}")


def _source(found: Mapping[str, Any], root: Path) -> Path | bytes:
    """The picture's file, or the copy of it that may be in the annotation."""
    name = found.get("imagePath")
    if not isinstance(name, str) or not name:
        raise ValueError(f"'imagePath' is {name!r}; a path was expected")
    path = root / name.replace("\\", "/")
    inside = found.get("imageData")
    if path.exists() or not inside:
        return path
    try:
        return base64.b64decode(inside, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise ValueError(f"{path} does not exist, and 'imageData' is not base64") from None


def _box(points: Any, kind: str, where: str) -> tuple[float, float, float, float]:
    rows = points if isinstance(points, list) else []
    if len(rows) < 2 or not all(_is_point(row) for row in rows):
        raise ValueError(f"{where} has the points {points!r}; two or more were expected")
    if kind == "circle":
        centre, radius = rows[0], dist(rows[0], rows[1])
        return (
            centre[0] - radius,
            centre[1] - radius,
            centre[0] + radius,
            centre[1] + radius,
        )
    return enclosing(rows)


def _is_point(row: Any) -> bool:
    return isinstance(row, list) and len(row) == 2 and all(type(v) in (int, float) for v in row)
