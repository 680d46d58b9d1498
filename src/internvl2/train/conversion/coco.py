"""COCO: one JSON file of pictures, annotations and categories; instances, or captions.

Boxes are `[left, top, width, height]` in pixels of the rows as stored. The file is read as a whole.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from internvl2.train.conversion.annotations import Annotated, Shape, label_of
from internvl2.train.conversion.geometry import DrawnOn
from internvl2.train.conversion.samples import Notes
from internvl2.train.data.line_index import parse_json


@dataclass(frozen=True)
class CocoPictures:
    """The pictures of a file, then the annotations that belong to none of them."""

    path: Path
    root: Path
    images: Sequence[Mapping[str, Any]]
    annotations: Sequence[Mapping[str, Any]]
    names: Mapping[Any, str]
    """Of categories, by id."""
    notes: Notes
    usual: DrawnOn = "stored"

    def categories(self) -> Sequence[str]:
        """In the order of the file."""
        return tuple(dict.fromkeys(self.names.values()))

    def __len__(self) -> int:
        return len(self.images) + len(self._orphans)

    def where(self, entry: int) -> str:
        """The file and the picture, or the annotation that has none."""
        if entry < len(self.images):
            return f"{self.path}: images[{entry}] {self.images[entry].get('file_name')!r}"
        return f"{self.path}: annotations[{self._orphans[entry - len(self.images)]}]"

    def read(self, entry: int) -> Annotated:
        """A picture with its boxes or captions."""
        if entry >= len(self.images):
            lost = self.annotations[self._orphans[entry - len(self.images)]].get("image_id")
            raise ValueError(f"it belongs to the picture {lost!r}, which 'images' lacks")
        image = self.images[entry]
        name = image.get("file_name")
        if not isinstance(name, str) or not name:
            raise ValueError(f"'file_name' is {name!r}; a path was expected")
        source = self.root / name
        own = [(i, self.annotations[i]) for i in self._by_image.get(image["id"], ())]
        size, identity = _size(image), image["id"]
        if self.has_captions:
            captions = tuple(_caption(annotation, i) for i, annotation in own)
            return Annotated(source, size, (), captions, identity)
        shapes = [self._shape(annotation, i) for i, annotation in own]
        return Annotated(source, size, tuple(s for s in shapes if s is not None), None, identity)

    def _shape(self, annotation: Mapping[str, Any], index: int) -> Shape | None:
        """What an annotation marks; None for a crowd, of which one box says little."""
        if annotation.get("iscrowd"):
            self.notes.add("crowds (iscrowd), left out")
            return None
        box, category = annotation.get("bbox"), _key(annotation.get("category_id"))
        where = f"annotations[{index}]"
        if category not in self.names:
            raise ValueError(f"{where} has the category {category!r}, which 'categories' lacks")
        if (
            not isinstance(box, list)
            or len(box) != 4
            or not all(type(value) in (int, float) for value in box)
        ):
            raise ValueError(f"{where} has the bbox {box!r}; four numbers were expected")
        left, top, width, height = box
        if width <= 0 or height <= 0:
            raise ValueError(f"{where} has the bbox {box}, whose width or height is not above 0")
        return Shape(self.names[category], (left, top, left + width, top + height))

    @property
    def has_captions(self) -> bool:
        """Whether sentences were written about the pictures, in place of boxes."""
        return bool(self.annotations) and "caption" in self.annotations[0]

    @cached_property
    def _by_image(self) -> dict[Any, list[int]]:
        found: dict[Any, list[int]] = {image["id"]: [] for image in self.images}
        for index, annotation in enumerate(self.annotations):
            if (own := found.get(_key(annotation.get("image_id")))) is not None:
                own.append(index)
        return found

    @cached_property
    def _orphans(self) -> list[int]:
        known = self._by_image
        annotations = enumerate(self.annotations)
        return [index for index, one in annotations if _key(one.get("image_id")) not in known]


def open_coco(path: Path, root: Path | None, notes: Notes) -> CocoPictures:
    """The pictures of a file; their paths start from its own folder unless a root is given."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give COCO's json file in it, and --root")
    try:
        found = parse_json(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(found, Mapping):
        raise ValueError(f"{path} is no COCO file: an object was expected")
    images, annotations = (_list(path, found, name) for name in ("images", "annotations"))
    ids = [_key(image.get("id")) for image in images]
    if None in ids or len(set(ids)) < len(ids):
        raise ValueError(
            f"{path}: every one of 'images' needs an 'id' of its own, a whole number or text"
        )
    categories = _list(path, found, "categories") if "categories" in found else []
    names = {_key(category.get("id")): label_of(category.get("name")) for category in categories}
    return CocoPictures(path, root or path.parent, images, annotations, names, notes)


def _list(path: Path, found: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    items = found.get(name)
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        raise ValueError(
            f"{path} is no COCO file of boxes or captions: {name!r} is no list of objects"
        )
    return items


def _key(given: Any) -> int | str | None:
    """An id; None for what can be none."""
    return given if isinstance(given, int | str) else None


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = image.get("width"), image.get("height")
    return (width, height) if isinstance(width, int) and isinstance(height, int) else None


def _caption(annotation: Mapping[str, Any], index: int) -> str:
    text = annotation.get("caption")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"annotations[{index}] has the caption {text!r}; a sentence was expected")
    return text.strip()
