"""LabelMe: a folder of JSON files, each with the shapes that were drawn on one picture.

LabelMe turns a picture as EXIF says before it is drawn on. Rectangles keep their corners in the
order of the mouse; of polygons, masks and circles the enclosing box is taken.
"""

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from math import dist
from pathlib import Path
from typing import Any

from internvl2.train.conversion.annotation_files import AnnotationFiles, sorted_files
from internvl2.train.conversion.annotations import Annotated, Shape, enclosing, label_of
from internvl2.train.conversion.samples import Notes
from internvl2.train.data.line_index import parse_json

_CLOSED = ("rectangle", "polygon", "mask", "oriented_rectangle", "circle")
_OPEN = ("point", "points", "line", "linestrip")


def open_labelme(path: Path, root: Path | None, notes: Notes) -> AnnotationFiles:
    """The files of a folder and of those in it, or one file."""
    files = sorted_files(path, path.rglob("*.json"), ".json")
    return AnnotationFiles(files, "shown", partial(_annotated, root=root, notes=notes), _marked)


def is_labelme(path: Path) -> bool:
    """Whether a JSON file has what LabelMe writes."""
    try:
        _read(path)
    except ValueError:
        return False
    return True


def _annotated(path: Path, root: Path | None, notes: Notes) -> Annotated:
    found = _read(path)
    shapes = tuple(_shapes(found["shapes"], notes))
    width, height = found.get("imageWidth"), found.get("imageHeight")
    size = (width, height) if isinstance(width, int) and isinstance(height, int) else None
    return Annotated(_source(found, root or path.parent), size, shapes)


def _marked(path: Path) -> Iterator[Shape]:
    return _shapes(_read(path)["shapes"], Notes())


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
