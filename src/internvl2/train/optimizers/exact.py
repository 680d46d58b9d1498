"""An fp32 number as a bf16 weight and a 16-bit residual: 4 bytes together, and nothing is lost.

The upper half of an fp32 number's bits is a bf16 number. The weight is that half, rounded to the
nearest; the residual is what, added to the weight's bits shifted up, gives the number back. So the
model computes with the best bf16 weights there are while the optimizer moves fp32 ones.
"""

from dataclasses import dataclass

import torch
from jaxtyping import BFloat16, Float32, Int16
from torch import Tensor

HALF, ROUNDING = 2**16, 2**15


@dataclass(frozen=True)
class Halves:
    """An fp32 tensor in two 16-bit ones."""

    weight: BFloat16[Tensor, "*axes"]
    residual: Int16[Tensor, "*axes"]


def split(master: Float32[Tensor, "*axes"]) -> Halves:
    """The two halves of finite numbers; ties round away from 0."""
    bits = master.view(torch.int32)
    residual = ((bits + ROUNDING) & (HALF - 1)) - ROUNDING
    weight = ((bits - residual) >> 16).to(torch.int16).view(torch.bfloat16)
    return Halves(weight, residual.to(torch.int16))


def join(
    weight: BFloat16[Tensor, "*axes"], residual: Int16[Tensor, "*axes"]
) -> Float32[Tensor, "*axes"]:
    """The numbers that were split."""
    return (weight.view(torch.int16).to(torch.int32) * HALF + residual).view(torch.float32)
