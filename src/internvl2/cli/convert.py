"""`internvl2 convert`: rewrite a checkpoint in another layout, and check what was written."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg


@dataclass(frozen=True)
class Convert:
    """Write a checkpoint in the layout of another program; DST must not exist yet."""

    source: Annotated[Positional[str], arg(metavar="SRC")]
    """Directory of a checkpoint, hub id or short name."""
    target: Annotated[Positional[Path], arg(metavar="DST")]
    """Directory to make."""
    layout: Literal["opengvlab", "hf", "paddlemix"]
    """opengvlab: as released; hf: for transformers; paddlemix: for PaddleMIX."""

    def run(self) -> int:
        """Nothing on standard output; the exit code says that the copy was verified."""
        raise ValueError("convert is not wired")
