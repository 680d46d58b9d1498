"""Pascal VOC: a folder of XML files, each with the objects of one picture.

Pixels are counted from 1 and boxes hold their last row and column, on the rows as stored. A
document type, through which XML can be made to read files or to grow without bound, is refused.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from xml.etree import ElementTree

from internvl2.train.conversion.annotations import Annotated, Shape, known_labels, label_of
from internvl2.train.conversion.geometry import DrawnOn

_ANNOTATIONS, _PICTURES = "Annotations", "JPEGImages"
"""Folders in the layout of the challenge."""


@dataclass(frozen=True)
class VocPictures:
    """The pictures of a folder, in the order of their files' names."""

    files: tuple[Path, ...]
    root: Path
    usual: DrawnOn = "stored"

    def categories(self) -> Sequence[str]:
        """By name; needs a look into every file."""
        return self._categories

    def __len__(self) -> int:
        return len(self.files)

    def where(self, entry: int) -> str:
        """The file."""
        return str(self.files[entry])

    def read(self, entry: int) -> Annotated:
        """The picture of a file, with its objects."""
        found = _parse(self.files[entry])
        name = (found.findtext("filename") or "").strip()
        if not name:
            raise ValueError("it lacks a <filename>")
        size = found.find("size")
        sides = None if size is None else (_side(size, "width"), _side(size, "height"))
        return Annotated(self.root / name, sides, tuple(_shapes(found)))

    @cached_property
    def _categories(self) -> Sequence[str]:
        return known_labels(self.files, lambda path: _shapes(_parse(path)))


def open_voc(path: Path, root: Path | None) -> VocPictures:
    """The files of a folder, or of `Annotations` in it, or one file."""
    files = tuple(sorted(_files(path))) if path.is_dir() else (path,)
    if not files:
        raise ValueError(f"{path} holds no .xml file")
    folder = files[0].parent
    beside = folder.parent / _PICTURES
    return VocPictures(files, root or (beside if beside.is_dir() else folder))


def is_voc(folder: Path) -> bool:
    """Whether a folder, or `Annotations` in it, holds xml files."""
    return bool(_files(folder))


def _files(folder: Path) -> list[Path]:
    return list(folder.glob("*.xml")) or list((folder / _ANNOTATIONS).glob("*.xml"))


class _WithoutDocumentType(ElementTree.TreeBuilder):
    """Builds the tree of a file that declares nothing."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Called before what a document type declares is read."""
        raise ValueError(f"a document type ({name}) is refused in annotations")


def _parse(path: Path) -> ElementTree.Element:
    parser = ElementTree.XMLParser(target=_WithoutDocumentType())
    try:
        parser.feed(path.read_bytes())
        return parser.close()
    except (ElementTree.ParseError, LookupError) as error:
        raise ValueError(f"not XML: {error}") from None


def _shapes(found: ElementTree.Element) -> Iterator[Shape]:
    return map(_shape, found.iterfind("object"))


def _shape(found: ElementTree.Element) -> Shape:
    label, box = label_of(found.findtext("name")), found.find("bndbox")
    if box is None:
        raise ValueError(f"the object {label!r} lacks a <bndbox>")
    left, top, right, bottom = (_number(box, name) for name in ("xmin", "ymin", "xmax", "ymax"))
    return Shape(label, (left - 1, top - 1, right, bottom))


def _side(found: ElementTree.Element, name: str) -> int:
    return round(_number(found, name))


def _number(found: ElementTree.Element, name: str) -> float:
    text = found.findtext(name)
    try:
        return float(text or "")
    except ValueError:
        raise ValueError(f"<{name}> is {text!r}; a number was expected") from None
