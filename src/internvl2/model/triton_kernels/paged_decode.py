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

from internvl2 import device as devices
from internvl2.model.triton_kernels.early import begins_early, launch_option, take_over

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
    assert keys.is_contiguous(), "the kernel reads caches without gaps"
    assert values.is_contiguous(), "the kernel reads caches without gaps"
    assert q.stride()[1:] == (size, 1), "the kernel reads heads that follow each other"
    assert block_tables.stride(1) == 1, "the kernel reads tables whose entries follow each other"
    if splits is None:
        splits = splits_for(q.device, sequences * kv_heads, block_tables.shape[1] * block_size)
    out = torch.empty(sequences, heads, size, dtype=q.dtype, device=q.device)
    parts, weights = out, out
    if splits > 1:
        parts = torch.empty(sequences, heads, splits, size, dtype=torch.float32, device=q.device)
        weights = torch.empty(sequences, heads, splits, dtype=torch.float32, device=q.device)
    width, is_early = triton.next_power_of_2(size), begins_early(q.device)
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
        block_tables.stride(0),
        group=heads // kv_heads,
        rows=max(FEWEST_ROWS, triton.next_power_of_2(heads // kv_heads)),
        size=size,
        width=width,
        block_size=block_size,
        tile=TILE,
        is_split=splits > 1,
        is_early=is_early,
        is_interpreted=q.device.type == "cpu",
        num_warps=4,
        num_stages=3 if q.element_size() == 2 else 2,  # more would not fit in registers
        **launch_option(is_early),
    )
    if splits > 1:
        constants = {"size": size, "width": width, "most": MOST_SPLITS, "tile": TILE}
        constants |= {"is_early": is_early, **launch_option(is_early)}
        _join_splits[(sequences, heads)](parts, weights, lengths, out, splits, **constants)
    return out


def splits_for(device: torch.device, programs: int, longest: int) -> int:
    """Into how many parts to divide each of `programs` sequences and key heads."""
    wanted = -(-devices.processors(device) * PROGRAMS_PER_PROCESSOR // programs)
    return max(1, min(wanted, -(-longest // TILE), MOST_SPLITS))


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
    table_stride: int,
    group: tl.constexpr,
    rows: tl.constexpr,
    size: tl.constexpr,
    width: tl.constexpr,
    block_size: tl.constexpr,
    tile: tl.constexpr,
    is_split: tl.constexpr,
    is_early: tl.constexpr,
    is_interpreted: tl.constexpr,
) -> None:
    """One split of one sequence, for all the query heads that share a key head."""
    take_over(is_early)
    sequence, kv_head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    kv_heads, splits = tl.num_programs(1), tl.num_programs(2)
    length = tl.load(lengths + sequence).to(tl.int32)
    start = split * _share(length, splits, tile)
    stop = tl.minimum(start + _share(length, splits, tile), length)
    if start >= stop:
        return
    row, column = tl.arange(0, rows), tl.arange(0, width)
    head = kv_head * group + row
    is_inside = (row < group)[:, None] & (column < size)[None, :]
    q_at = sequence * q_stride + head[:, None] * size + column[None, :]
    query = tl.load(q + q_at, mask=is_inside, other=0.0)
    highest = tl.full([rows], float("-inf"), tl.float32)
    total, found = tl.zeros([rows], tl.float32), tl.zeros([rows, width], tl.float32)
    for first in range(start, stop, tile):
        token = first + tl.arange(0, tile)
        is_seen = token < stop
        entry = tables + sequence * table_stride + token // block_size
        slot = tl.load(entry, mask=is_seen, other=0).to(tl.int64) * block_size + token % block_size
        at = ((slot * kv_heads + kv_head) * size)[:, None] + column[None, :]
        is_read = is_seen[:, None] & (column < size)[None, :]
        key = tl.load(keys + at, mask=is_read, other=0.0)
        value = tl.load(values + at, mask=is_read, other=0.0)
        score = product(query, tl.trans(key), is_interpreted) * scale
        score = tl.where(is_seen[None, :], score, float("-inf"))
        higher = tl.maximum(highest, tl.max(score, 1))
        weight, shrink = tl.exp2(score - higher[:, None]), tl.exp2(highest - higher)
        total = total * shrink + tl.sum(weight, 1)
        found *= shrink[:, None]
        found += product(weight.to(value.dtype), value, is_interpreted)
        highest = higher
    place = sequence * kv_heads * group + head
    if is_split:
        place = place * splits + split
        tl.store(weights + place, highest + tl.log2(total), mask=row < group)
    out_at = place[:, None] * size + column[None, :]
    tl.store(parts + out_at, (found / total[:, None]).to(parts.dtype.element_ty), mask=is_inside)


@triton.jit
def _share(length: tl.tensor, splits: tl.tensor, tile: tl.constexpr) -> tl.tensor:
    """How many tokens of a sequence a split gets, whole tiles; the last ones may get none."""
    return tl.cdiv(tl.cdiv(length, tile), splits) * tile


@triton.jit
def product(one: tl.tensor, other: tl.tensor, is_interpreted: tl.constexpr) -> tl.tensor:
    """Summed in fp32; Triton's interpreter multiplies no bf16."""
    if is_interpreted:
        one, other = one.to(tl.float32), other.to(tl.float32)
    return tl.dot(one, other, input_precision="ieee")


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
    is_early: tl.constexpr,
) -> None:
    """The mean of what the splits of one head found, each by the weight that it saw."""
    take_over(is_early)
    sequence, head = tl.program_id(0), tl.program_id(1)
    heads = tl.num_programs(1)
    length = tl.load(lengths + sequence).to(tl.int32)
    split = tl.arange(0, most)
    is_used = split * _share(length, splits, tile) < length
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
