"""Load a checkpoint into a model on its device, and save a model as a checkpoint."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from internvl2 import device as devices
from internvl2.checkpoint.awq import read_awq
from internvl2.checkpoint.companions import token_ids, write_companions
from internvl2.checkpoint.config_files import Layout, read_config, require_expressible, write_config
from internvl2.checkpoint.convert import DTYPES, building, dtype_name
from internvl2.checkpoint.hub import locate
from internvl2.checkpoint.layouts import rules
from internvl2.checkpoint.source import Checkpoint, open_checkpoint
from internvl2.checkpoint.upload import uploaded
from internvl2.checkpoint.writing import MAX_SHARD_BYTES, Writing, write_weights
from internvl2.config import InternVLConfig, Quantization
from internvl2.model.int4 import Int4Linear
from internvl2.model.internvl import InternVL
from internvl2.model.low_bit import (
    quantization_of,
    quantize_for_answers,
    require_quantization,
    stored_bytes,
)
from internvl2.model.quantize import store_quantized
from internvl2.model.tensor_parallel import DividedInternVL, Share
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
    quantize: str | None = None,
) -> Loaded:
    """A model by directory, hub id or short name, on the best device and in a fitting dtype.

    An adapter, by directory or hub id, is merged in; an adapter as `model` brings its base.
    `quantize` ("fp8", "int8", "int4") holds the decoder's matrices in fewer bits, to answer with.
    """
    target = devices.pick(device)
    found = find(model, target, dtype, revision, adapter)
    with torch.device("meta"):
        empty = InternVL(found.config)
    filled = _filled(empty, found.checkpoint, target, found.dtype, quantize)
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
    quantize: str | None = None,
) -> InternVL:
    """The model in a directory, on `device`, in `dtype` or else in the stored type."""
    config = read_config(directory)
    checkpoint = open_checkpoint(Path(directory), config, adapter)
    with torch.device("meta"):
        model = InternVL(config)
    return _filled(model, checkpoint, torch.device(device), dtype or checkpoint.dtype(), quantize)


def load_share(
    directory: str | Path,
    share: Share,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    adapter: Path | None = None,
    quantize: str | None = None,
) -> DividedInternVL:
    """One process's share of the model in a directory; no more than one tensor is ever whole."""
    config = read_config(directory)
    checkpoint = open_checkpoint(Path(directory), config, adapter)
    with torch.device("meta"):
        model = DividedInternVL(config, share)
    _filled(model, checkpoint, torch.device(device), dtype, quantize)
    return model


def choose_quantization(
    directory: Path,
    wanted: str | None,
    device: torch.device,
    dtype: torch.dtype,
    adapter: Path | None,
) -> Quantization | None:
    """How the decoder of a checkpoint will be held; what cannot be is an error.

    Four-bit weights of a checkpoint stay as they are. Nothing can be merged into them.
    """
    if read_awq(directory) is None:
        return None if wanted is None else require_quantization(wanted, device, dtype)
    if wanted is not None:
        raise ValueError(
            f"{directory} has four-bit weights already (AWQ): leave out quantize {wanted!r}, or "
            "make a plain model of it first with `internvl2 convert`"
        )
    if adapter is not None:
        raise ValueError(
            f"{directory} has four-bit weights (AWQ), into which the adapter {adapter} cannot be "
            "merged: make a plain model of both with `internvl2 convert --adapter` first"
        )
    return "int4"


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
    quantization = quantization_of(model)
    if quantization is not None:
        raise ValueError(
            f"this model's decoder is held in {quantization}, not in its own numbers; "
            "load it without quantize to save it, and convert four-bit checkpoints"
        )
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
    model: InternVL,
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    quantize: str | None,
) -> InternVL:
    """A model without memory, or a share of one, with the checkpoint's numbers.

    Tensors go to the device one after the other, a few at a time, and are quantised there; the host
    never holds a second copy of the model, and the device none of what is quantised.
    """
    adapter = None if checkpoint.adapter is None else checkpoint.adapter.directory
    chosen = choose_quantization(checkpoint.directory, quantize, device, dtype, adapter)
    model.to(dtype)
    if quantize is not None and chosen is not None:
        quantize_for_answers(model, chosen)
    else:
        _make_room_for_packed(model, checkpoint)
    what = f"the weights of {checkpoint.directory}" + (f", {chosen}," if chosen else "")
    require_memory(what, stored_bytes(model) // dtype.itemsize, dtype, device)
    # `to_empty` would import torch's compiler, which takes half a second.
    places = model.state_dict()
    empty = {name: torch.empty(x.shape, dtype=x.dtype, device=device) for name, x in places.items()}
    model.load_state_dict(empty, strict=True, assign=True)
    if quantize is None and chosen is not None:
        weights = uploaded(_store_packed(model, checkpoint), device)
    else:
        own = uploaded(_own(model, checkpoint.parameters(device)), device)
        weights = store_quantized(own, model)
    fill(dict(model.named_parameters()), weights)
    return model.eval()


def _own(model: InternVL, weights: Iterable[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor]]:
    """Of whole weights, what a model holds of them."""
    if not isinstance(model, DividedInternVL):
        return weights
    return model.share.parts(weights, model.config.decoder)


def _make_room_for_packed(model: InternVL, checkpoint: Checkpoint) -> None:
    """Puts four-bit maps in place of those whose weights are stored so."""
    packed = checkpoint.packed
    if packed is None:
        return
    for name in chain.from_iterable(rule.ours for rule in checkpoint.packed_rules):
        place, _, kind = name.removesuffix(".weight").rpartition(".")
        holder = model.get_submodule(place)
        linear = getattr(holder, kind)
        assert isinstance(linear, nn.Linear), name
        few = Int4Linear(linear.weight.detach(), linear.bias, packed.format.group)
        setattr(holder, kind, few)


def _store_packed(model: InternVL, checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """A checkpoint's parameters, less those that are stored in four bits, which it stores."""
    packed = checkpoint.packed_rules
    for rule in checkpoint.rules:
        if rule not in packed:
            yield from _own(model, zip(rule.ours, checkpoint.read(rule), strict=True))
            continue
        for name, groups in zip(rule.ours, checkpoint.read_groups(rule), strict=True):
            linear = model.get_submodule(name.removesuffix(".weight"))
            assert isinstance(linear, Int4Linear), name
            if isinstance(model, DividedInternVL):
                groups = model.share.groups(name, groups, model.config.decoder)
            linear.store_groups(groups)
