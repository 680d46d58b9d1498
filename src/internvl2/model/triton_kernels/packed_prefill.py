"""Causal flash attention of packed runs of prompts, with the matrix units of Hopper GPUs.

Each program has some queries of one head of one run, and goes through the keys they see: first
those that all of them see, then those at the edge, where a mask decides (FlashAttention-2,
2307.08691). PyTorch's own kernel for packed runs is written for the generation before.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int32
from torch import Tensor

from internvl2.model.triton_kernels.paged_decode import LOG2_E, product


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a program goes about it."""

    queries: int
    """64 for each group of four warps."""
    stages: int
    """Tiles of keys and values that are on their way."""

    @property
    def warps(self) -> int:
        """Of a program."""
        return self.queries // 16

    def keys(self, width: int) -> int:
        """Read at a time, for heads so wide: as many as leave a program's numbers in registers."""
        return 128 if width <= 64 else 64


TILINGS = (Tiling(128, 3), Tiling(64, 3))
"""One program of two groups that read the same keys, or two programs, of which one multiplies while
the other takes exponentials."""


def packed_prefill(
    q: Float[Tensor, "queries heads head_dim"],
    k: Float[Tensor, "keys kv_heads head_dim"],
    v: Float[Tensor, "keys kv_heads head_dim"],
    q_bounds: Int32[Tensor, " bounds"],
    k_bounds: Int32[Tensor, " bounds"],
    longest: int,
    tiling: Tiling,
) -> Float[Tensor, "queries heads head_dim"]:
    """Attention of each run over its own keys, the last query over all of them.

    Bounds say where the runs' queries and keys begin, and then how many there are of either; the
    longest run has so many queries.
    """
    (queries, heads, size), kv_heads = q.shape, k.shape[1]
    for x in (q, k, v):
        assert x.stride()[1:] == (size, 1), "the kernel reads heads that follow each other"
    out = torch.empty(queries, heads, size, dtype=q.dtype, device=q.device)
    width = max(16, triton.next_power_of_2(size))
    _attend_run[(triton.cdiv(longest, tiling.queries), heads, len(q_bounds) - 1)](
        q,
        k,
        v,
        q_bounds,
        k_bounds,
        out,
        size**-0.5 * LOG2_E,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        group=heads // kv_heads,
        size=size,
        width=width,
        rows=tiling.queries,
        tile=tiling.keys(width),
        is_interpreted=q.device.type == "cpu",
        num_warps=tiling.warps,
        num_stages=tiling.stages,
    )
    return out


@triton.jit
def _attend_run(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    q_bounds: tl.tensor,
    k_bounds: tl.tensor,
    out: tl.tensor,
    scale: float,
    q_stride: int,
    k_stride: int,
    v_stride: int,
    group: tl.constexpr,
    size: tl.constexpr,
    width: tl.constexpr,
    rows: tl.constexpr,
    tile: tl.constexpr,
    is_interpreted: tl.constexpr,
) -> None:
    """Some queries of one head of one run; those that see most keys begin first."""
    head, run = tl.program_id(1), tl.program_id(2)
    first_query, first_key = tl.load(q_bounds + run), tl.load(k_bounds + run)
    queries = tl.load(q_bounds + run + 1) - first_query
    keys = tl.load(k_bounds + run + 1) - first_key
    start = (tl.num_programs(0) - 1 - tl.program_id(0)) * rows
    if start >= queries:
        return
    row, column = tl.arange(0, rows), tl.arange(0, width)
    query = start + row
    is_inside = (query < queries)[:, None] & (column < size)[None, :]
    place = (first_query + query).to(tl.int64)
    asked = tl.load(
        q + place[:, None] * q_stride + head * size + column[None, :], mask=is_inside, other=0.0
    )
    # The last key that each query sees.
    last = keys - queries + query
    seen_by_all = (keys - queries + start + 1) // tile * tile
    stop = tl.minimum(keys - queries + start + rows, keys)
    k += first_key.to(tl.int64) * k_stride + head // group * size
    v += first_key.to(tl.int64) * v_stride + head // group * size
    highest = tl.full([rows], float("-inf"), tl.float32)
    total = tl.zeros([rows], tl.float32)
    found = tl.zeros([rows, width], tl.float32)
    # fmt: off
    highest, total, found = _go_through(
        asked, k, v, last, highest, total, found, 0, seen_by_all, keys, scale, k_stride, v_stride,
        size, width, tile, False, is_interpreted,
    )
    highest, total, found = _go_through(
        asked, k, v, last, highest, total, found, seen_by_all, stop, keys, scale, k_stride,
        v_stride, size, width, tile, True, is_interpreted,
    )
    # fmt: on
    out_at = place * tl.num_programs(1) + head
    answer = (found / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + out_at[:, None] * size + column[None, :], answer, mask=is_inside)


@triton.jit
def _go_through(
    asked: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    last: tl.tensor,
    highest: tl.tensor,
    total: tl.tensor,
    found: tl.tensor,
    start: int,
    stop: int,
    keys: int,
    scale: float,
    k_stride: int,
    v_stride: int,
    size: tl.constexpr,
    width: tl.constexpr,
    tile: tl.constexpr,
    is_edge: tl.constexpr,
    is_interpreted: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Adds what keys from `start` to `stop` give; at the edge some queries do not see some."""
    column = tl.arange(0, width)
    for first in range(start, stop, tile):
        token = first + tl.arange(0, tile)
        at_k = token.to(tl.int64)[None, :] * k_stride + column[:, None]
        at_v = token.to(tl.int64)[:, None] * v_stride + column[None, :]
        if is_edge:
            is_there, has_column = token < keys, column < size
            key = tl.load(k + at_k, mask=is_there[None, :] & has_column[:, None], other=0.0)
            value = tl.load(v + at_v, mask=is_there[:, None] & has_column[None, :], other=0.0)
        elif size == width:
            key, value = tl.load(k + at_k), tl.load(v + at_v)
        else:
            key = tl.load(k + at_k, mask=(column < size)[:, None], other=0.0)
            value = tl.load(v + at_v, mask=(column < size)[None, :], other=0.0)
        score = product(asked, key, is_interpreted) * scale
        if is_edge:
            score = tl.where(token[None, :] <= last[:, None], score, float("-inf"))
        higher = tl.maximum(highest, tl.max(score, 1))
        weight, shrink = tl.exp2(score - higher[:, None]), tl.exp2(highest - higher)
        total = total * shrink + tl.sum(weight, 1)
        found = found * shrink[:, None] + product(weight.to(value.dtype), value, is_interpreted)
        highest = higher
    return highest, total, found
