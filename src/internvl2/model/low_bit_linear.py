"""What linear maps in 8 or 4 bits share: how a product is computed, and how maps are joined.

On a CUDA device kernels may be planned for products of few rows (`low_bit_plans`); every other
product, and all of them where none is planned, is plain PyTorch.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from internvl2.model.quantize import QuantizedLinear

SMALLEST_SCALE = 1e-12


@dataclass(frozen=True, slots=True)
class Vectors:
    """A kernel for one row, whose programs sum up all inputs of some outputs."""

    outputs: int
    """Of a program."""
    warps: int


@dataclass(frozen=True, slots=True)
class Tiles:
    """A kernel for several rows, whose programs multiply tiles on matrix units."""

    rows: int
    outputs: int
    inputs: int
    """Of a tile."""
    warps: int
    stages: int
    """Tiles that are being read while one is multiplied."""
    shares: int = 1
    """Programs that share out the inputs of the same outputs."""

    def share(self, inputs: int) -> int:
        """So many inputs, whole tiles, that `shares` programs or fewer have all of them."""
        tiles = -(-inputs // self.inputs)
        return -(-tiles // self.shares) * self.inputs


@dataclass(frozen=True, slots=True)
class Dequantized:
    """PyTorch's product with the weight dequantised for it."""


Plan = Vectors | Tiles | Dequantized


class LowBitLinear(QuantizedLinear):
    """A linear map in few bits that a model answers with, never trained and never saved."""

    scales: Tensor
    codes_at_once: int
    """In 16 bytes, which a thread of a GPU reads at once."""
    plans: Sequence[tuple[int, Plan | None]] = ()
    """How products of up to so many rows are computed, ascending; None is the plain way."""

    def forward(self, x: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows outputs"]:
        """As `nn.Linear`, with a weight in few bits."""
        rows = x.reshape(-1, self.in_features)
        y = self.product(rows, self._plan(len(rows)))
        return y.view(*x.shape[:-1], self.out_features)

    def product(
        self, rows: Float[Tensor, "rows inputs"], plan: Plan | None
    ) -> Float[Tensor, "rows outputs"]:
        """With the bias, by a plan; None is this device's plain way."""
        if isinstance(plan, Vectors | Tiles):
            return self._fused(rows, plan)
        if isinstance(plan, Dequantized):
            return F.linear(rows, self.weight, self.bias)
        y = self._plain(rows)
        return y if self.bias is None else y + self.bias

    @property
    def fits_kernels(self) -> bool:
        """Whether the kernels in Triton know the shape: rows of whole loads."""
        return self.in_features % self.codes_at_once == 0

    def joined(self, others: Sequence["LowBitLinear"]) -> "LowBitLinear":
        """One map with the outputs of this one and of others, in this order: the same numbers."""
        parts = [self, *others]
        whole = type(self)(*self._room_for_all(parts))
        whole.codes = torch.cat([part.codes for part in parts])
        whole.scales = torch.cat([part.scales for part in parts], dim=-1)
        return whole

    @abstractmethod
    def _plain(self, rows: Float[Tensor, "rows inputs"]) -> Float[Tensor, "rows outputs"]:
        """The product without the bias, in plain PyTorch."""

    @abstractmethod
    def _fused(
        self, rows: Float[Tensor, "rows inputs"], plan: Vectors | Tiles
    ) -> Float[Tensor, "rows outputs"]:
        """The product with the bias, in Triton."""

    def _plan(self, rows: int) -> Plan | None:
        return next((plan for limit, plan in self.plans if rows <= limit), None)

    def _room_for_all(self, parts: Sequence["LowBitLinear"]) -> tuple[Tensor, Tensor | None]:
        """A weight without memory in the shape of all maps together, and their bias."""
        assert all(type(part) is type(self) for part in parts), "maps of several kinds"
        outputs = sum(part.out_features for part in parts)
        weight = torch.empty(outputs, self.in_features, dtype=self.dtype, device="meta")
        biases: list[Tensor] = [part.bias for part in parts if part.bias is not None]
        assert len(biases) in (0, len(parts)), "maps with and without biases"
        return weight, torch.cat(biases) if biases else None


def smallest_scale(dtype: torch.dtype) -> float:
    """A scale that no row of zeros is divided by 0 with, in any type."""
    return max(SMALLEST_SCALE, torch.finfo(dtype).tiny)
