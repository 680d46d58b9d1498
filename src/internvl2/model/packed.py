"""Linear maps in the order in which oneDNN reads them on a CPU: the same numbers, sooner.

PyTorch hands oneDNN rows of weights as files have them. For a few tokens that takes 2 to 3 times as
long as blocks of weights do, and for many a tenth longer. One order serves both. The operators are
those that torch.compile puts into its code for CPUs.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from internvl2 import device as devices
from internvl2.model.joined import join_linears


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


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether packing helps: bf16 on a CPU that multiplies it, with oneDNN in this PyTorch."""
    if device.type != "cpu" or dtype is not torch.bfloat16 or not devices.cpu_multiplies_bf16():
        return False
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def pack_linears(module: nn.Module) -> None:
    """Packs every linear map inside, joined with those that read the same states.

    The module can neither be trained nor saved after that.
    """
    join_linears(module, PackedLinear)
    _pack_each(module)


def _pack_each(module: nn.Module) -> None:
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, PackedLinear(child))
        else:
            _pack_each(child)
