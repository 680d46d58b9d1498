"""Pascal VOC: a folder of XML files, each with the objects of one picture.

Pixels are counted from 1 and boxes hold their last row and column, on the rows as stored. A
document type, through which XML can be made to read files or to grow without bound, is refused.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from internvl2.train.conversion.annotation_files import AnnotationFiles, sorted_files
from internvl2.train.conversion.annotations import Annotated, Shape, label_of

_ANNOTATIONS, _PICTURES = "Annotations", "JPEGImages"
"""Folders in the layout of the challenge."""


def open_voc(path: Path, root: Path | None) -> AnnotationFiles:
    """The files of a folder, or of `Annotations` in it, or one file."""
    files = sorted_files(path, _files(path), ".xml")
    folder = files[0].parent
    beside = folder.parent / _PICTURES
    pictures = root or (beside if beside.is_dir() else folder)
    return AnnotationFiles(files, "stored", partial(_annotated, pictures=pictures), _marked)


def is_voc(folder: Path) -> bool:
    """Whether a folder, or `Annotations` in it, holds xml files."""
    return bool(_files(folder))


def _files(folder: Path) -> list[Path]:
    return list(folder.glob("*.xml")) or list((folder / _ANNOTATIONS).glob("*.xml"))


def _annotated(path: Path, pictures: Path) -> Annotated:
    found = _parse(path)
    name = (found.findtext("filename") or "").strip()
    if not name:
        raise ValueError("it lacks a <filename>")
    size = found.find("size")
    sides = None if size is None else (_side(size, "width"), _side(size, "height"))
    return Annotated(pictures / name, sides, tuple(_shapes(found)))


def _marked(path: Path) -> Iterator[Shape]:
    return _shapes(_parse(path))


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
