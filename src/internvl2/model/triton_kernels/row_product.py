"""A matrix times one row of numbers: what a single conversation's next token is made of.

All the time goes into reading the matrix once. So each program reads whole rows of it, and what
comes before and behind the product rides along: the sum with what the layer before added, its RMS
norm, and the gate of an MLP. Matrices in int8 or fp8 have a scale for each output.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from internvl2.model.joined import RowMatrix
from internvl2.model.triton_kernels.eight_bit import as_numbers
from internvl2.model.triton_kernels.gate import gated_by
from internvl2.model.triton_kernels.row_walk import Walk, launch_walk, operands, walks_for

FEW = 2048
"""Outputs for which programs are made smaller, so that there are several for each processor."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a program does."""

    tile: int
    """Most numbers of a row that are read at a time."""
    rows: int
    """Outputs; every program reads the input and the norm, which more of them share."""
    warps: int = 4


SHAPES = (Shape(1024, 4), Shape(2048, 4))
"""Those that may be fastest for some matrix: codes of 8 bits make rows of half the bytes."""


def row_product(
    x: Float[Tensor, "1 inputs"],
    matrix: RowMatrix,
    shape: Shape | Walk = SHAPES[0],
) -> Float[Tensor, "1 outputs"]:
    """As `F.linear`."""
    out = x.new_empty(1, len(matrix.weight))
    _launch(x, (x, x, out), matrix, out, shape, eps=0.0, is_normed=False, is_gated=False)
    return out


def normed_row_product(
    x: Float[Tensor, "1 inputs"],
    added: Float[Tensor, "1 inputs"],
    norm: Float[Tensor, " inputs"],
    eps: float,
    matrix: RowMatrix,
    shape: Shape | Walk = SHAPES[0],
) -> tuple[Float[Tensor, "1 inputs"], Float[Tensor, "1 outputs"]]:
    """The sum of two rows, and the product of its RMS norm."""
    total, out = torch.empty_like(x), x.new_empty(1, len(matrix.weight))
    _launch(x, (added, norm, total), matrix, out, shape, eps=eps, is_normed=True, is_gated=False)
    return total, out


def gated_row_product(
    x: Float[Tensor, "1 inputs"],
    added: Float[Tensor, "1 inputs"],
    norm: Float[Tensor, " inputs"],
    eps: float,
    matrix: RowMatrix,
    shape: Shape | Walk = SHAPES[0],
) -> tuple[Float[Tensor, "1 inputs"], Float[Tensor, "1 inner"]]:
    """The same, of whose product the SiLU of the first half is multiplied with the second half."""
    total, out = torch.empty_like(x), x.new_empty(1, len(matrix.weight) // 2)
    _launch(x, (added, norm, total), matrix, out, shape, eps=eps, is_normed=True, is_gated=True)
    return total, out


def shapes_for(inputs: int, size: int, *, is_gated: bool) -> Sequence[Shape | Walk]:
    """What to try for rows of so many numbers in `size` bytes each, the usual shape first."""
    whole = triton.next_power_of_2(inputs)
    shapes = dict.fromkeys(replace(shape, tile=min(shape.tile, whole)) for shape in SHAPES)
    return (*shapes, *walks_for(inputs, size, is_gated=is_gated))


def rows_for(outputs: int, is_gated: bool, shape: Shape) -> int:
    """Outputs of a program: few, where there are few programs or each reads two rows for one."""
    return shape.rows if outputs > FEW and not is_gated else shape.rows // 2


def _launch(
    x: Tensor,
    sum_norm: tuple[Tensor, Tensor, Tensor],
    matrix: RowMatrix,
    out: Tensor,
    shape: Shape | Walk,
    *,
    eps: float,
    is_normed: bool,
    is_gated: bool,
) -> None:
    weight = matrix.weight
    assert weight.is_contiguous(), "the kernel reads matrices without gaps"
    if isinstance(shape, Walk):
        launch_walk(
            x, sum_norm, matrix, out, shape, eps=eps, is_normed=is_normed, is_gated=is_gated
        )
        return
    outputs = out.shape[1]
    rows = rows_for(outputs, is_gated, shape)
    _product[(triton.cdiv(outputs, rows),)](
        *operands(x, sum_norm, matrix, out),
        eps,
        inputs=weight.shape[1],
        outputs=outputs,
        rows=rows,
        tile=min(shape.tile, triton.next_power_of_2(weight.shape[1])),
        is_normed=is_normed,
        is_gated=is_gated,
        has_scales=matrix.scales is not None,
        has_bias=matrix.bias is not None,
        num_warps=shape.warps,
    )


@triton.jit
def _product(
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
    tile: tl.constexpr,
    is_normed: tl.constexpr,
    is_gated: tl.constexpr,
    has_scales: tl.constexpr,
    has_bias: tl.constexpr,
) -> None:
    """Some outputs. The norm's divisor is one number, so the product need not wait for it."""
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    is_row = row < outputs
    at = weight + row.to(tl.int64)[:, None] * inputs
    found = tl.zeros([rows, tile], tl.float32)
    beside = tl.zeros([rows, tile], tl.float32)
    squares = tl.zeros([tile], tl.float32)
    for first in tl.range(0, inputs, tile, num_stages=3):
        column = first + tl.arange(0, tile)
        is_column = column < inputs
        is_read = is_row[:, None] & is_column[None, :]
        numbers = tl.load(x + column, mask=is_column, other=0.0).to(tl.float32)
        if is_normed:
            more = tl.load(added + column, mask=is_column, other=0.0).to(tl.float32)
            rounded = (numbers + more).to(total.dtype.element_ty)
            tl.store(total + column, rounded, mask=is_column & (tl.program_id(0) == 0))
            numbers = rounded.to(tl.float32)
            squares += numbers * numbers
            numbers *= tl.load(norm + column, mask=is_column, other=0.0).to(tl.float32)
        part = tl.load(at + column[None, :], mask=is_read, other=0.0)
        found += as_numbers(part) * numbers[None, :]
        if is_gated:
            ups = at + outputs * inputs + column[None, :]
            beside += as_numbers(tl.load(ups, mask=is_read, other=0.0)) * numbers[None, :]
    result, up = tl.sum(found, 1), tl.sum(beside, 1)
    if has_scales:
        result *= tl.load(scales + row, mask=is_row, other=0.0).to(tl.float32)
        if is_gated:
            up *= tl.load(scales + outputs + row, mask=is_row, other=0.0).to(tl.float32)
    kind = out.dtype.element_ty
    if is_normed:
        scale = tl.rsqrt(tl.sum(squares, 0) / inputs + eps)
        result *= scale
    if has_bias:
        result += tl.load(bias + row, mask=is_row, other=0.0).to(tl.float32)
    if is_gated:
        result = gated_by(result, up * scale, kind)
    tl.store(out + row, result.to(kind), mask=is_row)
