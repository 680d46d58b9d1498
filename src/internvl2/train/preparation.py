"""A checkpoint's model made ready for training: what is frozen, dropped, recomputed, compiled."""

from dataclasses import replace

import torch
from torch import nn

from internvl2 import device as devices
from internvl2.checkpoint.config_files import read_config
from internvl2.checkpoint.hub import resolve
from internvl2.checkpoint.store import Loaded, load
from internvl2.model.internvl import InternVL
from internvl2.model.parallel import compile_layers, recompute_layers
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
    recompute_layers(loaded.model, recipe.recompute.vision, recipe.recompute.decoder)
    return loaded


def training(model: InternVL) -> None:
    """Training mode for what is trained, the other for what is frozen."""
    for layer in model.vision.layers:
        layer.train(any(p.requires_grad for p in layer.parameters()))


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
