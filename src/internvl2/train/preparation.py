"""A recipe's model made ready for training: adapted, frozen, compiled, recomputed, divided, filled.

The model is made without memory, and only what this process holds of it is ever given some. Then
weights come tensor by tensor, from a checkpoint or from chance, and are quantised on the way where
the recipe says so: the whole of a quantised model is never in memory.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from internvl2 import device as devices
from internvl2.checkpoint.config_files import read_config
from internvl2.checkpoint.hub import lasting_name, resolve
from internvl2.checkpoint.lora_writing import Base
from internvl2.checkpoint.store import fill, find, require_memory
from internvl2.config import InternVLConfig
from internvl2.model.internvl import InternVL
from internvl2.model.lora import LoraSettings, add_lora, with_new_adapters
from internvl2.model.parallel import compile_layers, recompute_layers
from internvl2.model.quantize import quantize_decoder, store_quantized
from internvl2.processing.processor import Processor
from internvl2.train.optimizers.groups import freeze_parts
from internvl2.train.parallel import World
from internvl2.train.recipe import Lora, Recipe
from internvl2.train.sharding import local, own_parts, shard
from internvl2.train.step_loss import PackLoss
from internvl2.train.tiling import as_trained, training_processor

logger = logging.getLogger(__name__)

DEVIATION = 0.02
"""Standard deviation of random weights."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a run trains."""

    loss: PackLoss
    processor: Processor
    config: InternVLConfig
    base: Base | None
    """The stored model that the run begins with; None of random weights."""

    @property
    def model(self) -> InternVL:
        """Where all parameters have their names."""
        return self.loss.model


@dataclass(frozen=True, slots=True)
class _Source:
    """A model before it has memory."""

    processor: Processor
    config: InternVLConfig
    dtype: torch.dtype
    weights: Callable[[InternVL], Iterator[tuple[str, Tensor]]]
    """Whole tensors for all parameters of a model, by name."""
    base: Base | None = None


def prepare(recipe: Recipe, world: World) -> Prepared:
    """The recipe's model on the device, with its trainable parameters marked."""
    source = (_random if recipe.from_scratch else _stored)(recipe, world.device)
    model = without_memory(recipe, source.config, source.dtype)
    _change_layers(model, recipe, compiled=compiles(recipe, world.device))
    loss = PackLoss(model)
    what = f"the weights of {recipe.model}"
    if recipe.shard and world.size > 1:
        shard(loss, world)
        what += f", divided by {world.size},"
    elif recipe.shard:
        logger.info("shard = true, but there is one process: nothing is divided")
    tensors = [*map(local, loss.parameters()), *loss.buffers()]
    bytes_ = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    require_memory(what, bytes_ // source.dtype.itemsize, source.dtype, world.device)
    loss.to_empty(device=world.device)
    parts = {name: local(parameter) for name, parameter in model.named_parameters()}
    weights = with_new_adapters(source.weights(model), model, recipe.seed)
    fill(parts, own_parts(model, store_quantized(weights, model)))
    return Prepared(loss.eval(), source.processor, source.config, source.base)


def without_memory(recipe: Recipe, config: InternVLConfig, dtype: torch.dtype) -> InternVL:
    """The model on the meta device, quantised and adapted, with trainable parameters marked."""
    with torch.device("meta"):
        model = InternVL(config).to(dtype)
    if recipe.quantize is not None:
        quantize_decoder(model)
    add_lora(model, **adapter_settings(recipe.lora))
    freeze_parts(model, recipe.kept)
    return model


def adapter_settings(lora: Lora) -> dict[str, LoraSettings | None]:
    """The settings of each part's adapters, None for a part without."""
    ranks = {"decoder": lora.decoder_rank, "vision": lora.vision_rank}
    return {part: _settings(lora, rank) if rank else None for part, rank in ranks.items()}


def compiles(recipe: Recipe, device: torch.device) -> bool:
    """Whether layers and optimizer are compiled: where it pays, unless the recipe says."""
    if device.type != "cuda":
        return bool(recipe.compile)
    has_triton = find_spec("triton") is not None
    if recipe.compile is None:
        return has_triton
    if recipe.compile and not has_triton:
        raise ValueError(
            "compile = true needs Triton on a GPU, which is not installed: pip install triton, "
            "or leave compile out, which trains without it, slower"
        )
    return recipe.compile


def _settings(lora: Lora, rank: int) -> LoraSettings:
    alpha = 2.0 * rank if lora.alpha is None else lora.alpha
    return LoraSettings(rank, alpha, lora.dropout, lora.dora, lora.rslora)


def _change_layers(model: InternVL, recipe: Recipe, *, compiled: bool) -> None:
    """What a recipe does to how layers are run."""
    rates = torch.linspace(0, recipe.drop_path, len(model.vision.layers)).tolist()
    for layer, rate in zip(model.vision.layers, rates, strict=True):
        layer.drop_path_rate = rate
    if compiled:
        compile_layers(model)
    recompute_layers(model, recipe.recompute.vision, recipe.recompute.decoder)


def training(model: InternVL) -> None:
    """Training mode for what is trained, the other for what is frozen."""
    for layer in (*model.vision.layers, *model.decoder.layers):
        layer.train(any(p.requires_grad for p in layer.parameters()))


def _stored(recipe: Recipe, device: torch.device) -> _Source:
    found = find(recipe.model, device, recipe.dtype)
    processor, config = (
        training_processor(found.processor, recipe),
        as_trained(found.config, recipe),
    )
    checkpoint, base = found.checkpoint, None
    if checkpoint.adapter is None or recipe.lora.is_used:  # the latter complains of the former
        base = Base(lasting_name(recipe.model), checkpoint.fingerprint(found.config))
    return _Source(processor, config, found.dtype, lambda model: checkpoint.parameters(), base)


def _random(recipe: Recipe, device: torch.device) -> _Source:
    """Random weights, equal in every process and on every device, in the recipe's shape."""
    directory = resolve(recipe.model)
    stored = Processor.from_directory(directory, read_config(directory))
    processor = training_processor(stored, recipe)
    dtype = devices.choose_dtype(device, processor.config.dtype, recipe.dtype)
    config = replace(processor.config, dtype=str(dtype).removeprefix("torch."))
    host = torch.device("cpu")
    return _Source(
        processor, config, dtype, lambda model: random_weights(model, recipe.seed, host, dtype)
    )


def random_weights(
    model: nn.Module, seed: int, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Whole random weights for a model, one after the other, by name.

    Matrices and embeddings are normally distributed; norms and layer scales begin at 1, biases
    at 0.
    """
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        tensor = torch.empty(parameter.shape, device=device, dtype=dtype)
        if name.endswith("bias"):
            tensor.zero_()
        elif parameter.ndim > 1 or name.endswith("class_embedding"):
            tensor.normal_(std=DEVIATION, generator=generator)
        else:
            tensor.fill_(1)
        yield name, tensor
