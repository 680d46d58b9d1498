"""The sum of what programs found that share out the inputs of one product."""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float32
from torch import Tensor

TILE = 256


def add_parts(
    parts: Float32[Tensor, "shares rows outputs"],
    scales: Float[Tensor, "*ones outputs"] | None,
    bias: Float[Tensor, " outputs"] | None,
    dtype: torch.dtype,
) -> Float[Tensor, "rows outputs"]:
    """All parts added up in their order, times the outputs' scales, plus their bias."""
    shares, rows, outputs = parts.shape
    out = torch.empty(rows, outputs, dtype=dtype, device=parts.device)
    programs = (triton.cdiv(outputs, TILE), rows)
    _add[programs](
        parts,
        parts if scales is None else scales,
        parts if bias is None else bias,
        out,
        rows,
        outputs,
        shares=shares,
        has_scales=scales is not None,
        has_bias=bias is not None,
        tile=TILE,
        num_warps=4,
    )
    return out


@triton.jit(do_not_specialize=["rows"])
def _add(
    parts: tl.tensor,
    scales: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    rows: int,
    outputs: int,
    shares: tl.constexpr,
    has_scales: tl.constexpr,
    has_bias: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """Some outputs of one row."""
    output = tl.program_id(0) * tile + tl.arange(0, tile)
    is_inside = output < outputs
    row = tl.program_id(1).to(tl.int64)
    total = tl.zeros([tile], tl.float32)
    for share in tl.static_range(shares):
        at = (row + share * rows) * outputs + output
        total += tl.load(parts + at, mask=is_inside, other=0.0)
    if has_scales:
        total *= tl.load(scales + output, mask=is_inside, other=0.0).to(tl.float32)
    if has_bias:
        total += tl.load(bias + output, mask=is_inside, other=0.0).to(tl.float32)
    tl.store(out + row * outputs + output, total.to(out.dtype.element_ty), mask=is_inside)
