"""A matrix times one row, with what stands around it, gives what plain PyTorch gives."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from internvl2.model.joined import RowMatrix
from internvl2.model.low_bit import Fp8Linear, Int8Linear

pytestmark = pytest.mark.compiled

BOUND = {torch.float32: 2e-6, torch.bfloat16: 2e-2}
SHAPES = [(896, 6), (96, 5), (1100, 3)]


def random(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(device, dtype)


def assert_close(found: Tensor, wanted: Tensor) -> None:
    assert found.dtype == wanted.dtype
    error = (found.double() - wanted.double()).abs().max()
    assert error <= BOUND[wanted.dtype] * wanted.double().abs().max()


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_a_product(device, dtype, biased, inputs, outputs):
    from internvl2.model.triton_kernels.row_product import row_product

    x, weight = random(device, dtype, 1, inputs), random(device, dtype, outputs, inputs)
    bias = random(device, dtype, outputs) if biased else None
    assert_close(row_product(x, RowMatrix(weight, bias)), F.linear(x, weight, bias))


@pytest.mark.parametrize("inputs", [96, 2048, 3000])
def test_every_shape_of_programs_gives_the_same(device, inputs):
    from internvl2.model.triton_kernels import row_product as kernels

    shapes = kernels.shapes_for(inputs, 4, is_gated=True)
    assert shapes[0].rows == kernels.SHAPES[0].rows
    assert len(set(shapes)) == len(shapes) > 2
    x, added, norm = random(device, torch.float32, 3, inputs).split(1)
    matrix = RowMatrix(random(device, torch.float32, 22, inputs) / 8, None)
    normed = F.rms_norm(x + added, (inputs,), norm[0], 1e-5)
    product = F.linear(normed, matrix.weight)
    opening, up = product.chunk(2, dim=-1)
    for shape in shapes:
        assert_close(kernels.row_product(normed, matrix, shape), product)
        _, found = kernels.normed_row_product(x, added, norm[0], 1e-5, matrix, shape)
        assert_close(found, product)
        _, found = kernels.gated_row_product(x, added, norm[0], 1e-5, matrix, shape)
        assert_close(found, F.silu(opening) * up)


def test_programs_of_many_outputs(device, monkeypatch):
    from internvl2.model.triton_kernels import row_product

    monkeypatch.setattr(row_product, "FEW", 4)
    x, weight = random(device, torch.float32, 1, 96), random(device, torch.float32, 11, 96)
    assert_close(row_product.row_product(x, RowMatrix(weight, None)), F.linear(x, weight))


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_a_product_of_a_normed_sum(device, dtype, inputs, outputs):
    from internvl2.model.triton_kernels.row_product import normed_row_product

    x, added, norm = random(device, dtype, 3, inputs).split(1)
    weight, bias = random(device, dtype, outputs, inputs), random(device, dtype, outputs)
    total, out = normed_row_product(x, added, norm[0], 1e-5, RowMatrix(weight, bias))
    assert_close(total, x + added)
    assert_close(out, F.linear(F.rms_norm(total, (inputs,), norm[0], 1e-5), weight, bias))


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_a_gated_product_of_a_normed_sum(device, dtype, inputs, outputs):
    from internvl2.model.triton_kernels.row_product import gated_row_product

    x, added, norm = random(device, dtype, 3, inputs).split(1)
    weight = random(device, dtype, 2 * outputs, inputs) / 8
    total, out = gated_row_product(x, added, norm[0], 1e-5, RowMatrix(weight, None))
    normed = F.rms_norm(total, (inputs,), norm[0], 1e-5)
    opening, up = F.linear(normed, weight).chunk(2, dim=-1)
    assert_close(total, x + added)
    assert_close(out, F.silu(opening) * up)


@pytest.mark.parametrize("kind", [Int8Linear, Fp8Linear])
@pytest.mark.parametrize(("inputs", "outputs"), [(896, 16), (96, 32)])
def test_products_with_codes_of_eight_bits(device, kind, inputs, outputs):
    from internvl2.model.triton_kernels.row_product import normed_row_product, row_product

    bias = random(device, torch.float32, outputs)
    few = kind(random(device, torch.float32, outputs, inputs), bias)
    x, added, norm = random(device, torch.float32, 3, inputs).split(1)
    assert_close(row_product(x, few.matrix), F.linear(x, few.weight, bias))
    total, out = normed_row_product(x, added, norm[0], 1e-5, few.matrix)
    assert_close(out, F.linear(F.rms_norm(total, (inputs,), norm[0], 1e-5), few.weight, bias))


@pytest.mark.parametrize("kind", [Int8Linear, Fp8Linear])
def test_gated_products_with_codes_of_eight_bits(device, kind):
    from internvl2.model.triton_kernels.row_product import gated_row_product

    few = kind(random(device, torch.bfloat16, 64, 896) / 8, None)
    x, added, norm = random(device, torch.bfloat16, 3, 896).split(1)
    total, out = gated_row_product(x, added, norm[0], 1e-5, few.matrix)
    normed = F.rms_norm(total, (896,), norm[0], 1e-5)
    opening, up = F.linear(normed, few.weight).chunk(2, dim=-1)
    assert_close(out, F.silu(opening) * up)


WALKS = [(8, 4, 4), (1, 8, 2), (2, 16, 1)]
"""Rows, warps and programs."""


@pytest.mark.parametrize("kind", [None, Int8Linear, Fp8Linear])
@pytest.mark.parametrize(("inputs", "outputs"), [(896, 48), (112, 16)])
@pytest.mark.parametrize("walk", WALKS)
def test_every_walk_gives_the_same(device, kind, inputs, outputs, walk):
    from internvl2.model.triton_kernels import row_product as kernels
    from internvl2.model.triton_kernels.row_walk import Walk

    walk = Walk(*walk)
    x, added, norm = random(device, torch.float32, 3, inputs).split(1)
    weight = random(device, torch.float32, outputs, inputs) / 8
    bias = random(device, torch.float32, outputs)
    few = None if kind is None else kind(weight, bias)
    matrix = RowMatrix(weight, bias) if few is None else few.matrix
    weight = weight if few is None else few.weight
    normed = F.rms_norm(x + added, (inputs,), norm[0], 1e-5)
    opening, up = F.linear(normed, weight).chunk(2, dim=-1)
    assert_close(kernels.row_product(x, matrix, walk), F.linear(x, weight, bias))
    total, found = kernels.normed_row_product(x, added, norm[0], 1e-5, matrix, walk)
    assert_close(total, x + added)
    assert_close(found, F.linear(normed, weight, bias))
    unbiased = replace(matrix, bias=None)
    _, found = kernels.gated_row_product(x, added, norm[0], 1e-5, unbiased, walk)
    assert_close(found, F.silu(opening) * up)


@pytest.mark.parametrize("walk", WALKS)
def test_walks_end_where_the_outputs_do(device, walk):
    from internvl2.model.triton_kernels.row_product import row_product
    from internvl2.model.triton_kernels.row_walk import Walk

    x, weight = random(device, torch.float32, 1, 200), random(device, torch.float32, 7, 200)
    whole = torch.full((9, 200), float("nan"), device=device)
    whole[:7] = weight
    found = row_product(x, RowMatrix(whole[:7], None), Walk(*walk))
    assert_close(found, F.linear(x, weight))


@pytest.mark.parametrize(
    ("inputs", "size", "is_gated", "walks"),
    [
        (896, 2, True, [(4, 4, 4), (2, 4, 4), (8, 8, 2), (4, 8, 2), (8, 16, 1)]),
        (4096, 2, True, [(1, 4, 4), (2, 8, 2), (1, 8, 2), (4, 16, 1), (2, 16, 1)]),
        (4096, 1, True, [(2, 4, 4), (1, 4, 4), (4, 8, 2), (2, 8, 2), (8, 16, 1), (4, 16, 1)]),
        (8192, 2, False, [(2, 8, 2), (1, 8, 2), (4, 16, 1), (2, 16, 1)]),
        (14336, 1, False, [(4, 16, 1), (2, 16, 1)]),
        (20000, 1, False, []),
    ],
)
def test_walks_take_what_registers_allow(inputs, size, is_gated, walks):
    from internvl2.model.triton_kernels.row_walk import Walk, walks_for

    assert walks_for(inputs, size, is_gated=is_gated) == tuple(Walk(*walk) for walk in walks)
