"""A tower's kernels give what plain PyTorch gives, rounded at the same places."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytestmark = pytest.mark.compiled

STEP = {torch.float32: 1e-6, torch.bfloat16: 2**-7}
"""The last place of a number, which Triton's interpreter cuts off where torch rounds."""
DTYPES = [torch.float32, torch.bfloat16]
DIMS = [48, 1024, 3200]


def assert_close(found: Tensor, wanted: Tensor) -> None:
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    error = (found.double() - wanted.double()).abs().max()
    assert error <= 2 * STEP[wanted.dtype] * wanted.double().abs().max()


def random(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(device, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_centred", [True, False])
@pytest.mark.parametrize("dim", DIMS)
def test_a_scaled_sum_and_its_norm(device, dtype, is_centred, dim):
    from internvl2.model.triton_kernels.vision import scaled_sum_norm

    shapes = ((2, 3, dim), (2, 3, dim), (dim,), (dim,), (dim,))
    x, branch, scale, weight, bias = (random(device, dtype, *shape) for shape in shapes)
    branch, bias = branch.roll(1), bias.roll(1)
    total, normed = scaled_sum_norm(x, branch, scale, weight, bias if is_centred else None, 1e-6)
    assert_close(total, x + branch * scale)
    if is_centred:
        assert_close(normed, F.layer_norm(total, (dim,), weight, bias, 1e-6))
    else:
        assert_close(normed, F.rms_norm(total, (dim,), weight, 1e-6))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_far_from_zero_keeps_its_digits_in_a_layer_norm(device, dtype):
    from internvl2.model.triton_kernels.vision import scaled_sum_norm

    x = random(device, dtype, 2, 48) + 100
    one, nothing = torch.ones(48, device=device, dtype=dtype), torch.zeros_like(x)
    total, normed = scaled_sum_norm(x, nothing, one, one, nothing[0], 1e-6)
    # PyTorch's own fp32 kernels are less exact than that, and not alike on all devices.
    assert_close(normed, F.layer_norm(total.double(), (48,), eps=1e-6).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inner", [96, 1024, 1500])
def test_a_gelu_and_its_bias(device, dtype, inner):
    from internvl2.model.triton_kernels.vision import biased_gelu

    product, bias = random(device, dtype, 2, 3, inner) * 4, random(device, dtype, inner)
    wanted = F.gelu(product + bias)
    assert_close(biased_gelu(product, bias), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", DIMS)
def test_norms_of_queries_and_keys_leave_values_alone(device, dtype, dim):
    from internvl2.model.triton_kernels.vision import norm_queries_and_keys

    product, weights = random(device, dtype, 2, 3, 3 * dim), random(device, dtype, 2, dim)
    q, k, v = product.clone().chunk(3, dim=-1)
    found = norm_queries_and_keys(product, *weights, 1e-6).chunk(3, dim=-1)
    assert_close(found[0], F.rms_norm(q, (dim,), weights[0], 1e-6))
    assert_close(found[1], F.rms_norm(k, (dim,), weights[1], 1e-6))
    assert torch.equal(found[2], v)
