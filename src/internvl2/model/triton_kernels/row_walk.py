"""A matrix times one row, by a few programs for each processor, which walk over its outputs.

A program norms the row once, keeps it in registers, and reads 16 bytes a thread of the next rows
while it adds up those before. The first of them are read while the kernel ahead ends.
"""

from dataclasses import dataclass, replace
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from internvl2 import device as devices
from internvl2.model.joined import RowMatrix
from internvl2.model.triton_kernels.early import (
    begins_early,
    launch_option,
    let_next_begin,
    wait_for_ahead,
)
from internvl2.model.triton_kernels.eight_bit import as_numbers
from internvl2.model.triton_kernels.gate import gated_by

CODES = 4
"""Of 8 bits in a word: carried from turn to turn, each alone would take a register."""
HELD = 32
"""Most inputs that a thread keeps in registers."""
AHEAD = (64, 32)
"""Registers of a thread for words of the present rows and of the next ones."""
MOST_ROWS = 8
PROGRAMS = ((4, 4), (8, 2), (16, 1))
"""Warps of a program, and programs for each processor: all have 128 registers a thread."""


@dataclass(frozen=True, slots=True)
class Walk:
    """What a program does."""

    rows: int
    """Outputs at a time."""
    warps: int
    programs: int
    """For each processor."""


def walks_for(inputs: int, size: int, *, is_gated: bool) -> tuple[Walk, ...]:
    """Those to try for rows of so many numbers in `size` bytes each: what registers allow."""
    width = triton.next_power_of_2(inputs)
    walks: dict[Walk, None] = {}
    for (warps, programs), ahead in product(PROGRAMS, AHEAD):
        held = triton.cdiv(width, 32 * warps)
        words = 2 * triton.cdiv(held * size, 4) * (2 if is_gated else 1)
        if held <= HELD and words <= ahead:
            walks[Walk(min(ahead // words, MOST_ROWS), warps, programs)] = None
    return tuple(walks)


def launch_walk(
    x: Tensor,
    sum_norm: tuple[Tensor, Tensor, Tensor],
    matrix: RowMatrix,
    out: Tensor,
    walk: Walk,
    *,
    eps: float,
    is_normed: bool,
    is_gated: bool,
) -> None:
    """One product, as the kernels of `row_product` are given it, written to `out`."""
    weight = matrix.weight
    inputs, outputs = weight.shape[1], out.shape[1]
    programs = min(walk.programs * devices.processors(x.device), triton.cdiv(outputs, walk.rows))
    codes = CODES if weight.element_size() == 1 and inputs % CODES == 0 else 1
    words = weight.view(torch.int32) if codes == CODES else weight
    is_early = begins_early(x.device)
    _walk[(programs,)](
        *operands(x, sum_norm, replace(matrix, weight=words), out),
        eps,
        inputs=inputs,
        outputs=outputs,
        rows=walk.rows,
        width=triton.next_power_of_2(inputs),
        programs=programs,
        codes=codes,
        is_int=weight.dtype == torch.int8,
        is_normed=is_normed,
        is_gated=is_gated,
        has_scales=matrix.scales is not None,
        has_bias=matrix.bias is not None,
        is_early=is_early,
        is_interpreted=not x.is_cuda,
        num_warps=walk.warps,
        **launch_option(is_early),
    )


def operands(
    x: Tensor, sum_norm: tuple[Tensor, Tensor, Tensor], matrix: RowMatrix, out: Tensor
) -> tuple[Tensor, ...]:
    """The tensors of a kernel; `out` stands where there is nothing to read."""
    scales = out if matrix.scales is None else matrix.scales
    bias = out if matrix.bias is None else matrix.bias
    return x, *sum_norm, matrix.weight, scales, bias, out


@triton.jit
def _walk(
    x: tl.tensor,
    added: tl.tensor,
    norm: tl.tensor,
    total: tl.tensor,
    weight: tl.tensor,
    scales: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    eps: float,
    inputs: tl.constexpr,
    outputs: tl.constexpr,
    rows: tl.constexpr,
    width: tl.constexpr,
    programs: tl.constexpr,
    codes: tl.constexpr,
    is_int: tl.constexpr,
    is_normed: tl.constexpr,
    is_gated: tl.constexpr,
    has_scales: tl.constexpr,
    has_bias: tl.constexpr,
    is_early: tl.constexpr,
    is_interpreted: tl.constexpr,
) -> None:
    """Every `programs`-th group of outputs; the weights are words of so many `codes`."""
    if is_early:
        let_next_begin()
    program = tl.program_id(0)
    groups: tl.constexpr = (outputs + rows - 1) // rows
    long: tl.constexpr = inputs // codes
    wide: tl.constexpr = width // codes
    words, ups, side = _group(
        weight, scales, bias, program, outputs, long, rows, wide, is_gated, has_scales, has_bias
    )
    column = tl.arange(0, width)
    factor = column.to(tl.float32)
    if is_normed:
        factor = tl.load(norm + column, mask=column < inputs, other=0.0).to(tl.float32)
    if is_early:
        wait_for_ahead()
    numbers, divisor = _numbers(x, added, factor, total, column, eps, inputs, is_normed)
    states = _quarters(numbers, wide) if codes == 4 else (numbers,)
    for group in tl.range(program, groups, programs, num_stages=1):
        # Past the end the last rows are read again, from the cache.
        following = tl.minimum(group + programs, groups - 1)
        next_words, next_ups, next_side = _group(
            weight, scales, bias, following, outputs, long, rows, wide,
            is_gated, has_scales, has_bias,
        )  # fmt: skip
        result = _sums(words, states, codes, is_int, is_interpreted)
        up = result
        if is_gated:
            up = _sums(ups, states, codes, is_int, is_interpreted)
        values = _outcome(result, up, divisor, side, out.dtype.element_ty, is_gated)
        row = group * rows + tl.arange(0, rows)
        tl.store(out + row, values, mask=row < outputs)
        words, ups, side = next_words, next_ups, next_side


@triton.jit
def _numbers(
    x: tl.tensor,
    added: tl.tensor,
    factor: tl.tensor,
    total: tl.tensor,
    column: tl.tensor,
    eps: float,
    inputs: tl.constexpr,
    is_normed: tl.constexpr,
) -> tl.tuple:
    """The row in fp32, and what its products are multiplied with: one number of the norm."""
    is_column = column < inputs
    numbers = tl.load(x + column, mask=is_column, other=0.0).to(tl.float32)
    divisor = 1.0
    if is_normed:
        more = tl.load(added + column, mask=is_column, other=0.0).to(tl.float32)
        rounded = (numbers + more).to(total.dtype.element_ty)
        tl.store(total + column, rounded, mask=is_column & (tl.program_id(0) == 0))
        numbers = rounded.to(tl.float32)
        divisor = tl.rsqrt(tl.sum(numbers * numbers, 0) / inputs + eps)
        numbers *= factor
    return numbers, divisor


@triton.jit
def _group(
    weight: tl.tensor,
    scales: tl.tensor,
    bias: tl.tensor,
    group: tl.tensor,
    outputs: tl.constexpr,
    long: tl.constexpr,
    rows: tl.constexpr,
    wide: tl.constexpr,
    is_gated: tl.constexpr,
    has_scales: tl.constexpr,
    has_bias: tl.constexpr,
) -> tl.tuple:
    """Words of some rows and of those that are gated by them, and what stands beside them."""
    words = _rows(weight, group, outputs, long, rows, wide)
    ups = words
    if is_gated:
        ups = _rows(weight + outputs * long, group, outputs, long, rows, wide)
    row = group * rows + tl.arange(0, rows)
    return words, ups, _beside(scales, bias, row, outputs, is_gated, has_scales, has_bias)


@triton.jit
def _rows(
    weight: tl.tensor,
    group: tl.tensor,
    outputs: tl.constexpr,
    long: tl.constexpr,
    rows: tl.constexpr,
    wide: tl.constexpr,
) -> tl.tensor:
    column = tl.arange(0, wide)
    row = tl.minimum(group * rows + tl.arange(0, rows), outputs - 1)
    at = weight + row.to(tl.int64)[:, None] * long + column[None, :]
    if long == wide:
        found = tl.load(at, eviction_policy="evict_first")
    else:
        is_inside = tl.broadcast_to((column < long)[None, :], [rows, wide])
        found = tl.load(at, mask=is_inside, other=0, eviction_policy="evict_first")
    return found


@triton.jit
def _quarters(numbers: tl.tensor, wide: tl.constexpr) -> tl.tuple:
    """Every fourth number, from the first, the second, the third and the fourth on."""
    even, odd = tl.split(tl.reshape(numbers, [wide, 2, 2]))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def _sums(
    words: tl.tensor,
    states: tl.tuple,
    codes: tl.constexpr,
    is_int: tl.constexpr,
    is_interpreted: tl.constexpr,
) -> tl.tensor:
    """Of every row, in fp32."""
    if codes == 4:
        parts = _codes_of(words, is_int, is_interpreted)
        product = parts[0] * states[0][None, :]
        product += parts[1] * states[1][None, :]
        product += parts[2] * states[2][None, :]
        product += parts[3] * states[3][None, :]
    else:
        product = as_numbers(words) * states[0][None, :]
    return tl.sum(product, 1)


@triton.jit
def _codes_of(words: tl.tensor, is_int: tl.constexpr, is_interpreted: tl.constexpr) -> tl.tuple:
    """The fp32 numbers of the four codes in each word."""
    if is_interpreted:
        kind: tl.constexpr = tl.int8 if is_int else tl.float8e4nv
        first = (words & 0xFF).to(tl.uint8).to(kind, bitcast=True).to(tl.float32)
        second = ((words >> 8) & 0xFF).to(tl.uint8).to(kind, bitcast=True).to(tl.float32)
        third = ((words >> 16) & 0xFF).to(tl.uint8).to(kind, bitcast=True).to(tl.float32)
        fourth = ((words >> 24) & 0xFF).to(tl.uint8).to(kind, bitcast=True).to(tl.float32)
        found = (first, second, third, fourth)
    elif is_int:
        # A byte with its sign flipped as last byte of 2**23, from which 2**23 + 128 is taken.
        found = tl.inline_asm_elementwise(
            """{ .reg .b32 t;
            xor.b32 t, $4, 0x80808080;
            prmt.b32 $0, t, 0x4B000000, 0x7440; prmt.b32 $1, t, 0x4B000000, 0x7441;
            prmt.b32 $2, t, 0x4B000000, 0x7442; prmt.b32 $3, t, 0x4B000000, 0x7443;
            sub.f32 $0, $0, 0f4B000080; sub.f32 $1, $1, 0f4B000080;
            sub.f32 $2, $2, 0f4B000080; sub.f32 $3, $3, 0f4B000080; }""",
            "=&r,=&r,=&r,=&r,r",
            [words],
            dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
            is_pure=True,
            pack=1,
        )
    else:
        # Two codes at a time become fp16, which has all numbers of fp8.
        found = tl.inline_asm_elementwise(
            """{ .reg .b16 l, h, p, q, r, s; .reg .b32 a, b;
            mov.b32 {l, h}, $4;
            cvt.rn.f16x2.e4m3x2 a, l; cvt.rn.f16x2.e4m3x2 b, h;
            mov.b32 {p, q}, a; mov.b32 {r, s}, b;
            cvt.f32.f16 $0, p; cvt.f32.f16 $1, q; cvt.f32.f16 $2, r; cvt.f32.f16 $3, s; }""",
            "=&r,=&r,=&r,=&r,r",
            [words],
            dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
            is_pure=True,
            pack=1,
        )
    return found


@triton.jit
def _beside(
    scales: tl.tensor,
    bias: tl.tensor,
    row: tl.tensor,
    outputs: tl.constexpr,
    is_gated: tl.constexpr,
    has_scales: tl.constexpr,
    has_bias: tl.constexpr,
) -> tl.tuple:
    """Scales of outputs and of their upper halves, and biases, asked for before they are needed."""
    is_row = row < outputs
    scale = tl.full(row.shape, 1.0, tl.float32)
    up_scale, shift = scale, tl.full(row.shape, 0.0, tl.float32)
    if has_scales:
        scale = tl.load(scales + row, mask=is_row, other=0.0).to(tl.float32)
        if is_gated:
            up_scale = tl.load(scales + outputs + row, mask=is_row, other=0.0).to(tl.float32)
    if has_bias:
        shift = tl.load(bias + row, mask=is_row, other=0.0).to(tl.float32)
    return scale, up_scale, shift


@triton.jit
def _outcome(
    result: tl.tensor,
    up: tl.tensor,
    divisor: tl.tensor,
    side: tl.tuple,
    kind: tl.constexpr,
    is_gated: tl.constexpr,
) -> tl.tensor:
    """What is stored of sums: scaled, shifted and gated."""
    result = result * side[0] * divisor + side[2]
    if is_gated:
        result = gated_by(result, up * side[1] * divisor, kind)
    return result.to(kind)
