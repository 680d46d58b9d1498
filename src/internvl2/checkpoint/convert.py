"""A checkpoint rewritten in another layout, tensor by tensor, verified before it is called done.

Everything is written into a directory beside the destination, which takes its name only at the end:
an interrupted conversion leaves nothing that looks complete.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from internvl2.checkpoint.companions import (
    has_tokenizer,
    keep_remote_code,
    token_ids,
    write_companions,
)
from internvl2.checkpoint.config_files import (
    LAYOUTS,
    Layout,
    read_config,
    require_expressible,
    write_config,
)
from internvl2.checkpoint.hub import locate
from internvl2.checkpoint.layouts import Rule, rules
from internvl2.checkpoint.partial import partial_directory
from internvl2.checkpoint.source import Checkpoint, open_checkpoint
from internvl2.checkpoint.writing import MAX_SHARD_BYTES, Writing, write_weights
from internvl2.config import DTypeName, InternVLConfig
from internvl2.processing.processor import Processor

MARGIN = 64 * 2**20
"""Bytes of disk that must stay free."""
DTYPES: dict[DTypeName, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Converted:
    """What a conversion wrote, after it was read back and compared."""

    directory: Path
    layout: Layout
    source_layout: Layout
    tensors: int
    size: int
    """Bytes of weights."""
    has_tokenizer: bool


def convert(
    source: str | Path,
    destination: str | Path,
    layout: Layout,
    dtype: DTypeName | None = None,
    max_shard_bytes: int | float = MAX_SHARD_BYTES,
    revision: str | None = None,
    adapter: str | Path | None = None,
) -> Converted:
    """Write the checkpoint `source` (directory, hub id or short name) in a layout, and verify it.

    Adapters are merged: un-merged ones in the checkpoint, a separate one, or `source` itself.
    Without `dtype` every tensor keeps the type it is stored in.
    """
    _check_request(Path(destination), layout, dtype, max_shard_bytes)
    located = locate(source, adapter, revision=revision)
    directory = located.directory
    config = read_config(directory)
    require_expressible(config, layout)
    checkpoint = open_checkpoint(directory, config, located.adapter)
    stored = dtype or dtype_name(checkpoint.dtype())
    processor = Processor.from_directory(directory, config) if has_tokenizer(directory) else None
    if processor is None:
        _logger.warning("%s has no tokenizer; the converted directory has none either", directory)
    config = replace(processor.config if processor else config, dtype=stored)
    writing = _writing(checkpoint, config, layout, dtype)
    size = sum(planned.size for planned in writing.plan())
    _require_space(Path(destination), size)
    parameter = _reader(checkpoint)
    with building(Path(destination)) as partial:
        write_weights(writing, parameter, partial, int(max_shard_bytes))
        if processor is not None:
            write_companions(processor, partial, layout)
        write_config(config, partial, layout, token_ids(processor) if processor else None)
        if layout == "opengvlab":
            keep_remote_code(directory, partial)
        _verify(writing, parameter, config, partial)
    tensors = sum(len(rule.theirs) for rule in writing.rules)
    return Converted(
        Path(destination), layout, checkpoint.layout, tensors, size, processor is not None
    )


@contextmanager
def building(destination: Path) -> Iterator[Path]:
    """A directory beside `destination` that becomes it when the block ends well, else goes away."""
    require_free(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    with partial_directory(destination) as partial:
        yield partial
        partial.chmod(0o755)
        _flush(partial)
        partial.rename(destination)
    _flush_directory(destination.parent)


def require_free(destination: Path) -> None:
    """Raise unless nothing is at `destination`, or an empty directory that can be replaced."""
    for what, is_so in (
        ("a link", destination.is_symlink()),
        ("a mount point", destination.resolve().is_mount()),
        ("the current directory", destination.resolve() == Path.cwd()),
    ):
        if is_so:
            raise ValueError(f"{destination} is {what}; give a directory that does not exist")
    above = next(folder for folder in destination.absolute().parents if folder.exists())
    if not above.is_dir():
        raise ValueError(f"{above} is a file; {destination} cannot be made in it")
    if destination.is_dir():
        if any(destination.iterdir()):
            raise ValueError(f"{destination} is not empty; give a directory that does not exist")
    elif destination.exists():
        raise ValueError(f"{destination} is a file; give a directory that does not exist")


def _check_request(
    destination: Path, layout: str, dtype: str | None, max_shard_bytes: int | float
) -> None:
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; known: {', '.join(LAYOUTS)}")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes is {max_shard_bytes}; it must be above 0")
    require_free(destination)


def _writing(
    checkpoint: Checkpoint, config: InternVLConfig, layout: Layout, dtype: DTypeName | None
) -> Writing:
    dtypes = {
        name: DTYPES[dtype] if dtype else checkpoint.stored(rule.theirs[0]).dtype
        for rule in checkpoint.rules
        for name in rule.ours
    }
    table = rules(layout, config, checkpoint.shapes)
    return Writing(layout, table, checkpoint.shapes, dtypes)


def _reader(checkpoint: Checkpoint) -> Callable[[str], Tensor]:
    """Our parameters by name, the adapter merged in where there is one."""
    stored = _by_name(checkpoint.rules, checkpoint.read)
    adapter = checkpoint.adapter
    if adapter is None:
        return stored
    return _by_name(
        adapter.rules, lambda rule: adapter.merge(rule, [stored(name) for name in rule.ours])
    )


def _by_name(table: list[Rule], read: Callable[[Rule], list[Tensor]]) -> Callable[[str], Tensor]:
    """Our parameters by name; those of the rule read last are kept, as they are wanted together."""
    by_name = {name: rule for rule in table for name in rule.ours}
    kept: dict[str, Tensor] = {}

    def parameter(name: str) -> Tensor:
        if name not in kept:
            kept.clear()
            rule = by_name[name]
            kept.update(zip(rule.ours, read(rule), strict=True))
        return kept[name]

    return parameter


def _verify(
    writing: Writing, parameter: Callable[[str], Tensor], config: InternVLConfig, directory: Path
) -> None:
    """Read everything back from disk, through the rules, and compare it with the source."""
    if read_config(directory) != config:
        raise ValueError(f"{directory}: config.json reads back differently from what was written")
    written = open_checkpoint(directory, config)
    if written.layout != writing.layout:
        raise ValueError(f"{directory} reads back as {written.layout}, not {writing.layout}")
    for rule in writing.rules:
        dtype = writing.dtype(rule)
        for name, tensor in zip(rule.ours, written.read(rule), strict=True):
            if not _same_bits(tensor, parameter(name).to(dtype)):
                raise ValueError(f"{directory}: {name} reads back differently from the source")


def _same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are equal, NaN included; neither is copied, however it is laid out."""
    if first.shape != second.shape or first.dtype is not second.dtype:
        return False
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[first.dtype.itemsize]
    return torch.equal(first.view(bits), second.view(bits))


def dtype_name(dtype: torch.dtype) -> DTypeName:
    """What config.json calls a type."""
    for name, known in DTYPES.items():
        if known is dtype:
            return name
    raise ValueError(f"weights of type {dtype} are not supported; supported: {', '.join(DTYPES)}")


def _require_space(destination: Path, size: int) -> None:
    existing = next(parent for parent in destination.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < size + MARGIN:
        raise ValueError(
            f"{destination} needs {(size + MARGIN) / 1e9:.2f} GB of disk; "
            f"{existing} has {free / 1e9:.2f} GB free"
        )


def _flush(directory: Path) -> None:
    """Have the files of a directory on disk before it gets its name, but not of folders in it."""
    for path in filter(Path.is_file, directory.iterdir()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _flush_directory(directory)


def _flush_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
