"""The kernels between products give what plain PyTorch gives, rounded at the same places."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from internvl2.model.kernels import RMSNorm
from internvl2.model.rotary import Rotation

pytestmark = pytest.mark.compiled

STEP = {torch.float32: 1e-6, torch.bfloat16: 2**-7}
"""The last place of a number, which Triton's interpreter cuts off where torch rounds."""
DTYPES = [torch.float32, torch.bfloat16]


def assert_close(found: Tensor, wanted: Tensor) -> None:
    assert found.dtype == wanted.dtype
    error = (found.double() - wanted.double()).abs().max()
    assert error <= 2 * STEP[wanted.dtype] * wanted.double().abs().max()


def random(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(device, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [64, 896, 2048])
def test_a_sum_and_its_norm(device, dtype, dim):
    from internvl2.model.triton_kernels.sum_norm import sum_norm

    x, added, weight = (random(device, dtype, *shape) for shape in ((3, dim), (3, dim), (dim,)))
    total, normed = sum_norm(x, added, weight, 1e-6)
    assert_close(total, x + added)
    assert_close(normed, F.rms_norm(total, (dim,), weight, 1e-6))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inner", [48, 1024, 1500])
def test_a_gate(device, dtype, inner):
    from internvl2.model.triton_kernels.gate import gate

    product = random(device, dtype, 3, 2 * inner) * 4
    opening, up = product.chunk(2, dim=-1)
    assert_close(gate(product), F.silu(opening) * up)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(14, 2, 64), (3, 3, 80), (8, 2, 128)])
def test_turned_queries_and_keys_and_what_goes_to_the_cache(
    device, dtype, normed, heads, kv_heads, size
):
    from internvl2.model.triton_kernels.turn_and_store import turn_and_store

    tokens, block_size = 3, 16
    product = random(device, dtype, tokens, (heads + 2 * kv_heads) * size)
    angles = random(device, torch.float32, tokens, size // 2)
    rotate = Rotation(angles.cos() * 1.19, angles.sin() * 1.19, 1.19)
    norms = [RMSNorm(size, eps=1e-5, device=device, dtype=dtype) for _ in "qk"]
    for seed, norm in enumerate(norms, 1):
        norm.weight.data = random(device, dtype, size + seed)[:size]
    slots = torch.tensor([33, 0, 16], device=device)
    before = random(device, dtype, 2, 3, block_size, kv_heads, size)
    cache = before.clone()
    weights = (norms[0].weight, norms[1].weight) if normed else None
    with torch.no_grad():
        turned = turn_and_store(product, rotate.cos, rotate.sin, weights, 1e-5, *cache, slots)
        parts = product.view(tokens, -1, size).split([heads, kv_heads, kv_heads], dim=1)
        q, k = (n(x) if normed else x for n, x in zip(norms, parts[:2], strict=True))
        k, v = rotate(k), parts[2]
    assert_close(turned, torch.cat([rotate(q).detach(), k], dim=1))
    rows, old = (x.view(2, 3 * block_size, kv_heads, size) for x in (cache, before))
    assert torch.equal(rows[0, slots], turned[:, heads:])
    assert torch.equal(rows[1, slots], v)
    others = torch.ones(3 * block_size, dtype=torch.bool, device=device)
    others[slots] = False
    assert torch.equal(rows[:, others], old[:, others])


def test_padding_may_share_the_scratch_slot(device):
    from internvl2.model.triton_kernels.turn_and_store import turn_and_store

    product = random(device, torch.float32, 4, 4 * 16)
    cache = torch.zeros(2, 2, 16, 1, 16, device=device)
    slots = torch.tensor([5, 16, 16, 16], device=device)
    still = torch.ones(4, 8, device=device), torch.zeros(4, 8, device=device)
    turn_and_store(product, *still, None, 0.0, *cache, slots)
    assert torch.equal(cache[1, 0, 5, 0], product[0, 48:])
    written = cache.flatten(1, 2).abs().sum((0, 2, 3)).nonzero()[:, 0]
    assert written.tolist() == [5, 16]
