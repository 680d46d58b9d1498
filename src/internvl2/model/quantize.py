"""Frozen linear maps in about four bits a weight: NF4 with quantised scales (QLoRA, 2305.14314).

Weights are cut into blocks of 64. Each is a scale, its largest magnitude, times values of a code
book that suits normally distributed numbers. Scales are stored in 8 bits: their distance from the
mean of all, times a scale for 256 of them. That is 0.516 bytes a weight. All of it is plain torch.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn

from internvl2.model.internvl import InternVL

BLOCK = 64
GROUP = 256
"""Scales that are quantised together."""

NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""Values of the four-bit codes (appendix E of the paper)."""


@dataclass(frozen=True, slots=True)
class Nf4:
    """The tensors that a quantised one is stored in; last block and last group are filled up."""

    codes: UInt8[Tensor, "blocks pairs"]
    """Two in a byte, the first in its upper half."""
    scales: UInt8[Tensor, "groups group"]
    """Codes of eight-bit floats."""
    scale_scales: Float32[Tensor, "groups 1"]
    scale_offset: Float32[Tensor, ""]
    pair_values: Float32[Tensor, "bytes 2"]
    """The two values that each byte of codes stands for."""
    scale_values: Float32[Tensor, " bytes"]


STORED = tuple(field.name for field in fields(Nf4))


@torch.no_grad()
def quantize_nf4(tensor: Float[Tensor, "..."]) -> Nf4:
    """The nearest tensor that can be stored so."""
    pair_values = torch.tensor(list(product(NF4, NF4)), device=tensor.device)
    scale_values = torch.tensor(_eight_bit_floats(), device=tensor.device)
    blocks = _cut(tensor.float().flatten(), BLOCK)
    largest = blocks.abs().amax(dim=1)
    offset = largest.mean()
    groups = _cut(largest - offset, GROUP)
    scale_scales = groups.abs().amax(dim=1, keepdim=True)
    scales = _nearest(groups / scale_scales, scale_values)
    # The codes are chosen for the scales as they are stored, so that their error is made up for.
    found = _scales(scales, scale_scales, offset, scale_values)[: len(blocks)]
    codes = _nearest(blocks / found, pair_values[: len(NF4), 1])
    codes = codes[:, 0::2] * len(NF4) + codes[:, 1::2]
    return Nf4(codes, scales, scale_scales, offset, pair_values, scale_values)


def dequantize_nf4(stored: Nf4, shape: torch.Size, dtype: torch.dtype) -> Float[Tensor, "..."]:
    """A tensor of this shape, computed in fp32 and given in `dtype`."""
    scales = _scales(stored.scales, stored.scale_scales, stored.scale_offset, stored.scale_values)
    # One look-up gives two weights, and an index of 32 bits serves them both.
    values = stored.pair_values.index_select(0, stored.codes.flatten().int())
    values = rearrange(values, "(blocks pairs) two -> blocks (pairs two)", pairs=BLOCK // 2)
    values *= scales[: len(values)]
    return values.to(dtype).flatten()[: shape.numel()].view(shape)


def rounded(weight: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """What a weight becomes when it is quantised and dequantised, in the same type."""
    return dequantize_nf4(quantize_nf4(weight), weight.shape, weight.dtype)


class QuantizedLinear(nn.Module, ABC):
    """A linear map whose weight is stored in few bits and never trained.

    One that was made from a weight without memory has no numbers until `store` is called.
    """

    codes: Tensor

    def __init__(
        self, weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None
    ):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.dtype = weight.dtype
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @property
    @abstractmethod
    def weight(self) -> Float[Tensor, "outputs inputs"]:
        """The weight in the type to compute in, dequantised anew."""

    @abstractmethod
    def store(self, weight: Float[Tensor, "outputs inputs"]) -> None:
        """Replace the weight, in place."""


class Nf4Linear(QuantizedLinear):
    """A linear map in NF4, for a model that learns through adapters."""

    scale_scales: Tensor

    def __init__(
        self, weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None
    ):
        super().__init__(weight, bias)
        stored = _room(weight.numel(), weight.device)
        for name in STORED:
            self.register_buffer(name, getattr(stored, name))
        if not weight.is_meta:
            self.store(weight)

    def forward(self, x: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows outputs"]:
        """As `nn.Linear`, with the dequantised weight."""
        return self.product(x, self.weight, self.bias)

    @property
    def weight(self) -> Float[Tensor, "outputs inputs"]:
        """The weight in the type to compute in, dequantised anew."""
        if self.codes.is_meta:  # where arithmetic makes PyTorch import its compiler: two seconds
            return self.codes.new_empty(self._shape, dtype=self.dtype)
        return dequantize_nf4(Nf4(*self._tensors()), self._shape, self.dtype)

    def store(self, weight: Float[Tensor, "outputs inputs"]) -> None:
        """Replace the weight, in place."""
        assert weight.shape == self._shape, (weight.shape, self._shape)
        stored = quantize_nf4(weight.detach().to(self.codes.device))
        for name in STORED:
            getattr(self, name).copy_(getattr(stored, name))

    def product(
        self,
        x: Float[Tensor, "*rows inputs"],
        weight: Float[Tensor, "outputs inputs"],
        bias: Float[Tensor, " outputs"] | None = None,
    ) -> Float[Tensor, "*rows outputs"]:
        """`forward` for a caller that has dequantised the weight already."""
        result = _Product.apply(x, weight, bias, *self._tensors())
        assert isinstance(result, Tensor)
        return result

    def _tensors(self) -> list[Tensor]:
        if self.scale_scales.dtype != torch.float32:
            raise ValueError(
                f"the scales of a quantised weight were converted to {self.scale_scales.dtype}; "
                "choose a model's type before it is quantised"
            )
        return [getattr(self, name) for name in STORED]

    @property
    def _shape(self) -> torch.Size:
        return torch.Size((self.out_features, self.in_features))


def linear_maps(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """All linear maps within a module: what holds each, and under which name."""
    return [
        (holder, name)
        for holder in module.modules()
        for name, child in holder.named_children()
        if isinstance(child, nn.Linear | QuantizedLinear)
    ]


def quantize_decoder(model: InternVL, kind: type[QuantizedLinear] = Nf4Linear) -> None:
    """Quantise the linear maps of the decoder's layers; its embedding, norms and head stay.

    This comes before adapters are added. Without memory the maps wait for `store_quantized`.
    """
    for holder, name in linear_maps(model.decoder.layers):
        linear = getattr(holder, name)
        setattr(holder, name, kind(linear.weight.detach(), linear.bias))


def store_quantized(
    weights: Iterable[tuple[str, Tensor]], model: nn.Module
) -> Iterator[tuple[str, Tensor]]:
    """Whole weights by their names in `model`, less those that it quantises, which it stores."""
    quantized = {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if isinstance(module, QuantizedLinear)
    }
    for name, tensor in weights:
        if name in quantized:
            quantized.pop(name).store(tensor)
        else:
            yield name, tensor
    assert not quantized, list(quantized)


class _Product(torch.autograd.Function):
    """A linear map that dequantises its weight again going back, rather than keep it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *stored: Tensor
    ) -> Tensor:
        ctx.shape = weight.shape
        ctx.save_for_backward(*stored)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), stored = grads, Nf4(*ctx.saved_tensors)
        # A compiler sees that both ways need the same weight, and would keep it. So here the values
        # depend on the gradient, as far as it can tell.
        first = grad.flatten()[0]
        values = torch.where(first == first, stored.pair_values, first)
        weight = dequantize_nf4(replace(stored, pair_values=values), ctx.shape, grad.dtype)
        return grad @ weight, *[None] * (2 + len(STORED))


def _room(count: int, device: torch.device) -> Nf4:
    """For so many numbers."""
    blocks = -(-count // BLOCK)
    groups = -(-blocks // GROUP)
    return Nf4(
        torch.empty(blocks, BLOCK // 2, dtype=torch.uint8, device=device),
        torch.empty(groups, GROUP, dtype=torch.uint8, device=device),
        torch.empty(groups, 1, device=device),
        torch.empty((), device=device),
        torch.empty(len(NF4) ** 2, 2, device=device),
        torch.empty(256, device=device),
    )


def _scales(
    codes: UInt8[Tensor, "groups group"],
    scale_scales: Float32[Tensor, "groups 1"],
    offset: Float32[Tensor, ""],
    values: Float32[Tensor, " bytes"],
) -> Float32[Tensor, "scales 1"]:
    """A scale for each block, and more where the last group is filled up."""
    numbers = values.index_select(0, codes.flatten().int()).view(codes.shape)
    return (numbers * scale_scales + offset).view(-1, 1)


def _nearest(
    numbers: Float32[Tensor, "rows columns"], values: Float32[Tensor, " codes"]
) -> UInt8[Tensor, "rows columns"]:
    """Codes of the nearest of ascending values; the last one where 0 was divided by 0."""
    middles = (values[1:] + values[:-1]) / 2
    return torch.bucketize(numbers, middles, out_int32=True).to(torch.uint8)


def _cut(numbers: Float32[Tensor, " count"], size: int) -> Float32[Tensor, "rows size"]:
    """Rows of a size, the last one filled up with zeros."""
    return F.pad(numbers, (0, -len(numbers) % size)).view(-1, size)


def _eight_bit_floats() -> list[float]:
    """All numbers of a sign, 4 bits of exponent and 3 of mantissa, ascending; the largest is 1."""
    small = [mantissa / 8 * 2.0**-6 for mantissa in range(8)]
    rest = [(1 + m / 8) * 2.0 ** (e - 7) for e, m in product(range(1, 16), range(8))]
    sizes = [size / rest[-1] for size in (*small, *rest)]
    return [*(-size for size in reversed(sizes)), *sizes]
