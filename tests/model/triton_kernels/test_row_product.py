"""A matrix times one row, with what stands around it, gives what plain PyTorch gives."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

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
    assert_close(row_product(x, weight, bias), F.linear(x, weight, bias))


def test_programs_of_many_outputs(device, monkeypatch):
    from internvl2.model.triton_kernels import row_product

    monkeypatch.setattr(row_product, "FEW", 4)
    x, weight = random(device, torch.float32, 1, 96), random(device, torch.float32, 11, 96)
    assert_close(row_product.row_product(x, weight, None), F.linear(x, weight))


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_a_product_of_a_normed_sum(device, dtype, inputs, outputs):
    from internvl2.model.triton_kernels.row_product import normed_row_product

    x, added, norm = random(device, dtype, 3, inputs).split(1)
    weight, bias = random(device, dtype, outputs, inputs), random(device, dtype, outputs)
    total, out = normed_row_product(x, added, norm[0], 1e-5, weight, bias)
    assert_close(total, x + added)
    assert_close(out, F.linear(F.rms_norm(total, (inputs,), norm[0], 1e-5), weight, bias))


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_a_gated_product_of_a_normed_sum(device, dtype, inputs, outputs):
    from internvl2.model.triton_kernels.row_product import gated_row_product

    x, added, norm = random(device, dtype, 3, inputs).split(1)
    weight = random(device, dtype, 2 * outputs, inputs) / 8
    total, out = gated_row_product(x, added, norm[0], 1e-5, weight)
    normed = F.rms_norm(total, (inputs,), norm[0], 1e-5)
    opening, up = F.linear(normed, weight).chunk(2, dim=-1)
    assert_close(total, x + added)
    assert_close(out, F.silu(opening) * up)
