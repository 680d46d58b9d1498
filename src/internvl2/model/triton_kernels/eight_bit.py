"""Products of few rows with a matrix in int8 or fp8 that has a scale for each output.

So few rows take as long as reading the matrix does, which is read once, in its few bits, 16 bytes
at a time by neighbouring threads. Codes become fp32 by arithmetic on their bits or by way of fp16:
a multiprocessor of a Hopper GPU converts 16 integers a clock, and memory delivers as many.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Shaped
from torch import Tensor

from internvl2.model.low_bit_linear import Tiles, Vectors
from internvl2.model.triton_kernels.parts import add_parts

CODES_PER_WARP = 512
"""16 bytes for each thread."""


def vector_product(
    x: Float[Tensor, "1 inputs"],
    codes: Shaped[Tensor, "outputs inputs"],
    scales: Float[Tensor, "*ones outputs"],
    bias: Float[Tensor, " outputs"] | None,
    plan: Vectors,
) -> Float[Tensor, "1 outputs"]:
    """One row times the matrix: every thread sums its own products, and all are added at last."""
    outputs, inputs = codes.shape
    out = torch.empty(1, outputs, dtype=x.dtype, device=x.device)
    programs = (triton.cdiv(outputs, plan.outputs),)
    _vector[programs](
        x.contiguous(),
        codes,
        scales,
        out if bias is None else bias,
        out,
        outputs,
        inputs=inputs,
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
    codes: Shaped[Tensor, "outputs inputs"],
    scales: Float[Tensor, "*ones outputs"],
    bias: Float[Tensor, " outputs"] | None,
    plan: Tiles,
) -> Float[Tensor, "rows outputs"]:
    """Several rows times the matrix, on matrix units."""
    rows, (outputs, inputs) = len(x), codes.shape
    share = plan.share(inputs)
    shares = triton.cdiv(inputs, share)
    if shares > 1:
        out = torch.empty(shares, rows, outputs, dtype=torch.float32, device=x.device)
    else:
        out = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    programs = (triton.cdiv(outputs, plan.outputs), triton.cdiv(rows, plan.rows), shares)
    _tile[programs](
        x.contiguous(),
        codes,
        scales,
        out if bias is None else bias,
        out,
        rows,
        outputs,
        inputs,
        share,
        height=plan.rows,
        width=plan.outputs,
        depth=plan.inputs,
        has_bias=bias is not None,
        is_part=shares > 1,
        is_interpreted=x.device.type == "cpu",
        num_warps=plan.warps,
        num_stages=plan.stages,
    )
    return add_parts(out, scales, bias, x.dtype) if shares > 1 else out


@triton.jit
def _vector(
    x: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    outputs: int,
    inputs: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
    has_bias: tl.constexpr,
) -> None:
    """`height` outputs, from `width` inputs at a time."""
    output = tl.program_id(0) * height + tl.arange(0, height)
    column = tl.arange(0, width)
    row = tl.minimum(output, outputs - 1)[:, None].to(tl.int64)
    codes_at = codes + row * inputs + column[None, :]
    # Addressed as a matrix, so that a thread gets the inputs of its codes without exchanges.
    x_at = x + (output[:, None] * 0 + column[None, :])
    total = tl.zeros([height, width], tl.float32)
    for start in tl.static_range(0, inputs, width):
        if start + width <= inputs:
            code = tl.load(codes_at + start, eviction_policy="evict_first")
            state = tl.load(x_at + start)
        else:
            is_inside = (column < inputs - start)[None, :]
            code = tl.load(codes_at + start, is_inside, 0.0, eviction_policy="evict_first")
            state = tl.load(x_at + start, is_inside, 0.0)
        total += state.to(tl.float32) * as_numbers(code)
    found = tl.sum(total, axis=1)
    is_output = output < outputs
    found *= tl.load(scales + output, is_output, 0.0).to(tl.float32)
    if has_bias:
        found += tl.load(bias + output, is_output, 0.0).to(tl.float32)
    tl.store(out + output, found.to(out.dtype.element_ty), is_output)


@triton.jit(do_not_specialize=["rows"])
def _tile(
    x: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    rows: int,
    outputs: int,
    inputs: int,
    share: int,
    height: tl.constexpr,
    width: tl.constexpr,
    depth: tl.constexpr,
    has_bias: tl.constexpr,
    is_part: tl.constexpr,
    is_interpreted: tl.constexpr,
) -> None:
    """`height` rows of `width` outputs, from `share` inputs; a part has neither scales nor bias."""
    output = tl.program_id(0) * width + tl.arange(0, width)
    row = tl.program_id(1) * height + tl.arange(0, height)
    column = tl.arange(0, depth)
    code_row = tl.minimum(output, outputs - 1)[:, None].to(tl.int64)
    x_row = tl.minimum(row, rows - 1)[:, None].to(tl.int64)
    codes_at = codes + code_row * inputs + column[None, :]
    x_at = x + x_row * inputs + column[None, :]
    first = tl.program_id(2) * share
    last = tl.minimum(first + share, inputs)
    total = tl.zeros([height, width], tl.float32)
    for start in range(first, last, depth):
        is_inside = (column < last - start)[None, :]
        code = tl.load(codes_at + start, is_inside, 0.0)
        state = tl.load(x_at + start, is_inside, 0.0)
        if is_interpreted:  # where products know no bf16
            state = state.to(tl.float32)
        total = tl.dot(state, tl.trans(_operand(code, state.dtype)), total)
    is_inside = (row < rows)[:, None] & (output < outputs)[None, :]
    at = row[:, None].to(tl.int64) * outputs + output[None, :]
    if is_part:
        at += tl.program_id(2).to(tl.int64) * rows * outputs
    else:
        total *= tl.load(scales + output, output < outputs, 0.0).to(tl.float32)[None, :]
        if has_bias:
            total += tl.load(bias + output, output < outputs, 0.0).to(tl.float32)[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), is_inside)


@triton.jit
def as_numbers(codes: tl.tensor) -> tl.tensor:
    """The fp32 numbers of codes in int8 or fp8, or of what is a number already."""
    if codes.dtype == tl.int8:
        # The bits of 1.5 * 2**23 + code, in which the last one counts 1.
        shifted = (codes.to(tl.int32) + 0x4B400000).to(tl.float32, bitcast=True)
        return shifted - 12582912.0
    if codes.dtype == tl.float8e4nv:
        return codes.to(tl.float16).to(tl.float32)
    return codes.to(tl.float32)


@triton.jit
def _operand(codes: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """Codes as the matrix units take them, exactly."""
    if codes.dtype == tl.int8:
        return codes.to(dtype)
    # All numbers of fp8 are numbers of fp16, to which they are converted fast, and of bf16.
    return codes.to(tl.float16).to(tl.float32).to(dtype)
