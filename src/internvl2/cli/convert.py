"""`internvl2 convert`: rewrite a checkpoint in another layout, and check what was written."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from internvl2.cli.loading import find_model
from internvl2.cli.options import AdapterName, as_typed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Convert:
    """Write a checkpoint in the layout of another program; DST must not exist yet."""

    source: Annotated[Positional[str], arg(metavar="SRC")]
    """Directory of a checkpoint or of an adapter, hub id or short name; nano is built in."""
    target: Annotated[Positional[Path], arg(metavar="DST")]
    """Directory to make; it appears when everything is written and was read back."""
    layout: Literal["opengvlab", "hf", "paddlemix"]
    """opengvlab: as released; hf: for transformers; paddlemix: for PaddleMIX."""
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"] | None,
        as_typed("", "bfloat16", "float16", "float32"),
    ] = None
    """Number format to write; the one each tensor is stored in unless given."""
    adapter: AdapterName = None
    """Adapter that is merged into the weights, in PEFT's format."""
    revision: Annotated[str | None, as_typed("REVISION")] = None
    """Branch, tag or commit of a checkpoint on the hub."""
    offline: bool = False
    """Use only what was downloaded before."""

    def run(self) -> int:
        """Nothing on standard output; the exit code says that the copy was verified."""
        from internvl2.checkpoint.convert import convert, require_free

        require_free(self.target)
        found = find_model(self.source, self.adapter, self.revision, offline=self.offline)
        done = convert(found.directory, self.target, self.layout, self.dtype, adapter=found.adapter)
        logger.info(
            "wrote %s from %s (%s -> %s): %d tensors, %.1f MB, read back and equal",
            done.directory,
            found.origin,
            done.source_layout,
            done.layout,
            done.tensors,
            done.size / 1e6,
        )
        return 0
