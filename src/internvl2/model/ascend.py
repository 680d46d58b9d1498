"""Attention on Ascend: how the kernels of torch_npu want to be asked.

They take lengths as numbers of the host, which all callers know there, so that no layer waits for
the device. What they refuse is from the documentation that comes with torch_npu 2.13.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from internvl2 import device as devices

MASK = 2048
"""Rows and columns of the mask that stands for a triangle of any size."""
MOST_SEQUENCES = 1024
"""In one call of the kernel for packed streams."""
MOST_SHARING, LARGEST_BLOCK, LARGEST_HEAD = 64, 512, 512
"""Of the kernel for a paged cache: heads that share keys, tokens of a block, size of a head."""


def has_packed_kernel(device: torch.device) -> bool:
    """Whether attention over packed streams and over whole tiles has a kernel there."""
    return devices.fused_kernel("npu_fusion_attention", device) is not None


def has_paged_kernel(
    q: Float[Tensor, "sequences heads head_dim"],
    keys: Float[Tensor, "blocks block_size kv_heads head_dim"],
) -> bool:
    """Whether a kernel reads this cache through block tables, for one new token a sequence."""
    block_size, kv_heads, head_dim = keys.shape[1:]
    return (
        devices.fused_kernel("npu_fused_infer_attention_score", q.device) is not None
        and q.dtype in (torch.float16, torch.bfloat16)
        and block_size % 16 == 0
        and block_size <= LARGEST_BLOCK
        and head_dim % 16 == 0
        and head_dim <= LARGEST_HEAD
        and q.shape[1] // kv_heads <= MOST_SHARING
        and keys.numel() < 2**31
    )


def causal_mask(device: torch.device) -> Bool[Tensor, "2048 2048"]:
    """What no token of a causal sequence sees, as the kernel for packed streams wants it."""
    return torch.ones(MASK, MASK, device=device).triu(1).bool()


def packed_attention(
    q: Float[Tensor, "queries heads head_dim"],
    k: Float[Tensor, "keys kv_heads head_dim"],
    v: Float[Tensor, "keys kv_heads head_dim"],
    query_lengths: Sequence[int],
    key_lengths: Sequence[int],
    mask: Bool[Tensor, "2048 2048"] | None,
) -> Float[Tensor, "queries heads head_dim"]:
    """Attention within each sequence of a stream; with a mask its last query is its last key."""
    kernel = devices.fused_kernel("npu_fusion_attention", q.device)
    assert kernel is not None
    outputs = []
    first_query = first_key = 0
    for first in range(0, len(query_lengths), MOST_SEQUENCES):
        query_ends = list(accumulate(query_lengths[first : first + MOST_SEQUENCES]))
        key_ends = list(accumulate(key_lengths[first : first + MOST_SEQUENCES]))
        queries = slice(first_query, first_query + query_ends[-1])
        keys = slice(first_key, first_key + key_ends[-1])
        first_query, first_key = queries.stop, keys.stop
        results = kernel(
            q[queries],
            k[keys],
            v[keys],
            q.shape[1],
            "TND",
            atten_mask=mask,
            scale=q.shape[2] ** -0.5,
            actual_seq_qlen=query_ends,
            actual_seq_kvlen=key_ends,
            sparse_mode=0 if mask is None else 3,
        )
        outputs.append(results[0])
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def full_attention(
    q: Float[Tensor, "tiles patches dim"],
    k: Float[Tensor, "tiles patches dim"],
    v: Float[Tensor, "tiles patches dim"],
    num_heads: int,
) -> Float[Tensor, "tiles patches dim"]:
    """Attention of all patches of a tile over all of them: tiles are sequences of one stream."""
    tiles, patches, _ = q.shape
    q, k, v = (rearrange(x, "t p (h d) -> (t p) h d", h=num_heads) for x in (q, k, v))
    lengths = [patches] * tiles
    out = packed_attention(q, k, v, lengths, lengths, None)
    return rearrange(out, "(t p) h d -> t p (h d)", t=tiles)


def paged_attention(
    q: Float[Tensor, "sequences heads head_dim"],
    keys: Float[Tensor, "blocks block_size kv_heads head_dim"],
    values: Float[Tensor, "blocks block_size kv_heads head_dim"],
    block_tables: Int[Tensor, "sequences entries"],
    lengths: Sequence[int],
) -> Float[Tensor, "sequences heads head_dim"]:
    """One new token of each sequence over the cache; block tables are of 32 bits."""
    kernel = devices.fused_kernel("npu_fused_infer_attention_score", q.device)
    assert kernel is not None
    block_size, kv_heads, head_dim = keys.shape[1:]
    results = kernel(
        rearrange(q, "s h d -> s 1 (h d)").contiguous(),
        rearrange(keys, "n b h d -> n b (h d)"),
        rearrange(values, "n b h d -> n b (h d)"),
        num_heads=q.shape[1],
        num_key_value_heads=kv_heads,
        input_layout="BSH",
        scale=head_dim**-0.5,
        block_table=block_tables,
        block_size=block_size,
        actual_seq_lengths_kv=list(lengths),
    )
    return rearrange(results[0], "s 1 (h d) -> s h d", d=head_dim)
