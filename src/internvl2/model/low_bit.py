"""Decoders in fewer bits while they answer: int8 and int4 weights, fp8 weights and inputs.

A decoder that writes one token after another reads all its weights for each, so that a step takes
as long as reading them does. Outputs have a scale each (int8, fp8), or each group of a row's inputs
has a scale and an offset (int4). Where no product of such numbers is known to be faster, weights
are dequantised for the moment of a product.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import gcd
from types import MappingProxyType
from typing import get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn

from internvl2.config import Quantization
from internvl2.model.internvl import InternVL
from internvl2.model.quantize import QuantizedLinear, quantize_decoder

INT8_ROWS, INT4_ROWS = 8, 256
"""Up to so many tokens a CPU's products with integer weights are faster than dequantising, which
takes longer from four bits (measured with 1 to 512: benchmarks/RESULTS.md)."""
GROUP = 64
"""Inputs of a row that share a scale in int4."""
KERNEL_GROUPS = (32, 64, 128, 256)
"""Sizes of groups that torch's product on a CPU knows."""
MIDDLE = 8
"""The four-bit code that stands for a group's offset."""
HIGHEST_FP8 = 448.0
SMALLEST_SCALE = 1e-12
FP8_CAPABILITY = (9, 0)


class Int8Linear(QuantizedLinear):
    """Weights in 8 bits, a scale for each output; inputs stay as they are."""

    scales: Tensor

    def __init__(
        self, weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None
    ):
        super().__init__(weight, bias)
        self.register_buffer("codes", torch.empty_like(weight, dtype=torch.int8))
        self.register_buffer("scales", weight.new_empty(self.out_features))
        # torch's product reads past the end of rows that are not whole vectors.
        self._fits_kernel = self.in_features % 32 == 0 and self.out_features % 32 == 0
        if not weight.is_meta:
            self.store(weight)

    def forward(self, x: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows outputs"]:
        """As `nn.Linear`, with the dequantised weight."""
        rows = x.reshape(-1, self.in_features)
        if self._fits_kernel and x.device.type == "cpu" and len(rows) <= INT8_ROWS:
            y = torch.ops.aten._weight_int8pack_mm(rows, self.codes, self.scales)
        else:
            y = F.linear(rows, self.codes.to(x.dtype)) * self.scales
        return _with_bias(y, self.bias).view(*x.shape[:-1], self.out_features)

    @property
    def weight(self) -> Float[Tensor, "outputs inputs"]:
        """The weight in the type to compute in, dequantised anew."""
        return (self.codes * self.scales.float()[:, None]).to(self.dtype)

    def store(self, weight: Float[Tensor, "outputs inputs"]) -> None:
        """Replace the weight, in place."""
        numbers = weight.detach().to(self.codes.device).float()
        self.scales.copy_((numbers.abs().amax(dim=1) / 127).clamp(min=_smallest(self.dtype)))
        # Codes are chosen for the scales as they are stored, so that their rounding is made up for.
        codes = (numbers / self.scales.float()[:, None]).round_().clamp_(-127, 127)
        self.codes.copy_(codes)


class Fp8Linear(QuantizedLinear):
    """Weights in fp8 with a scale for each output, inputs in fp8 with one for each token.

    On a GPU its matrix units multiply them; elsewhere the same numbers are multiplied in fp32.
    """

    scales: Tensor

    def __init__(
        self, weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None
    ):
        super().__init__(weight, bias)
        if self.in_features % 16 or self.out_features % 16:
            shape = f"{self.in_features} to {self.out_features}"
            raise ValueError(f"a matrix from {shape} numbers: fp8 needs multiples of 16; use int8")
        scales = torch.empty(1, self.out_features, dtype=torch.float32, device=weight.device)
        self.register_buffer("codes", torch.empty_like(weight, dtype=torch.float8_e4m3fn))
        self.register_buffer("scales", scales)
        if not weight.is_meta:
            self.store(weight)

    def forward(self, x: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows outputs"]:
        """The product of the rounded inputs and the rounded weight."""
        codes, scales = quantize_fp8(x.reshape(-1, self.in_features))
        if x.device.type == "cuda":
            y = torch.ops.aten._scaled_mm(
                codes,
                self.codes.t(),
                scale_a=scales,
                scale_b=self.scales,
                out_dtype=x.dtype,
                use_fast_accum=True,
            )
        else:
            y = (F.linear(codes.float(), self.codes.float()) * scales * self.scales).to(x.dtype)
        return _with_bias(y, self.bias).view(*x.shape[:-1], self.out_features)

    @property
    def weight(self) -> Float[Tensor, "outputs inputs"]:
        """The weight in the type to compute in, dequantised anew."""
        return (self.codes.float() * self.scales.T).to(self.dtype)

    def store(self, weight: Float[Tensor, "outputs inputs"]) -> None:
        """Replace the weight, in place."""
        codes, scales = quantize_fp8(weight.detach().to(self.codes.device))
        self.codes.copy_(codes)
        self.scales.copy_(scales.T)


@dataclass(frozen=True, slots=True)
class Groups:
    """Four-bit numbers whose values are (code - 8) * scale + offset."""

    codes: UInt8[Tensor, "outputs inputs"]
    """One in a byte, 0 to 15."""
    scales: Float[Tensor, "outputs groups"]
    offsets: Float[Tensor, "outputs groups"]


class Int4Linear(QuantizedLinear):
    """Weights in 4 bits, a scale and an offset for each group of a row; inputs stay as they are.

    Two outputs share a byte: blocks of 64 of them (32 on a CPU with shorter vectors) lie input by
    input, the first half of the block in the bytes' lower bits. That is how torch's product on a
    CPU reads them.
    """

    scales: Tensor

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
        self._fits_kernel = self._block == _kernel_block() and self.group in KERNEL_GROUPS
        shape = (self.out_features // self._block, self.in_features, self._block // 2)
        groups = self.in_features // self.group
        self.register_buffer("codes", weight.new_empty(shape, dtype=torch.uint8))
        self.register_buffer("scales", weight.new_empty(groups, self.out_features, 2))
        if not weight.is_meta:
            self.store(weight)

    def forward(self, x: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows outputs"]:
        """As `nn.Linear`, with the dequantised weight."""
        rows = x.reshape(-1, self.in_features)
        if self._fits_kernel and x.device.type == "cpu" and len(rows) <= INT4_ROWS:
            codes = self.codes.view(self.out_features, self.in_features // 2)
            product = torch.ops.aten._weight_int4pack_mm_for_cpu
            y = product(rows, codes, self.group, self.scales)
        else:
            y = F.linear(rows, self.weight)
        return _with_bias(y, self.bias).view(*x.shape[:-1], self.out_features)

    @property
    def weight(self) -> Float[Tensor, "outputs inputs"]:
        """The weight in the type to compute in, dequantised anew."""
        halves = torch.stack((self.codes & 15, self.codes >> 4), dim=1)
        codes = rearrange(halves, "blocks half i rows -> (blocks half rows) i").to(self.dtype)
        scales, offsets = rearrange(self.scales, "groups o two -> two o groups 1")
        grouped = rearrange(codes, "o (groups group) -> o groups group", group=self.group)
        return torch.addcmul(offsets, grouped - MIDDLE, scales).flatten(1)

    def store(self, weight: Float[Tensor, "outputs inputs"]) -> None:
        """Replace the weight, in place."""
        self.store_groups(
            quantize_groups(weight.detach().to(self.codes.device), self.group, self.dtype)
        )

    def store_groups(self, groups: Groups) -> None:
        """Replace the weight by one that was quantised before, in place."""
        pattern = "(blocks half rows) i -> half blocks i rows"
        lower, upper = rearrange(groups.codes, pattern, half=2, rows=self._block // 2)
        self.codes.copy_(lower | upper << 4)
        self.scales[..., 0].copy_(groups.scales.T)
        self.scales[..., 1].copy_(groups.offsets.T)


LINEARS: Mapping[Quantization, type[QuantizedLinear]] = MappingProxyType(
    {"fp8": Fp8Linear, "int8": Int8Linear, "int4": Int4Linear}
)


def quantize_for_answers(model: InternVL, quantization: Quantization) -> None:
    """Holds the matrices of the decoder's layers in fewer bits; everything else stays as it is."""
    quantize_decoder(model, LINEARS[quantization])


def quantization_of(model: nn.Module) -> Quantization | None:
    """How a model's decoder is held, None where it is plain."""
    for module in model.modules():
        for name, kind in LINEARS.items():
            if isinstance(module, kind):
                return name
    return None


def require_quantization(name: str, device: torch.device, dtype: torch.dtype) -> Quantization:
    """The quantisation of that name, if it exists and the device can multiply such numbers."""
    for known in get_args(Quantization):
        if name == known:
            break
    else:
        known = ", ".join(get_args(Quantization))
        raise ValueError(f"unknown quantization {name!r}; known: {known}")
    if known != "fp8":
        return known
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        raise ValueError(
            f"{device} does not multiply fp8 numbers: that needs an NVIDIA GPU of the Hopper "
            "generation or later; int8 works everywhere"
        )
    if dtype is not torch.bfloat16:
        name = str(dtype).removeprefix("torch.")
        raise ValueError(f"fp8 goes with bfloat16, not with {name}; give --dtype bfloat16, or int8")
    return known


def stored_bytes(module: nn.Module) -> int:
    """What a module's weights take, quantised ones in their few bits."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def quantize_fp8(
    rows: Float[Tensor, "rows columns"],
) -> tuple[Float[Tensor, "rows columns"], Float32[Tensor, "rows 1"]]:
    """Rows as fp8 numbers of the whole range, and what each row is to be multiplied with."""
    scales = rows.abs().amax(dim=1, keepdim=True).float() / HIGHEST_FP8
    scales = scales.clamp(min=SMALLEST_SCALE)
    codes = (rows / scales).clamp(-HIGHEST_FP8, HIGHEST_FP8)
    return codes.to(torch.float8_e4m3fn), scales


def quantize_groups(
    weight: Float[Tensor, "outputs inputs"], group: int, dtype: torch.dtype
) -> Groups:
    """Each group's range divided into 16; scales and offsets are rounded to `dtype` first."""
    grouped = rearrange(weight.float(), "o (groups group) -> o groups group", group=group)
    lowest, highest = grouped.aminmax(dim=-1)
    scales = ((highest - lowest) / 15).clamp(min=_smallest(dtype)).to(dtype)
    offsets = (lowest + MIDDLE * scales.float()).to(dtype)
    codes = (grouped - offsets.float()[..., None]) / scales.float()[..., None] + MIDDLE
    return Groups(codes.round_().clamp_(0, 15).flatten(1).to(torch.uint8), scales, offsets)


def _with_bias(
    y: Float[Tensor, "rows outputs"], bias: Float[Tensor, " outputs"] | None
) -> Float[Tensor, "rows outputs"]:
    return y if bias is None else y + bias


def _smallest(dtype: torch.dtype) -> float:
    """A scale that no row of zeros is divided by 0 with, in any type."""
    return max(SMALLEST_SCALE, torch.finfo(dtype).tiny)


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
