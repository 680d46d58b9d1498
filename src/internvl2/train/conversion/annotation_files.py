"""Annotated sets with a file for each picture, whatever these files are."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from internvl2.train.conversion.annotations import Annotated, Shape
from internvl2.train.conversion.geometry import DrawnOn


@dataclass(frozen=True)
class AnnotationFiles:
    """The pictures of a set, in the order of its files' names."""

    files: tuple[Path, ...]
    usual: DrawnOn
    """What those who make such sets draw on."""
    picture: Callable[[Path], Annotated]
    """Reads a file."""
    shapes: Callable[[Path], Iterable[Shape]]
    """What is marked in a file, looked up for its names alone: nothing is noted."""

    def categories(self) -> Sequence[str]:
        """By name; needs a look into every file."""
        return self._categories

    def __len__(self) -> int:
        return len(self.files)

    def where(self, entry: int) -> str:
        """The file."""
        return str(self.files[entry])

    def read(self, entry: int) -> Annotated:
        """The picture of a file, with what is marked on it."""
        return self.picture(self.files[entry])

    @cached_property
    def _categories(self) -> Sequence[str]:
        found: set[str] = set()
        for path in self.files:
            try:
                found.update([shape.label for shape in self.shapes(path)])
            except ValueError:
                continue  # a fault that is told when the file's turn comes
        return tuple(sorted(found))


def sorted_files(path: Path, found: Iterable[Path], suffix: str) -> tuple[Path, ...]:
    """What was `found` in a folder, or the file that `path` is; a folder must have some."""
    files = tuple(sorted(found)) if path.is_dir() else (path,)
    if not files:
        raise ValueError(f"{path} holds no {suffix} file")
    return files
