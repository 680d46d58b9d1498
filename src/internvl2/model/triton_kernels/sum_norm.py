"""The sum of a stream and what a layer adds to it, and the RMS norm of that sum, in one kernel."""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor


def sum_norm(
    x: Float[Tensor, "tokens dim"],
    added: Float[Tensor, "tokens dim"],
    weight: Float[Tensor, " dim"],
    eps: float,
) -> tuple[Float[Tensor, "tokens dim"], Float[Tensor, "tokens dim"]]:
    """The sum, rounded to the stream's type, and its norm."""
    rows, dim = x.shape
    x, added = x.contiguous(), added.contiguous()
    total, normed = torch.empty_like(x), torch.empty_like(x)
    width = triton.next_power_of_2(dim)
    _sum_norm[(rows,)](
        x, added, weight, total, normed, eps, dim=dim, width=width, num_warps=warps_for(width)
    )
    return total, normed


def warps_for(width: int) -> int:
    """So many that each thread has 16 to 32 numbers of a row."""
    return max(4, min(16, width // 512))


@triton.jit
def _sum_norm(
    x: tl.tensor,
    added: tl.tensor,
    weight: tl.tensor,
    total: tl.tensor,
    normed: tl.tensor,
    eps: float,
    dim: tl.constexpr,
    width: tl.constexpr,
) -> None:
    """One row."""
    column = tl.arange(0, width)
    is_inside = column < dim
    at = tl.program_id(0).to(tl.int64) * dim + column
    one = tl.load(x + at, mask=is_inside, other=0.0).to(tl.float32)
    other = tl.load(added + at, mask=is_inside, other=0.0).to(tl.float32)
    numbers = total.dtype.element_ty
    # What is normed is the sum as the next layer will read it.
    rounded = (one + other).to(numbers)
    tl.store(total + at, rounded, mask=is_inside)
    row = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(row * row, 0) / dim + eps)
    factor = tl.load(weight + column, mask=is_inside, other=0.0).to(tl.float32)
    tl.store(normed + at, (row * scale * factor).to(numbers), mask=is_inside)
