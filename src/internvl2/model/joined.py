"""Linear maps that read the same states, joined into one product: for inference alone.

Queries, keys and values are one product then, and gate and up another. A few tokens take as long as
starting a product does, and many are read from memory once instead of three times.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn


class JoinedLinears(nn.Module):
    """Linear maps of the same states in one product."""

    def __init__(self, linears: Sequence[nn.Linear], form: Callable[[nn.Linear], nn.Module]):
        """`form` decides how the joined map is held."""
        super().__init__()
        first, self.widths = linears[0], [linear.out_features for linear in linears]
        joined = nn.Linear(first.in_features, sum(self.widths), bias=False, device="meta")
        joined.weight = _joined([linear.weight for linear in linears])
        if first.bias is not None:
            joined.bias = _joined([linear.bias for linear in linears])
        self.linear = form(joined)

    def forward(self, x: Float[Tensor, "rows wide"]) -> Float[Tensor, "rows all"]:
        """What the maps give, one behind the other."""
        return self.linear(x)

    def split(self, x: Float[Tensor, "rows wide"]) -> tuple[Tensor, ...]:
        """What each of the maps gives."""
        return self.linear(x).split(self.widths, dim=-1)


@runtime_checkable
class Joinable(Protocol):
    """A module that knows which of its linear maps read the same states."""

    joined: JoinedLinears | None

    def join(self, form: Callable[[nn.Linear], nn.Module]) -> None:
        """Puts one product in their place."""
        ...


def as_rows(linear: nn.Linear) -> nn.Linear:
    """A linear map as files have it."""
    return linear


def join_linears(module: nn.Module, form: Callable[[nn.Linear], nn.Module] = as_rows) -> None:
    """Joins what can be joined inside, and leaves maps with adapters or in few bits as they are.

    The module can neither be trained nor saved after that.
    """
    for inner in list(module.modules()):
        if isinstance(inner, Joinable) and all(map(_is_plain, inner.children())):
            inner.join(form)


def _is_plain(child: nn.Module) -> bool:
    """Whether a module is a linear map as files have it, or none at all."""
    return type(child) is nn.Linear or isinstance(child, nn.RMSNorm)


def _joined(parts: Sequence[Tensor]) -> nn.Parameter:
    return nn.Parameter(torch.cat([part.detach() for part in parts]), requires_grad=False)
