"""SiLU of the gate times the other half of a joined product, in one kernel."""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

TILE = 1024


def gate(product: Float[Tensor, "tokens both"]) -> Float[Tensor, "tokens inner"]:
    """SiLU of a row's first half, times its second half."""
    rows, both = product.shape
    product = product.contiguous()
    out = torch.empty(rows, both // 2, dtype=product.dtype, device=product.device)
    grid = (rows, triton.cdiv(both // 2, TILE))
    _gate[grid](product, out, inner=both // 2, tile=TILE, num_warps=4)
    return out


@triton.jit
def _gate(product: tl.tensor, out: tl.tensor, inner: tl.constexpr, tile: tl.constexpr) -> None:
    """A part of one row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * tile + tl.arange(0, tile)
    is_inside = column < inner
    at = row * (2 * inner) + column
    opening = tl.load(product + at, mask=is_inside, other=0.0).to(tl.float32)
    up = tl.load(product + at + inner, mask=is_inside, other=0.0).to(tl.float32)
    numbers = out.dtype.element_ty
    result = gated_by(opening, up, numbers)
    tl.store(out + row * inner + column, result.to(numbers), mask=is_inside)


@triton.jit
def gated_by(opening: tl.tensor, up: tl.tensor, kind: tl.constexpr) -> tl.tensor:
    """Numbers in fp32, rounded where plain PyTorch rounds: where it has a tensor of its own."""
    opening = opening.to(kind).to(tl.float32)
    opened = (opening * tl.sigmoid(opening)).to(kind).to(tl.float32)
    return opened * up.to(kind).to(tl.float32)
