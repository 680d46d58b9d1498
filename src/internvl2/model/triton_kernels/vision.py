"""What a vision layer does between its products: one pass over memory each instead of several."""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

TILE = 1024
"""Numbers of a row that one program of the GELU takes."""


def scaled_sum_norm(
    x: Float[Tensor, "*rows dim"],
    branch: Float[Tensor, "*rows dim"],
    scale: Float[Tensor, " dim"],
    weight: Float[Tensor, " dim"],
    bias: Float[Tensor, " dim"] | None,
    eps: float,
) -> tuple[Float[Tensor, "*rows dim"], Float[Tensor, "*rows dim"]]:
    """A stream with a scaled branch added to it, and the norm of that.

    With a bias it is a layer norm, without one an RMS norm.
    """
    x, branch = x.contiguous(), branch.contiguous()
    total, normed = torch.empty_like(x), torch.empty_like(x)
    dim = x.shape[-1]
    width = triton.next_power_of_2(dim)
    _scaled_sum_norm[(x.numel() // dim,)](
        x,
        branch,
        scale,
        weight,
        weight if bias is None else bias,
        total,
        normed,
        eps,
        dim=dim,
        width=width,
        is_centred=bias is not None,
        num_warps=_warps_for(width),
    )
    return total, normed


def biased_gelu(
    product: Float[Tensor, "*rows inner"], bias: Float[Tensor, " inner"]
) -> Float[Tensor, "*rows inner"]:
    """The exact (erf) GELU of a product and its bias; overwrites the product."""
    inner = product.shape[-1]
    grid = (product.numel() // inner, triton.cdiv(inner, TILE))
    _biased_gelu[grid](product, bias, inner=inner, tile=TILE, num_warps=4)
    return product


def norm_queries_and_keys(
    product: Float[Tensor, "*rows three"],
    q_weight: Float[Tensor, " dim"],
    k_weight: Float[Tensor, " dim"],
    eps: float,
) -> Float[Tensor, "*rows three"]:
    """RMS norms of the queries and of the keys, over all heads together; values stay.

    Overwrites the product.
    """
    dim = product.shape[-1] // 3
    width = triton.next_power_of_2(dim)
    _norm_part[(product.numel() // (3 * dim), 2)](
        product, q_weight, k_weight, eps, dim=dim, width=width, num_warps=_warps_for(width)
    )
    return product


def _warps_for(width: int) -> int:
    """So many that each thread has 8 to 16 numbers of a row."""
    return max(1, min(8, width // 256))


@triton.jit
def _scaled_sum_norm(
    x: tl.tensor,
    branch: tl.tensor,
    factors: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    total: tl.tensor,
    normed: tl.tensor,
    eps: float,
    dim: tl.constexpr,
    width: tl.constexpr,
    is_centred: tl.constexpr,
) -> None:
    """One row."""
    column = tl.arange(0, width)
    is_inside = column < dim
    at = tl.program_id(0).to(tl.int64) * dim + column
    numbers = total.dtype.element_ty
    old = tl.load(x + at, mask=is_inside, other=0.0).to(tl.float32)
    new = tl.load(branch + at, mask=is_inside, other=0.0).to(tl.float32)
    factor = tl.load(factors + column, mask=is_inside, other=0.0).to(tl.float32)
    # Rounded where plain PyTorch rounds: after the product, and after the sum.
    scaled = (new * factor).to(numbers).to(tl.float32)
    rounded = (old + scaled).to(numbers)
    tl.store(total + at, rounded, mask=is_inside)
    row = rounded.to(tl.float32)
    if is_centred:
        row = tl.where(is_inside, row - tl.sum(row, 0) / dim, 0.0)
        # What rounding the mean of large numbers left behind.
        row = tl.where(is_inside, row - tl.sum(row, 0) / dim, 0.0)
    row *= tl.rsqrt(tl.sum(row * row, 0) / dim + eps)
    row *= tl.load(weight + column, mask=is_inside, other=0.0).to(tl.float32)
    if is_centred:
        row += tl.load(bias + column, mask=is_inside, other=0.0).to(tl.float32)
    tl.store(normed + at, row.to(numbers), mask=is_inside)


@triton.jit
def _biased_gelu(
    product: tl.tensor, bias: tl.tensor, inner: tl.constexpr, tile: tl.constexpr
) -> None:
    """A part of one row."""
    column = tl.program_id(1) * tile + tl.arange(0, tile)
    is_inside = column < inner
    at = tl.program_id(0).to(tl.int64) * inner + column
    numbers = product.dtype.element_ty
    x = tl.load(product + at, mask=is_inside, other=0.0).to(tl.float32)
    x += tl.load(bias + column, mask=is_inside, other=0.0).to(tl.float32)
    x = x.to(numbers).to(tl.float32)
    half_root: tl.constexpr = 0.7071067811865476
    x = 0.5 * x * (1.0 + tl.erf(x * half_root))
    tl.store(product + at, x.to(numbers), mask=is_inside)


@triton.jit
def _norm_part(
    product: tl.tensor,
    q_weight: tl.tensor,
    k_weight: tl.tensor,
    eps: float,
    dim: tl.constexpr,
    width: tl.constexpr,
) -> None:
    """The queries or the keys of one row."""
    part = tl.program_id(1)
    column = tl.arange(0, width)
    is_inside = column < dim
    at = tl.program_id(0).to(tl.int64) * (3 * dim) + part * dim + column
    row = tl.load(product + at, mask=is_inside, other=0.0).to(tl.float32)
    q = tl.load(q_weight + column, mask=is_inside & (part == 0), other=0.0).to(tl.float32)
    k = tl.load(k_weight + column, mask=is_inside & (part == 1), other=0.0).to(tl.float32)
    row *= tl.rsqrt(tl.sum(row * row, 0) / dim + eps)
    tl.store(product + at, (row * (q + k)).to(product.dtype.element_ty), mask=is_inside)
