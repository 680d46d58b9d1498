"""What becomes of the joined product of queries, keys and values, up to attention, in one kernel.

Queries and keys are normed head by head where the model does that, and turned by their positions;
new keys and values go to their slots of the cache.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from internvl2.model.triton_kernels.early import begins_early, launch_option, take_over

HEADS = 8
"""Heads of a token that a program takes."""


def turn_and_store(
    product: Float[Tensor, "tokens wide"],
    cos: Float[Tensor, "tokens half"],
    sin: Float[Tensor, "tokens half"],
    norms: tuple[Float[Tensor, " head_dim"], Float[Tensor, " head_dim"]] | None,
    eps: float,
    keys: Float[Tensor, "blocks block_size kv_heads head_dim"],
    values: Float[Tensor, "blocks block_size kv_heads head_dim"],
    slots: Int[Tensor, " tokens"],
) -> Float[Tensor, "tokens turning head_dim"]:
    """Queries, and behind them keys, as attention reads them; keys and values are in the cache.

    `norms` are the weights for queries and for keys.
    """
    tokens = product.shape[0]
    kv_heads, size = keys.shape[2:]
    assert keys.is_contiguous(), "the kernel writes caches without gaps"
    assert values.is_contiguous(), "the kernel writes caches without gaps"
    turning = product.shape[1] // size - kv_heads
    turned = torch.empty(tokens, turning, size, dtype=product.dtype, device=product.device)
    q_weight, k_weight = (turned, turned) if norms is None else norms
    is_early = begins_early(product.device)
    _turn[(tokens, triton.cdiv(turning + kv_heads, HEADS))](
        product.contiguous(),
        cos.contiguous(),
        sin.contiguous(),
        q_weight,
        k_weight,
        slots,
        turned,
        keys,
        values,
        eps,
        turning=turning,
        kv_heads=kv_heads,
        half=size // 2,
        width=triton.next_power_of_2(size // 2),
        tile=HEADS,
        is_normed=norms is not None,
        is_early=is_early,
        num_warps=2,
        **launch_option(is_early),
    )
    return turned


@triton.jit
def _turn(
    product: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    q_weight: tl.tensor,
    k_weight: tl.tensor,
    slots: tl.tensor,
    turned: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    eps: float,
    turning: tl.constexpr,
    kv_heads: tl.constexpr,
    half: tl.constexpr,
    width: tl.constexpr,
    tile: tl.constexpr,
    is_normed: tl.constexpr,
    is_early: tl.constexpr,
) -> None:
    """Some heads of one token, each as the two halves that turn against each other."""
    take_over(is_early)
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * tile + tl.arange(0, tile))[:, None]
    column = tl.arange(0, width)[None, :]
    is_column = column < half
    is_query, is_value = head < turning - kv_heads, head >= turning
    is_inside = (head < turning + kv_heads) & is_column
    at = (token * (turning + kv_heads) + head) * (2 * half) + column
    first = tl.load(product + at, mask=is_inside, other=0.0)
    second = tl.load(product + at + half, mask=is_inside, other=0.0)
    # Values stay as they are; they go to the cache alone.
    cached = tl.load(slots + token).to(tl.int64) * kv_heads
    value_at = (cached + head - turning) * (2 * half) + column
    tl.store(values + value_at, first, mask=is_inside & is_value)
    tl.store(values + value_at + half, second, mask=is_inside & is_value)
    numbers = product.dtype.element_ty
    first, second = first.to(tl.float32), second.to(tl.float32)
    if is_normed:
        squares = tl.sum(first * first, 1) + tl.sum(second * second, 1)
        scale = tl.rsqrt(squares / (2 * half) + eps)[:, None]
        weight = _weight(q_weight, k_weight, column, is_query, is_column)
        first = (first * scale * weight).to(numbers).to(tl.float32)
        weight = _weight(q_weight + half, k_weight + half, column, is_query, is_column)
        second = (second * scale * weight).to(numbers).to(tl.float32)
    c = tl.load(cos + token * half + column, mask=is_column, other=0.0)
    s = tl.load(sin + token * half + column, mask=is_column, other=0.0)
    one, other = (first * c - second * s).to(numbers), (second * c + first * s).to(numbers)
    out_at = (token * turning + head) * (2 * half) + column
    tl.store(turned + out_at, one, mask=is_inside & ~is_value)
    tl.store(turned + out_at + half, other, mask=is_inside & ~is_value)
    key_at = (cached + head - (turning - kv_heads)) * (2 * half) + column
    is_key = ~is_query & ~is_value
    tl.store(keys + key_at, one, mask=is_inside & is_key)
    tl.store(keys + key_at + half, other, mask=is_inside & is_key)


@triton.jit
def _weight(
    q_weight: tl.tensor,
    k_weight: tl.tensor,
    column: tl.tensor,
    is_query: tl.tensor,
    is_column: tl.tensor,
) -> tl.tensor:
    """What each head's numbers are multiplied with behind its norm."""
    of_query = tl.load(q_weight + column, mask=is_column, other=0.0).to(tl.float32)
    of_key = tl.load(k_weight + column, mask=is_column, other=0.0).to(tl.float32)
    return tl.where(is_query, of_query, of_key)
