"""How many bytes a model's weights take, and what training adds to them."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor, nn

from internvl2.model.internvl import InternVL
from internvl2.model.quantize import Nf4Linear
from internvl2.train.optimizers.adamw import Moments
from internvl2.train.optimizers.groups import parameter_groups
from internvl2.train.optimizers.moments import BLOCK, has_whole_blocks
from internvl2.train.recipe import Optimizer


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes, unless they are said to be numbers."""

    parameters: int
    """What can be divided over processes."""
    buffers: int
    """Quantised weights, which every process holds whole."""
    gradients: int
    optimizer: int
    """Residuals and averages."""
    layer: int
    """The parameters of a decoder layer."""
    layer_gradients: int
    outside: int
    """The parameters that are in no layer: embedding, head, projector and what is small."""
    outside_gradients: int
    head_gradient: int
    trained: int
    """Numbers."""
    largest: int
    """Numbers of the largest trained tensor; 0 without any."""
    quantised: int
    """Numbers that are stored in 4 bits."""
    quantised_matrix: int
    """Numbers of the largest matrix of them; 0 without any."""


def count(model: InternVL, optimizer: Optimizer) -> dict[Moments, Sizes]:
    """Of a model, which need not have memory, by format of the optimizer's averages."""
    plain = _count(model)
    return {
        moments: replace(plain, optimizer=_state(model, optimizer, moments))
        for moments in get_args(Moments)
    }


def _count(model: InternVL) -> Sizes:
    """All but the optimizer's state."""
    layer = model.decoder.layers[0]
    outside = [p for name, p in model.named_parameters() if ".layers." not in name]
    trained = _trained(model.parameters())
    matrices = [module for module in model.modules() if isinstance(module, Nf4Linear)]
    quantised = [matrix.in_features * matrix.out_features for matrix in matrices]
    return Sizes(
        parameters=_bytes(model.parameters()),
        buffers=_bytes(model.buffers()),
        gradients=_bytes(trained),
        optimizer=0,
        layer=_bytes(layer.parameters()),
        layer_gradients=_bytes(_trained(layer.parameters())),
        outside=_bytes(outside),
        outside_gradients=_bytes(_trained(outside)),
        head_gradient=_bytes(_trained(model.decoder.head.parameters())),
        trained=sum(p.numel() for p in trained),
        largest=max((p.numel() for p in trained), default=0),
        quantised=sum(quantised),
        quantised_matrix=max(quantised, default=0),
    )


def _state(model: InternVL, optimizer: Optimizer, moments: Moments) -> int:
    """As `ExactAdamW` makes it: a residual for bf16 weights, and two averages, or Muon's one."""
    total = 0.0
    for group in parameter_groups(model, optimizer):
        for _, parameter in group.parameters:
            in_blocks = moments == "8bit" and has_whole_blocks(parameter)
            average = 1 + 4 / BLOCK if in_blocks else 4
            residual = 2 if parameter.dtype is torch.bfloat16 else 0
            total += parameter.numel() * (residual + average * (1 if group.matrices else 2))
    return int(total)


def _trained(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
