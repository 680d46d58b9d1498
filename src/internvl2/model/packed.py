"""Linear maps in the order in which oneDNN reads them on a CPU: the same numbers, sooner.

PyTorch hands oneDNN rows of weights as files have them. For a few tokens that takes 2 to 3 times as
long as blocks of weights do, and for many a tenth longer. One order serves both. The operators are
those that torch.compile puts into its code for CPUs.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from internvl2 import device as devices


class PackedLinear(nn.Module):
    """A linear map for inference alone, whose weights no longer lie in rows."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), 1)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Float[Tensor, "*rows wide"]) -> Float[Tensor, "*rows dim"]:
        """Maps the last axis."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


class JoinedLinears(nn.Module):
    """Linear maps of the same states in one product, for inference alone."""

    def __init__(self, linears: Sequence[nn.Linear]):
        super().__init__()
        first, self.widths = linears[0], [linear.out_features for linear in linears]
        joined = nn.Linear(first.in_features, sum(self.widths), bias=False, device="meta")
        joined.weight = _joined([linear.weight for linear in linears])
        if first.bias is not None:
            joined.bias = _joined([linear.bias for linear in linears])
        self.linear = PackedLinear(joined)

    def forward(self, x: Float[Tensor, "rows wide"]) -> tuple[Tensor, ...]:
        """What each of the maps gives."""
        return self.linear(x).split(self.widths, dim=-1)


@runtime_checkable
class Packable(Protocol):
    """A module that knows which of its linear maps read the same states."""

    joined: JoinedLinears | None

    def pack(self) -> None:
        """Joins and packs them; the others are packed one by one."""
        ...


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether packing helps: bf16 on a CPU that multiplies it, with oneDNN in this PyTorch."""
    if device.type != "cpu" or dtype is not torch.bfloat16 or not devices.cpu_multiplies_bf16():
        return False
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def pack_linears(module: nn.Module) -> None:
    """Packs every linear map inside, one by one, each in the place of its rows.

    The module can neither be trained nor saved after that.
    """
    if isinstance(module, Packable) and all(map(_is_plain, module.children())):
        module.pack()
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, PackedLinear(child))
        else:
            pack_linears(child)


def _is_plain(child: nn.Module) -> bool:
    """Whether a module is a linear map as files have it, or none at all."""
    return type(child) is nn.Linear or isinstance(child, nn.RMSNorm)


def _joined(parts: Sequence[Tensor]) -> nn.Parameter:
    return nn.Parameter(torch.cat([part.detach() for part in parts]), requires_grad=False)
