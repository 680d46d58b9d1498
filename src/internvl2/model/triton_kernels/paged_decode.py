"""Attention of single new tokens over a paged cache, the cache divided among many programs.

A sequence's keys are shared out evenly to `splits` programs for each key head, so that one long
conversation keeps a whole GPU busy. How many tokens each gets is read from the device: nothing of a
launch depends on lengths, which a CUDA graph needs. A second kernel joins what the splits found.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

TILE = 64
"""Tokens that a program reads at a time."""
MOST_SPLITS = 64
PROGRAMS_PER_PROCESSOR = 4
"""So many fit on a streaming multiprocessor at once."""
FEWEST_ROWS = 16
"""Rows of the smallest product that matrix units do; the heads of a group fill them in part."""
LOG2_E = 1.4426950408889634


def paged_decode(
    q: Float[Tensor, "sequences heads head_dim"],
    keys: Float[Tensor, "blocks block_size kv_heads head_dim"],
    values: Float[Tensor, "blocks block_size kv_heads head_dim"],
    block_tables: Int[Tensor, "sequences entries"],
    lengths: Int[Tensor, " sequences"],
    splits: int | None = None,
) -> Float[Tensor, "sequences heads head_dim"]:
    """Each sequence's new token over its first `lengths` tokens; other entries are never read.

    None takes as many splits as fill the device.
    """
    sequences, heads, size = q.shape
    block_size, kv_heads = keys.shape[1:3]
    q, block_tables = _rows_apart(q), _rows_apart(block_tables)
    if splits is None:
        splits = splits_for(q.device, sequences * kv_heads, block_tables.shape[1] * block_size)
    out = torch.empty(sequences, heads, size, dtype=q.dtype, device=q.device)
    parts, weights = out, out
    if splits > 1:
        shape = (sequences, heads, splits)
        parts = torch.empty(*shape, size, dtype=torch.float32, device=q.device)
        weights = torch.empty(shape, dtype=torch.float32, device=q.device)
    _attend_split[(sequences, kv_heads, splits)](
        q,
        keys,
        values,
        block_tables,
        lengths,
        parts,
        weights,
        size**-0.5 * LOG2_E,
        q.stride(0),
        q.stride(1),
        keys.stride(0),
        keys.stride(1),
        keys.stride(2),
        block_tables.stride(0),
        group=heads // kv_heads,
        rows=max(FEWEST_ROWS, triton.next_power_of_2(heads // kv_heads)),
        size=size,
        width=triton.next_power_of_2(size),
        block_size=block_size,
        tile=TILE,
        is_split=splits > 1,
        is_interpreted=q.device.type == "cpu",
        num_warps=4,
        num_stages=3 if q.element_size() == 2 else 2,  # more would not fit in registers
    )
    if splits > 1:
        _join_splits[(sequences, heads)](
            parts,
            weights,
            lengths,
            out,
            splits,
            size=size,
            width=triton.next_power_of_2(size),
            most=MOST_SPLITS,
            tile=TILE,
            num_warps=4,
        )
    return out


def splits_for(device: torch.device, programs: int, longest: int) -> int:
    """Into how many parts to divide each of `programs` sequences and key heads."""
    processors = 1
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
    wanted = -(-processors * PROGRAMS_PER_PROCESSOR // programs)
    return max(1, min(wanted, -(-longest // TILE), MOST_SPLITS))


def _rows_apart(x: Tensor) -> Tensor:
    """Tensors whose innermost numbers follow each other, as the kernel reads them."""
    return x if x.stride(-1) == 1 else x.contiguous()


@triton.jit(do_not_specialize=["table_stride"])
def _attend_split(
    q: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    tables: tl.tensor,
    lengths: tl.tensor,
    parts: tl.tensor,
    weights: tl.tensor,
    scale: float,
    q_stride: int,
    q_head_stride: int,
    block_stride: int,
    slot_stride: int,
    head_stride: int,
    table_stride: int,
    group: tl.constexpr,
    rows: tl.constexpr,
    size: tl.constexpr,
    width: tl.constexpr,
    block_size: tl.constexpr,
    tile: tl.constexpr,
    is_split: tl.constexpr,
    is_interpreted: tl.constexpr,
) -> None:
    """One split of one sequence, for all the query heads that share a key head."""
    sequence, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    splits = tl.num_programs(2)
    length = tl.load(lengths + sequence).to(tl.int32)
    share = tl.cdiv(tl.cdiv(length, tile), splits) * tile
    start = split * share
    stop = tl.minimum(start + share, length)
    if start >= stop:
        return
    row = tl.arange(0, rows)
    column = tl.arange(0, width)
    head = kv_head * group + row
    is_inside = (row < group)[:, None] & (column < size)[None, :]
    q_at = sequence.to(tl.int64) * q_stride + head[:, None] * q_head_stride + column[None, :]
    query = tl.load(q + q_at, mask=is_inside, other=0.0)
    highest = tl.full([rows], float("-inf"), tl.float32)
    total = tl.zeros([rows], tl.float32)
    found = tl.zeros([rows, width], tl.float32)
    table = tables + sequence.to(tl.int64) * table_stride
    for first in range(start, stop, tile):
        token = first + tl.arange(0, tile)
        is_seen = token < stop
        block = tl.load(table + token // block_size, mask=is_seen, other=0).to(tl.int64)
        at = block * block_stride + (token % block_size) * slot_stride + kv_head * head_stride
        is_read = is_seen[:, None] & (column < size)[None, :]
        key = tl.load(keys + at[:, None] + column[None, :], mask=is_read, other=0.0)
        value = tl.load(values + at[:, None] + column[None, :], mask=is_read, other=0.0)
        if is_interpreted:  # where products know no bf16
            query, key, value = query.to(tl.float32), key.to(tl.float32), value.to(tl.float32)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        score = tl.where(is_seen[None, :], score, float("-inf"))
        higher = tl.maximum(highest, tl.max(score, 1))
        weight = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(highest - higher)
        total = total * shrink + tl.sum(weight, 1)
        found = found * shrink[:, None]
        found += tl.dot(weight.to(value.dtype), value, input_precision="ieee")
        highest = higher
    found = found / total[:, None]
    heads = tl.num_programs(1) * group
    place = sequence.to(tl.int64) * heads + head
    if is_split:
        place = place * splits + split
        tl.store(weights + place, highest + tl.log2(total), mask=row < group)
    out_at = place[:, None] * size + column[None, :]
    tl.store(parts + out_at, found.to(parts.dtype.element_ty), mask=is_inside)


@triton.jit(do_not_specialize=["splits"])
def _join_splits(
    parts: tl.tensor,
    weights: tl.tensor,
    lengths: tl.tensor,
    out: tl.tensor,
    splits: int,
    size: tl.constexpr,
    width: tl.constexpr,
    most: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """The mean of what the splits of one head found, each by the weight that it saw."""
    sequence, head = tl.program_id(0), tl.program_id(1)
    heads = tl.num_programs(1)
    length = tl.load(lengths + sequence).to(tl.int32)
    share = tl.cdiv(tl.cdiv(length, tile), splits) * tile
    split = tl.arange(0, most)
    is_used = split * share < length
    column = tl.arange(0, width)
    first = (sequence.to(tl.int64) * heads + head) * splits
    weight = tl.load(weights + first + split, mask=is_used, other=float("-inf"))
    weight = tl.exp2(weight - tl.max(weight, 0))
    is_read = is_used[:, None] & (column < size)[None, :]
    at = (first + split)[:, None] * size + column[None, :]
    part = tl.load(parts + at, mask=is_read, other=0.0)
    mean = tl.sum(part * weight[:, None], 0) / tl.sum(weight, 0)
    out_at = (sequence.to(tl.int64) * heads + head) * size + column
    tl.store(out + out_at, mean.to(out.dtype.element_ty), mask=column < size)
