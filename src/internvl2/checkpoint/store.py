"""Load a checkpoint into a model on its device, and save a model as a checkpoint."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from internvl2 import device as devices
from internvl2.checkpoint.companions import token_ids, write_companions
from internvl2.checkpoint.config_files import Layout, read_config, require_expressible, write_config
from internvl2.checkpoint.convert import DTYPES, building, dtype_name
from internvl2.checkpoint.hub import locate
from internvl2.checkpoint.layouts import rules
from internvl2.checkpoint.source import Checkpoint, open_checkpoint
from internvl2.checkpoint.writing import MAX_SHARD_BYTES, Writing, write_weights
from internvl2.config import InternVLConfig
from internvl2.model.internvl import InternVL
from internvl2.processing.processor import Processor


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to compute, and what encodes conversations for it."""

    model: InternVL
    processor: Processor
    config: InternVLConfig
    directory: Path


@dataclass(frozen=True, slots=True)
class Stored:
    """A model in its checkpoint, of which nothing but the tables is read yet."""

    checkpoint: Checkpoint
    processor: Processor
    config: InternVLConfig
    directory: Path
    dtype: torch.dtype
    """The type to compute in."""


def load(
    model: str | Path,
    *,
    device: str | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    adapter: str | Path | None = None,
) -> Loaded:
    """A model by directory, hub id or short name, on the best device and in a fitting dtype.

    An adapter, by directory or hub id, is merged in; an adapter as `model` brings its base.
    """
    target = devices.pick(device)
    found = find(model, target, dtype, revision, adapter)
    filled = _filled(found.checkpoint, found.config, target, found.dtype)
    return Loaded(filled, found.processor, found.config, found.directory)


def find(
    model: str | Path,
    device: torch.device,
    dtype: str | None = None,
    revision: str | None = None,
    adapter: str | Path | None = None,
) -> Stored:
    """A model as `load` finds it, before it is loaded."""
    located = locate(model, adapter, revision=revision)
    directory = located.directory
    config = read_config(directory)
    processor = Processor.from_directory(directory, config)
    checkpoint = open_checkpoint(directory, processor.config, located.adapter)
    stored = dtype_name(checkpoint.dtype())
    config = replace(processor.config, dtype=stored)
    chosen = devices.choose_dtype(device, stored, dtype)
    return Stored(checkpoint, processor, config, directory, chosen)


def load_model(
    directory: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    adapter: Path | None = None,
) -> InternVL:
    """The model in a directory, on `device`, in `dtype` or else in the stored type."""
    config = read_config(directory)
    checkpoint = open_checkpoint(Path(directory), config, adapter)
    return _filled(checkpoint, config, torch.device(device), dtype or checkpoint.dtype())


def read_weights(directory: str | Path, config: InternVLConfig) -> dict[str, Tensor]:
    """Every parameter in a checkpoint under our names, in the stored type; views where possible."""
    return dict(open_checkpoint(Path(directory), config).parameters())


def save(
    model: InternVL,
    processor: Processor | None,
    directory: str | Path,
    layout: Layout,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a model as a complete checkpoint directory; it must not exist, or be empty."""
    config = processor.config if processor else model.config
    save_weights(model.state_dict(), config, processor, directory, layout, max_shard_bytes)


def save_weights(
    weights: Mapping[str, Tensor],
    config: InternVLConfig,
    processor: Processor | None,
    directory: str | Path,
    layout: Layout,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a model, given as all its parameters by name, as `save` does."""
    require_expressible(config, layout)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    dtypes = {name: tensor.dtype for name, tensor in weights.items()}
    config = replace(config, dtype=dtype_name(weights["decoder.embedding.weight"].dtype))
    writing = Writing(layout, rules(layout, config, shapes), shapes, dtypes)
    with building(Path(directory)) as partial:
        write_weights(writing, weights.__getitem__, partial, max_shard_bytes)
        if processor is not None:
            write_companions(processor, partial, layout)
        write_config(config, partial, layout, token_ids(processor) if processor else None)


def fill(parameters: Mapping[str, Tensor], weights: Iterable[tuple[str, Tensor]]) -> None:
    """Copy weights into a model's parameters, one by one; each must come, and fit."""
    waiting = dict(parameters)
    with torch.no_grad():
        for name, tensor in weights:
            place = waiting.pop(name)
            assert place.shape == tensor.shape, (name, place.shape, tensor.shape)
            place.copy_(tensor)
    assert not waiting, list(waiting)


def require_memory(what: str, numbers: int, dtype: torch.dtype, device: torch.device) -> None:
    """Raise when so many numbers of a type would not fit on a device."""
    needed, free = numbers * dtype.itemsize, devices.free_memory(device)
    if needed <= free:
        return
    fitting = [name for name, known in DTYPES.items() if numbers * known.itemsize <= free]
    advice = f"; in {fitting[0]} they would fit" if fitting else ""
    raise ValueError(
        f"{what} need {needed / 1e9:.1f} GB in {str(dtype).removeprefix('torch.')}; "
        f"{device} has {free / 1e9:.1f} GB free{advice}"
    )


def _filled(
    checkpoint: Checkpoint, config: InternVLConfig, device: torch.device, dtype: torch.dtype
) -> InternVL:
    """A model with the checkpoint's numbers.

    Tensors go to the device one by one; the host never holds a second copy of the model.
    """
    with torch.device("meta"):
        model = InternVL(config).to(dtype)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    require_memory(f"the weights of {checkpoint.directory}", numbers, dtype, device)
    # `to_empty` would import torch's compiler, which takes half a second.
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    empty = {name: torch.empty(s, dtype=dtype, device=device) for name, s in shapes.items()}
    model.load_state_dict(empty, strict=True, assign=True)
    fill(dict(model.named_parameters()), checkpoint.parameters(device))
    return model.eval()
