"""What is done to whole layers for training: activations computed again, and compilation.

Both change how a layer is called and nothing else: names, weights and results stay.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from internvl2.model.internvl import InternVL
from internvl2.model.vision import VisionLayer


def recompute_layers(model: InternVL, vision: float = 0.0, decoder: float = 0.0) -> None:
    """Keep only the inputs of a share of each part's layers, and compute them again going back.

    The first layers are taken: when going back reaches them, the others' activations are gone.
    Where nothing is to be learned layers run as they are.
    """
    for layers, ratio in ((model.vision.layers, vision), (model.decoder.layers, decoder)):
        if not 0 <= ratio <= 1:
            raise ValueError(f"the share of layers to recompute is {ratio}; it must be 0 to 1")
        for layer in layers[: round(len(layers) * ratio)]:
            layer.forward = _recomputed(layer)


def compile_layers(model: InternVL) -> None:
    """Compile each layer; to be called before `recompute_layers`, which runs compiled layers."""
    for layer in (*model.vision.layers, *model.decoder.layers):
        layer.forward = torch.compile(layer.forward)


def _recomputed(layer: nn.Module) -> Callable[..., Any]:
    plain = layer.forward
    draws_random_numbers = _draws_random_numbers(layer)

    def forward(x: torch.Tensor, *others: Any) -> Any:
        learns = x.requires_grad or any(p.requires_grad for p in layer.parameters())
        if not (learns and torch.is_grad_enabled()):
            return plain(x, *others)
        return checkpoint(
            plain, x, *others, use_reentrant=False, preserve_rng_state=draws_random_numbers
        )

    return forward


def _draws_random_numbers(layer: nn.Module) -> bool:
    """Whether a layer leaves something out by chance, so that both runs must leave out the same."""
    if isinstance(layer, VisionLayer) and layer.drop_path_rate > 0:
        return True
    return any(isinstance(inner, nn.Dropout) and inner.p > 0 for inner in layer.modules())
