"""Load a checkpoint into a model on its device, and save a model as a checkpoint."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from internvl2 import device as devices
from internvl2.checkpoint.companions import token_ids, write_companions
from internvl2.checkpoint.config_files import Layout, read_config, require_expressible, write_config
from internvl2.checkpoint.convert import DTYPES, building, dtype_name
from internvl2.checkpoint.hub import resolve
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


def load(
    model: str | Path,
    *,
    device: str | None = None,
    dtype: str | None = None,
    revision: str | None = None,
) -> Loaded:
    """A model by directory, hub id or short name, on the best device and in a fitting dtype."""
    directory = resolve(model, revision=revision)
    target = devices.pick(device)
    config = read_config(directory)
    processor = Processor.from_directory(directory, config)
    checkpoint = open_checkpoint(directory, processor.config)
    stored = dtype_name(checkpoint.dtype())
    config = replace(processor.config, dtype=stored)
    chosen = devices.choose_dtype(target, stored, dtype)
    return Loaded(_filled(checkpoint, config, target, chosen), processor, config, directory)


def load_model(
    directory: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> InternVL:
    """The model in a directory, on `device`, in `dtype` or else in the stored type."""
    config = read_config(directory)
    checkpoint = open_checkpoint(Path(directory), config)
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
    require_expressible(model.config, layout)
    state = model.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    dtypes = {name: tensor.dtype for name, tensor in state.items()}
    stored = dtype_name(state["decoder.embedding.weight"].dtype)
    config = replace(processor.config if processor else model.config, dtype=stored)
    writing = Writing(layout, rules(layout, config, shapes), shapes, dtypes)
    with building(Path(directory)) as partial:
        write_weights(writing, state.__getitem__, partial, max_shard_bytes)
        if processor is not None:
            write_companions(processor, partial, layout)
        write_config(config, partial, layout, token_ids(processor) if processor else None)


def _filled(
    checkpoint: Checkpoint, config: InternVLConfig, device: torch.device, dtype: torch.dtype
) -> InternVL:
    """A model with the checkpoint's numbers.

    Tensors go to the device one by one; the host never holds a second copy of the model.
    """
    _require_memory(checkpoint, device, dtype)
    with torch.device("meta"):
        model = InternVL(config)
    weights = {name: _placed(tensor, device, dtype) for name, tensor in checkpoint.parameters()}
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval()


def _placed(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A contiguous copy on `device`: never a view of the file, which may change or go away."""
    return tensor.to(device, dtype, copy=True, memory_format=torch.contiguous_format)


def _require_memory(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
    """Raise before anything is loaded when the weights alone would not fit."""
    numbers = sum(torch.Size(shape).numel() for shape in checkpoint.shapes.values())
    needed, free = numbers * dtype.itemsize, devices.free_memory(device)
    if needed <= free:
        return
    fitting = [name for name, known in DTYPES.items() if numbers * known.itemsize <= free]
    advice = f"; in {fitting[0]} they would fit" if fitting else ""
    raise ValueError(
        f"the weights of {checkpoint.directory} need {needed / 1e9:.1f} GB in "
        f"{str(dtype).removeprefix('torch.')}; {device} has {free / 1e9:.1f} GB free{advice}"
    )
