"""Products of few rows with a matrix in four bits, laid out as `int4.RowOrder` does.

A word holds eight codes of one output. A code is moved into the first bits behind the point of a
float, which then is 1 + code / 16; what that adds is taken off with the offsets of the groups.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int32
from torch import Tensor

from internvl2.model.low_bit_linear import Tiles, Vectors
from internvl2.model.triton_kernels.parts import add_parts

CODES_PER_WARP = 1024
"""16 bytes for each thread."""


def vector_product(
    x: Float[Tensor, "1 inputs"],
    words: Int32[Tensor, "outputs words"],
    scales: Float[Tensor, "outputs groups 2"],
    bias: Float[Tensor, " outputs"] | None,
    plan: Vectors,
) -> Float[Tensor, "1 outputs"]:
    """One row times the matrix: every thread sums its own products, and all are added at last."""
    outputs, inputs = len(words), x.shape[1]
    out = torch.empty(1, outputs, dtype=x.dtype, device=x.device)
    programs = (triton.cdiv(outputs, plan.outputs),)
    _vector[programs](
        x.contiguous(),
        words,
        scales,
        out if bias is None else bias,
        out,
        outputs,
        inputs=inputs,
        group=inputs // scales.shape[1],
        height=plan.outputs,
        width=width(inputs, plan),
        has_bias=bias is not None,
        num_warps=plan.warps,
    )
    return out


def width(inputs: int, plan: Vectors) -> int:
    """How many inputs of one output a program reads at a time."""
    return min(triton.next_power_of_2(inputs), CODES_PER_WARP * plan.warps)


def tile_product(
    x: Float[Tensor, "rows inputs"],
    words: Int32[Tensor, "outputs words"],
    scales: Float[Tensor, "outputs groups 2"],
    bias: Float[Tensor, " outputs"] | None,
    plan: Tiles,
) -> Float[Tensor, "rows outputs"]:
    """Several rows times the matrix, on matrix units."""
    (rows, inputs), outputs = x.shape, len(words)
    share = plan.share(inputs)
    shares = triton.cdiv(inputs, share)
    if shares > 1:
        out = torch.empty(shares, rows, outputs, dtype=torch.float32, device=x.device)
    else:
        out = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    programs = (triton.cdiv(outputs, plan.outputs), triton.cdiv(rows, plan.rows), shares)
    _tile[programs](
        x.contiguous(),
        words,
        scales,
        out if bias is None else bias,
        out,
        rows,
        outputs,
        words.shape[1],
        share // 8,
        group=inputs // scales.shape[1],
        height=plan.rows,
        width=plan.outputs,
        depth=plan.inputs // 8,
        has_bias=bias is not None,
        is_part=shares > 1,
        is_interpreted=x.device.type == "cpu",
        num_warps=plan.warps,
        num_stages=plan.stages,
    )
    return add_parts(out, None, bias, x.dtype) if shares > 1 else out


@triton.jit
def _vector(
    x: tl.tensor,
    words: tl.tensor,
    scales: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    outputs: int,
    inputs: tl.constexpr,
    group: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
    has_bias: tl.constexpr,
) -> None:
    """`height` outputs, from `width` inputs at a time."""
    output = tl.program_id(0) * height + tl.arange(0, height)
    column, chunk = tl.arange(0, width // 8), tl.arange(0, width // 32)
    row = tl.minimum(output, outputs - 1)[:, None].to(tl.int64)
    words_at = words + row * (inputs // 8) + column[None, :]
    # Addressed as a matrix, so that a thread gets the inputs of its codes without exchanges.
    x_at = x + (output[:, None] * 0 + (column // 4 * 32 + column % 4)[None, :])
    scales_at = scales + row * (2 * (inputs // group))
    total = tl.zeros([height, width // 32], tl.float32)
    for start in tl.static_range(0, inputs, width):
        is_inside = (column < (inputs - start) // 8)[None, :]
        word = tl.load(words_at + start // 8, is_inside, 0, eviction_policy="evict_first")
        product = tl.zeros([height, width // 8], tl.float32)
        states = tl.zeros([height, width // 8], tl.float32)
        for place in tl.static_range(8):
            state = tl.load(x_at + (start + 4 * place), is_inside, 0.0).to(tl.float32)
            product += state * _sixteenths(word, place)
            states += state
        # The four words of a chunk are one thread's.
        product = tl.sum(tl.reshape(product, (height, width // 32, 4)), axis=2)
        states = tl.sum(tl.reshape(states, (height, width // 32, 4)), axis=2)
        is_known = (chunk < (inputs - start) // 32)[None, :]
        scale_at = scales_at + 2 * ((start + chunk * 32) // group)[None, :]
        scale = tl.load(scale_at, is_known, 0.0).to(tl.float32)
        offset = tl.load(scale_at + 1, is_known, 0.0).to(tl.float32)
        total += product * (16 * scale) + states * (offset - 24 * scale)
    found = tl.sum(total, axis=1)
    if has_bias:
        found += tl.load(bias + output, output < outputs, 0.0).to(tl.float32)
    tl.store(out + output, found.to(out.dtype.element_ty), output < outputs)


@triton.jit(do_not_specialize=["rows"])
def _tile(
    x: tl.tensor,
    words: tl.tensor,
    scales: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    rows: int,
    outputs: int,
    length: int,
    share: int,
    group: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
    depth: tl.constexpr,
    has_bias: tl.constexpr,
    is_part: tl.constexpr,
    is_interpreted: tl.constexpr,
) -> None:
    """`height` rows of `width` outputs, from `share` of an output's `length` words."""
    output = tl.program_id(0) * width + tl.arange(0, width)
    row = tl.program_id(1) * height + tl.arange(0, height)
    column = tl.arange(0, depth)
    word_row = tl.minimum(output, outputs - 1)[:, None].to(tl.int64)
    x_row = tl.minimum(row, rows - 1)[:, None].to(tl.int64)
    words_at = words + word_row * length + column[None, :]
    groups: tl.constexpr = 8 * depth // group if 8 * depth > group else 1
    member = tl.arange(0, groups) * group
    scales_at = scales + word_row * (length * 16 // group) + member[None, :] // group * 2
    x_at = x + x_row * (length * 8) + (column // 4 * 32 + column % 4)[None, :]
    first = tl.program_id(2) * share
    last = tl.minimum(first + share, length)
    total = tl.zeros([height, width], tl.float32)
    for start in range(first, last, depth):
        is_inside = (column < last - start)[None, :]
        word = tl.load(words_at + start, is_inside, 0)
        is_known = (start * 8 + member < last * 8)[None, :]
        scale = tl.load(scales_at + start * 8 // group * 2, is_known, 0.0).to(tl.float32)
        offset = tl.load(scales_at + start * 8 // group * 2 + 1, is_known, 0.0).to(tl.float32)
        offset = _for_each_word(offset - 24 * scale, depth)
        scale = _for_each_word(16 * scale, depth)
        for place in tl.static_range(8):
            state = tl.load(x_at + (start * 8 + 4 * place), is_inside, 0.0)
            weight = _sixteenths(word, place) * scale + offset
            weight = weight.to(x.dtype.element_ty)
            if is_interpreted:  # where products know no bf16
                weight, state = weight.to(tl.float32), state.to(tl.float32)
            total = tl.dot(state, tl.trans(weight), total)
    is_inside = (row < rows)[:, None] & (output < outputs)[None, :]
    at = row[:, None].to(tl.int64) * outputs + output[None, :]
    if is_part:
        at += tl.program_id(2).to(tl.int64) * rows * outputs
    elif has_bias:
        total += tl.load(bias + output, output < outputs, 0.0).to(tl.float32)[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), is_inside)


@triton.jit
def _sixteenths(words: tl.tensor, place: tl.constexpr) -> tl.tensor:
    """1 + code / 16 in fp32 for the code in one of the eight places of each word."""
    lowest: tl.constexpr = 4 * place
    moved = words << (19 - lowest) if lowest <= 19 else words >> (lowest - 19)
    return ((moved & 0x780000) | 0x3F800000).to(tl.float32, bitcast=True)


@triton.jit
def _for_each_word(numbers: tl.tensor, words: tl.constexpr) -> tl.tensor:
    """A number of each group repeated for the words of the group."""
    outputs: tl.constexpr = numbers.shape[0]
    groups: tl.constexpr = numbers.shape[1]
    spread = tl.broadcast_to(numbers[:, :, None], (outputs, groups, words // groups))
    return tl.reshape(spread, (outputs, words))
