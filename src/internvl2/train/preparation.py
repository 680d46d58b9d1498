"""A checkpoint's model made ready for training: what is frozen, dropped, recomputed, compiled."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from internvl2 import device as devices
from internvl2.checkpoint.config_files import read_config
from internvl2.checkpoint.hub import resolve
from internvl2.checkpoint.store import Loaded, load
from internvl2.model.decoder import GatedMLP
from internvl2.model.internvl import InternVL
from internvl2.processing.processor import Processor
from internvl2.train.optimizer import freeze_parts
from internvl2.train.recipe import Recipe


def prepare(recipe: Recipe, device: torch.device) -> Loaded:
    """The recipe's model on `device`, with its trainable parameters marked."""
    loaded = _random(recipe, device) if recipe.from_scratch else _stored(recipe, device)
    freeze_parts(loaded.model, recipe.freeze)
    layers = loaded.model.vision.layers
    rates = torch.linspace(0, recipe.drop_path, len(layers)).tolist()
    for layer, rate in zip(layers, rates, strict=True):
        layer.drop_path_rate = rate
    if recipe.compile:
        compile_layers(loaded.model)
    recompute(loaded.model, recipe.recompute)
    return loaded


def training(model: InternVL) -> None:
    """Training mode for what is trained, the other for what is frozen."""
    for layer in model.vision.layers:
        layer.train(any(p.requires_grad for p in layer.parameters()))


def recompute(model: InternVL, share: float) -> None:
    """Computes the activations of that share of the layers again in the backward pass."""
    trained_vision = [
        layer for layer in model.vision.layers if any(p.requires_grad for p in layer.parameters())
    ]
    for layers in (trained_vision, list(model.decoder.layers)):
        for layer in _evenly(layers, share):
            layer.forward = _recomputing(layer.forward)


def compile_layers(model: InternVL) -> None:
    """Compiles vision layers whole and the decoder's MLPs; attention has a kernel of its own."""
    for layer in model.vision.layers:
        layer.compile(dynamic=False)
    for layer in model.decoder.modules():
        if isinstance(layer, GatedMLP):
            layer.compile(dynamic=False)


def _stored(recipe: Recipe, device: torch.device) -> Loaded:
    return load(recipe.model, device=str(device), dtype=recipe.dtype)


def _random(recipe: Recipe, device: torch.device) -> Loaded:
    """Random weights, equal in every process, in the shape of the recipe's model."""
    directory = resolve(recipe.model)
    processor = Processor.from_directory(directory, read_config(directory))
    dtype = devices.choose_dtype(device, processor.config.dtype, recipe.dtype)
    torch.manual_seed(recipe.seed)
    model = InternVL(processor.config)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)
    config = replace(processor.config, dtype=str(dtype).removeprefix("torch."))
    return Loaded(model.to(device, dtype).eval(), processor, config, directory)


def _evenly(layers: Sequence[nn.Module], share: float) -> list[nn.Module]:
    """That share of the layers, spread over them."""
    return [layer for i, layer in enumerate(layers) if int((i + 1) * share) > int(i * share)]


def _recomputing(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def recomputed(*inputs: object) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return forward(*inputs)
        return checkpoint(forward, *inputs, use_reentrant=False)

    return recomputed
