"""Pictures resized along one axis with Pillow's whole-number arithmetic, to the last bit."""

import torch
import triton
import triton.language as tl
from jaxtyping import Int32, UInt8
from torch import Tensor

TILE = 1024
"""New values that one program computes."""


def resample(
    pixels: UInt8[Tensor, "outer old inner"],
    starts: Int32[Tensor, " new"],
    weights: Int32[Tensor, "taps new"],
    weight_bits: int,
) -> UInt8[Tensor, "outer new inner"]:
    """The middle axis with as many values as there are starts.

    A new value is the sum of the old ones from its start on, times its weights, which are whole
    numbers with so many bits behind the point; it is rounded, and cut off at 0 and 255.
    """
    outer, old, inner = pixels.shape
    taps, new = weights.shape
    out = torch.empty(outer, new, inner, dtype=torch.uint8, device=pixels.device)
    _resample[(triton.cdiv(out.numel(), TILE),)](
        pixels,
        starts,
        weights,
        out,
        out.numel(),
        old,
        new,
        inner,
        taps,
        weight_bits=weight_bits,
        tile=TILE,
        num_warps=4,
    )
    return out


@triton.jit(do_not_specialize=["values", "old", "new", "inner", "taps"])
def _resample(
    pixels: tl.tensor,
    starts: tl.tensor,
    weights: tl.tensor,
    out: tl.tensor,
    values: int,
    old: int,
    new: int,
    inner: int,
    taps: int,
    weight_bits: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """Some values of the result, wherever they lie."""
    value = tl.program_id(0) * tile + tl.arange(0, tile)
    is_inside = value < values
    within = value % inner
    place = (value // inner) % new
    before = (value // inner // new) * old
    start = tl.load(starts + place, mask=is_inside, other=0)
    total = tl.full([tile], 1 << (weight_bits - 1), tl.int32)
    for tap in range(taps):
        # Beyond the last pixel the weights are 0, whatever is read.
        source = tl.minimum(start + tap, old - 1)
        pixel = tl.load(pixels + (before + source) * inner + within, mask=is_inside, other=0)
        weight = tl.load(weights + tap * new + place, mask=is_inside, other=0)
        total += pixel.to(tl.int32) * weight
    rounded = tl.minimum(tl.maximum(total >> weight_bits, 0), 255)
    tl.store(out + value, rounded.to(tl.uint8), mask=is_inside)
