"""Decoders in fewer bits while they answer: int8 and int4 weights, fp8 weights and inputs.

A decoder that writes one token after another reads all its weights for each, so that a step takes
as long as reading them does. Outputs have a scale each (int8, fp8), or each group of a row's inputs
has a scale and an offset (int4, in `int4.py`). Where no product of such numbers is known to be
faster, weights are dequantised for the moment of a product.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Shaped
from torch import Tensor, nn

from internvl2.config import Quantization
from internvl2.model.int4 import Int4Linear
from internvl2.model.internvl import InternVL
from internvl2.model.joined import RowMatrix
from internvl2.model.low_bit_linear import (
    SMALLEST_SCALE,
    LowBitLinear,
    Tiles,
    Vectors,
    smallest_scale,
)
from internvl2.model.quantize import quantize_decoder

INT8_ROWS = 8
"""Up to so many tokens a CPU's product with int8 weights is faster than dequantising (measured with
1 to 512: benchmarks/RESULTS.md)."""
HIGHEST_FP8 = 448.0
FP8_CAPABILITY = (9, 0)


class Int8Linear(LowBitLinear):
    """Weights in 8 bits, a scale for each output; inputs stay as they are."""

    codes_at_once = 16

    def __init__(
        self, weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None
    ):
        super().__init__(weight, bias)
        self.register_buffer("codes", torch.empty_like(weight, dtype=torch.int8))
        self.register_buffer("scales", weight.new_empty(self.out_features))
        # torch's product reads past the end of rows that are not whole vectors.
        self._fits_cpu = self.in_features % 32 == 0 and self.out_features % 32 == 0
        if not weight.is_meta:
            self.store(weight)

    @property
    def weight(self) -> Float[Tensor, "outputs inputs"]:
        """The weight in the type to compute in, dequantised anew."""
        return (self.codes * self.scales.float()[:, None]).to(self.dtype)

    def store(self, weight: Float[Tensor, "outputs inputs"]) -> None:
        """Replace the weight, in place."""
        numbers = weight.detach().to(self.codes.device).float()
        self.scales.copy_((numbers.abs().amax(dim=1) / 127).clamp(min=smallest_scale(self.dtype)))
        # Codes are chosen for the scales as they are stored, so that their rounding is made up for.
        codes = (numbers / self.scales.float()[:, None]).round_().clamp_(-127, 127)
        self.codes.copy_(codes)

    @property
    def matrix(self) -> RowMatrix:
        """Codes, bias and scales, for kernels that read them row by row."""
        return RowMatrix(self.codes, self.bias, self.scales)

    def _plain(self, rows: Float[Tensor, "rows inputs"]) -> Float[Tensor, "rows outputs"]:
        if self._fits_cpu and rows.device.type == "cpu" and len(rows) <= INT8_ROWS:
            return torch.ops.aten._weight_int8pack_mm(rows, self.codes, self.scales)
        return F.linear(rows, self.codes.to(rows.dtype)) * self.scales

    def _fused(
        self, rows: Float[Tensor, "rows inputs"], plan: Vectors | Tiles
    ) -> Float[Tensor, "rows outputs"]:
        return _eight_bit(rows, self.codes, self.scales, self.bias, plan)


class Fp8Linear(LowBitLinear):
    """Weights in fp8 with a scale for each output, inputs in fp8 with one for each token.

    On a GPU its matrix units multiply them; elsewhere the same numbers are multiplied in fp32. The
    kernels for few tokens leave inputs as they are, which is nearer to the plain map.
    """

    codes_at_once = 16

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

    @property
    def weight(self) -> Float[Tensor, "outputs inputs"]:
        """The weight in the type to compute in, dequantised anew."""
        return (self.codes.float() * self.scales.T).to(self.dtype)

    def store(self, weight: Float[Tensor, "outputs inputs"]) -> None:
        """Replace the weight, in place."""
        codes, scales = quantize_fp8(weight.detach().to(self.codes.device))
        self.codes.copy_(codes)
        self.scales.copy_(scales.T)

    @property
    def matrix(self) -> RowMatrix:
        """Codes, bias and scales, for kernels that read them row by row."""
        return RowMatrix(self.codes, self.bias, self.scales)

    def _plain(self, rows: Float[Tensor, "rows inputs"]) -> Float[Tensor, "rows outputs"]:
        codes, scales = quantize_fp8(rows)
        if rows.device.type != "cuda":
            y = F.linear(codes.float(), self.codes.float()) * scales * self.scales
            return y.to(rows.dtype)
        return torch.ops.aten._scaled_mm(
            codes,
            self.codes.t(),
            scale_a=scales,
            scale_b=self.scales,
            out_dtype=rows.dtype,
            use_fast_accum=True,
        )

    def _fused(
        self, rows: Float[Tensor, "rows inputs"], plan: Vectors | Tiles
    ) -> Float[Tensor, "rows outputs"]:
        return _eight_bit(rows, self.codes, self.scales, self.bias, plan)


LINEARS: Mapping[Quantization, type[LowBitLinear]] = MappingProxyType(
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


def _eight_bit(
    rows: Float[Tensor, "rows inputs"],
    codes: Shaped[Tensor, "outputs inputs"],
    scales: Float[Tensor, "*ones outputs"],
    bias: Float[Tensor, " outputs"] | None,
    plan: Vectors | Tiles,
) -> Float[Tensor, "rows outputs"]:
    from internvl2.model.triton_kernels import eight_bit

    if isinstance(plan, Vectors):
        return eight_bit.vector_product(rows, codes, scales, bias, plan)
    return eight_bit.tile_product(rows, codes, scales, bias, plan)
