"""Linear maps with four-bit weights, a scale and an offset for each group of a row's inputs.

How codes lie in memory depends on what reads them: torch's product on a CPU wants them in blocks of
outputs, the kernels for CUDA in rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import gcd

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from internvl2.model.low_bit_linear import LowBitLinear, Tiles, Vectors, smallest_scale

INT4_ROWS = 256
"""Up to so many tokens a CPU's product with four-bit weights is faster than dequantising (measured
with 1 to 512: benchmarks/RESULTS.md)."""
GROUP = 64
"""Inputs of a row that share a scale."""
KERNEL_GROUPS = (32, 64, 128, 256)
"""Sizes of groups that torch's product on a CPU knows."""
MIDDLE = 8
"""The four-bit code that stands for a group's offset."""


@dataclass(frozen=True, slots=True)
class Groups:
    """Four-bit numbers whose values are (code - 8) * scale + offset."""

    codes: UInt8[Tensor, "outputs inputs"]
    """One in a byte, 0 to 15."""
    scales: Float[Tensor, "outputs groups"]
    offsets: Float[Tensor, "outputs groups"]


@dataclass(frozen=True, slots=True)
class BlockOrder:
    """Two outputs share a byte: blocks of outputs lie input by input.

    The first half of a block is in the bytes' lower bits. Scales lie group by group.
    """

    block: int
    """Outputs; 64, or 32 on a CPU with shorter vectors."""

    def pack(self, groups: Groups, codes: Tensor, scales: Tensor) -> None:
        """Fills both in this order, whatever their shapes."""
        pattern = "(blocks half rows) i -> half (blocks i rows)"
        lower, upper = rearrange(groups.codes, pattern, half=2, rows=self.block // 2)
        codes.view(-1).copy_(lower | upper << 4)
        both = torch.stack((groups.scales, groups.offsets))
        scales.view(-1).copy_(rearrange(both, "two o groups -> (groups o two)"))

    def unpack(self, codes: Tensor, scales: Tensor) -> Groups:
        """What was packed."""
        outputs = scales.shape[1]
        inputs = 2 * codes.numel() // outputs
        halves = torch.stack((codes.view(-1) & 15, codes.view(-1) >> 4))
        pattern = "half (blocks i rows) -> (blocks half rows) i"
        numbers = rearrange(halves, pattern, i=inputs, rows=self.block // 2)
        pattern = "(groups o two) -> two o groups"
        return Groups(numbers, *rearrange(scales.view(-1), pattern, o=outputs, two=2))


@dataclass(frozen=True, slots=True)
class RowOrder:
    """Outputs lie one behind the other, eight inputs in a word of 32 bits, lowest bits first.

    Four words have 32 inputs: the first word has the first of every four, and so on, so that one
    place of the four words stands for four neighbours. Scales lie output by output.
    """

    def pack(self, groups: Groups, codes: Tensor, scales: Tensor) -> None:
        """Fills both in this order, whatever their shapes."""
        pattern = "o (chunks pairs two words) -> two (o chunks words pairs)"
        lower, upper = rearrange(groups.codes, pattern, pairs=4, two=2, words=4)
        codes.view(-1).copy_(lower | upper << 4)
        both = torch.stack((groups.scales, groups.offsets))
        scales.view(-1).copy_(rearrange(both, "two o groups -> (o groups two)"))

    def unpack(self, codes: Tensor, scales: Tensor) -> Groups:
        """What was packed."""
        outputs = scales.shape[1]
        halves = torch.stack((codes.view(-1) & 15, codes.view(-1) >> 4))
        pattern = "two (o chunks words pairs) -> o (chunks pairs two words)"
        numbers = rearrange(halves, pattern, o=outputs, words=4, pairs=4)
        pattern = "(o groups two) -> two o groups"
        return Groups(numbers, *rearrange(scales.view(-1), pattern, o=outputs, two=2))


class Int4Linear(LowBitLinear):
    """Weights in 4 bits, a scale and an offset for each group of a row; inputs stay as they are.

    Moved between a CUDA device and another, codes take the order that is read there.
    """

    codes_at_once = 32

    def __init__(
        self,
        weight: Float[Tensor, "outputs inputs"],
        bias: Float[Tensor, " outputs"] | None,
        group: int | None = None,
    ):
        super().__init__(weight, bias)
        self.group = group or gcd(self.in_features, GROUP)
        self._block = gcd(self.out_features, _kernel_block() or GROUP)
        if self.in_features % self.group or self.group < 8 or self._block % 2:
            shape = f"{self.in_features} to {self.out_features}"
            raise ValueError(
                f"a matrix from {shape} numbers does not divide into groups of {self.group} inputs "
                "and pairs of outputs, which int4 needs; use int8"
            )
        self._fits_cpu = self._block == _kernel_block() and self.group in KERNEL_GROUPS
        groups = self.in_features // self.group
        codes = weight.new_empty(self.out_features // 2, self.in_features, dtype=torch.uint8)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", weight.new_empty(groups, self.out_features, 2))
        if not weight.is_meta:
            self.store(weight)

    @property
    def weight(self) -> Float[Tensor, "outputs inputs"]:
        """The weight in the type to compute in, dequantised anew."""
        groups = self._order.unpack(self.codes, self.scales)
        codes = rearrange(groups.codes, "o (groups group) -> o groups group", group=self.group)
        scales, offsets = (rearrange(x, "o g -> o g 1") for x in (groups.scales, groups.offsets))
        return torch.addcmul(offsets, codes.to(self.dtype) - MIDDLE, scales).flatten(1)

    @property
    def fits_kernels(self) -> bool:
        """Whether the kernels in Triton know the shape: groups of 32, 64, 128 and so on."""
        is_power = self.group & (self.group - 1) == 0
        return super().fits_kernels and is_power and self.group >= self.codes_at_once

    def store(self, weight: Float[Tensor, "outputs inputs"]) -> None:
        """Replace the weight, in place."""
        self.store_groups(
            quantize_groups(weight.detach().to(self.codes.device), self.group, self.dtype)
        )

    def store_groups(self, groups: Groups) -> None:
        """Replace the weight by one that was quantised before, in place."""
        self._order.pack(groups, self.codes, self.scales)

    def joined(self, others: Sequence[LowBitLinear]) -> "Int4Linear":
        """One map with the outputs of this one and of others, in this order: the same numbers."""
        parts = [part for part in (self, *others) if isinstance(part, Int4Linear)]
        assert all(part.group == self.group for part in parts), "groups of several sizes"
        whole = Int4Linear(*self._room_for_all([self, *others]), self.group)
        whole.codes = self.codes.new_empty(whole.codes.shape)
        whole.scales = self.scales.new_empty(whole.scales.shape)
        groups = [part._order.unpack(part.codes, part.scales) for part in parts]
        columns = ("codes", "scales", "offsets")
        whole.store_groups(Groups(*(torch.cat([getattr(g, c) for g in groups]) for c in columns)))
        return whole

    def _plain(self, rows: Float[Tensor, "rows inputs"]) -> Float[Tensor, "rows outputs"]:
        if self._fits_cpu and rows.device.type == "cpu" and len(rows) <= INT4_ROWS:
            codes = self.codes.view(self.out_features, self.in_features // 2)
            product = torch.ops.aten._weight_int4pack_mm_for_cpu
            return product(rows, codes, self.group, self.scales)
        return F.linear(rows, self.weight)

    def _fused(
        self, rows: Float[Tensor, "rows inputs"], plan: Vectors | Tiles
    ) -> Float[Tensor, "rows outputs"]:
        from internvl2.model.triton_kernels import four_bit

        words = self.codes.view(self.out_features, -1).view(torch.int32)
        scales = self.scales.view(self.out_features, -1, 2)
        if isinstance(plan, Vectors):
            return four_bit.vector_product(rows, words, scales, self.bias, plan)
        return four_bit.tile_product(rows, words, scales, self.bias, plan)

    @property
    def _has_rows(self) -> bool:
        """Whether the codes are in the order of the kernels for CUDA."""
        return self.fits_kernels and self.codes.device.type == "cuda"

    @property
    def _order(self) -> BlockOrder | RowOrder:
        return RowOrder() if self._has_rows else BlockOrder(self._block)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Int4Linear":
        before, order = self.codes.device.type, self._order
        super()._apply(fn, recurse)
        if self._order != order and "meta" not in (before, self.codes.device.type):
            self.store_groups(order.unpack(self.codes, self.scales))
        return self


def quantize_groups(
    weight: Float[Tensor, "outputs inputs"], group: int, dtype: torch.dtype
) -> Groups:
    """Each group's range divided into 16; scales and offsets are rounded to `dtype` first."""
    grouped = rearrange(weight.float(), "o (groups group) -> o groups group", group=group)
    lowest, highest = grouped.aminmax(dim=-1)
    scales = ((highest - lowest) / 15).clamp(min=smallest_scale(dtype)).to(dtype)
    offsets = (lowest + MIDDLE * scales.float()).to(dtype)
    codes = (grouped - offsets.float()[..., None]) / scales.float()[..., None] + MIDDLE
    return Groups(codes.round_().clamp_(0, 15).flatten(1).to(torch.uint8), scales, offsets)


@cache
def _kernel_block() -> int | None:
    """In blocks of how many outputs torch's product on this CPU reads four-bit weights.

    Which ones share a byte depends on the CPU's vectors, so torch is asked; None where it is in an
    order of its own.
    """
    for block in (GROUP, GROUP // 2):
        codes = torch.arange(block * 32, dtype=torch.int32, device="cpu").mul_(2654435761 % 2**15)
        codes = (codes >> 7).remainder_(16).view(block, 32)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 2)
        lower, upper = rearrange(codes, "(half rows) i -> half i rows", half=2)
        if torch.equal(packed.flatten(), (lower | upper << 4).flatten().to(torch.uint8)):
            return block
    return None
