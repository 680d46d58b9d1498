"""Linear maps that read the same states, joined into one product: for inference alone.

Queries, keys and values are one product then, and gate and up another. A few tokens take as long as
starting a product does, and many are read from memory once instead of three times.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class RowMatrix:
    """A linear map as kernels for single rows read it: row by row, in numbers or codes."""

    weight: Tensor
    bias: Tensor | None
    scales: Tensor | None = None
    """Of each output, where the weight is codes of 8 bits."""


@runtime_checkable
class HasRows(Protocol):
    """A linear map in few bits whose codes lie in rows, on whatever device."""

    @property
    def matrix(self) -> RowMatrix:
        """Codes, bias and scales."""
        ...


def row_matrix(linear: nn.Module) -> RowMatrix:
    """The matrix of a map for which `has_row_matrix` is true."""
    if isinstance(linear, nn.Linear):
        return RowMatrix(linear.weight, linear.bias)
    assert isinstance(linear, HasRows), type(linear)
    return linear.matrix


def has_row_matrix(module: nn.Module) -> bool:
    """Whether a module is a single linear map that kernels for single rows can read."""
    return not isinstance(module, JoinedLinears) and isinstance(module, nn.Linear | HasRows)


@runtime_checkable
class JoinsItself(Protocol):
    """A linear map in few bits, which knows how its numbers are put together with others'."""

    out_features: int

    def joined(self, others: Sequence[Any]) -> nn.Module:
        """One map with the outputs of this one and of others of its kind, in this order."""
        ...


class JoinedLinears(nn.Module):
    """Linear maps of the same states in one product."""

    def __init__(
        self,
        linears: Sequence[nn.Linear | JoinsItself],
        form: Callable[[nn.Linear], nn.Module],
    ):
        """`form` decides how the joined map is held, unless maps in few bits decide themselves."""
        super().__init__()
        self.widths = [linear.out_features for linear in linears]
        plain = [linear for linear in linears if isinstance(linear, nn.Linear)]
        few = [linear for linear in linears if not isinstance(linear, nn.Linear)]
        self.linear = form(_one_map(plain)) if plain else few[0].joined(few[1:])

    def forward(self, x: Float[Tensor, "rows wide"]) -> Float[Tensor, "rows all"]:
        """What the maps give, one behind the other."""
        return self.linear(x)

    @property
    def matrix(self) -> "RowMatrix":
        """The one product as kernels for single rows read it."""
        return row_matrix(self.linear)

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


def join_linears(
    module: nn.Module,
    form: Callable[[nn.Linear], nn.Module] = as_rows,
    *,
    in_few_bits: bool = False,
) -> None:
    """Joins what can be joined inside; maps with adapters, and mixed ones, stay as they are.

    So do maps in few bits unless those are wanted, which then stay in few bits: `form` is for plain
    ones. The module can neither be trained nor saved after that.
    """
    for inner in list(module.modules()):
        if isinstance(inner, Joinable) and _can_join(inner, in_few_bits):
            inner.join(form)


def _can_join(module: nn.Module, in_few_bits: bool) -> bool:
    """Whether all maps of a module are of one kind that can be joined."""
    maps = [child for child in module.children() if not isinstance(child, nn.RMSNorm)]
    kinds = {type(child) for child in maps}
    if kinds == {nn.Linear}:
        return True
    return in_few_bits and len(kinds) == 1 and isinstance(maps[0], JoinsItself)


def _one_map(linears: Sequence[nn.Linear]) -> nn.Linear:
    first, outputs = linears[0], sum(linear.out_features for linear in linears)
    joined = nn.Linear(first.in_features, outputs, bias=False, device="meta")
    joined.weight = _joined([linear.weight for linear in linears])
    if first.bias is not None:
        joined.bias = _joined([linear.bias for linear in linears])
    return joined


def _joined(parts: Sequence[Tensor]) -> nn.Parameter:
    return nn.Parameter(torch.cat([part.detach() for part in parts]), requires_grad=False)
