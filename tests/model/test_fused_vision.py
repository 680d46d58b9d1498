"""A tower with fused kernels computes what it computes without them, at every shape."""

import logging

import pytest
import torch

from internvl2.config import VisionConfig
from internvl2.model import fused_vision
from internvl2.model.fused_vision import fuse_vision
from internvl2.model.kernel_choice import KernelChoice
from internvl2.model.vision import VisionTower
from internvl2.model.vision_kernels import PLAIN

SIDE = 56
SMALL = VisionConfig(48, 3, 4, 96, SIDE)
LARGE = VisionConfig(48, 3, 4, 96, SIDE, qk_norm=True, norm="rms_norm", qkv_bias=False)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


def tower_of(config, dtype=torch.float32, device="cpu"):
    """With norms and scales that leave traces."""
    torch.manual_seed(0)
    tower = VisionTower(config)
    for name, parameter in tower.named_parameters():
        if "norm" in name or "scale" in name:
            torch.nn.init.normal_(parameter, 0.5, 0.5)
    return tower.to(device, dtype).eval().requires_grad_(False)


def pixels_of(tiles, dtype=torch.float32, device="cpu"):
    shape = (tiles, 3, SIDE, SIDE)
    return torch.randn(shape, generator=torch.Generator().manual_seed(tiles)).to(device, dtype)


def assert_close(found, wanted):
    error = (found.double() - wanted.double()).abs().max()
    assert error <= TOLERANCE[wanted.dtype] * wanted.double().abs().max()


@pytest.mark.triton
@pytest.mark.compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [SMALL, LARGE], ids=["layer norms", "RMS norms"])
def test_a_fused_tower_gives_what_the_plain_one_gives(config, dtype):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: kernels are compiled for it, not interpreted")
    tower, pixels = tower_of(config, dtype), pixels_of(2, dtype)
    plain = [tower(pixels, number) for number in (0, 1, 2, None)]
    fuse_vision(tower, KernelChoice())
    assert tower.kernels.scaled_sum_norm is not None
    assert tower.kernels.biased_gelu is not None
    assert (tower.kernels.norm_queries_and_keys is not None) == config.qk_norm
    for found, wanted in zip([tower(pixels, n) for n in (0, 1, 2, None)], plain, strict=True):
        assert_close(found, wanted)


@pytest.mark.parametrize("config", [SMALL, LARGE], ids=["layer norms", "RMS norms"])
def test_a_tower_whose_kernels_do_not_run_is_plain_and_says_so_once(config, monkeypatch, caplog):
    def broken():
        raise RuntimeError("no compiler here")

    for name in ("_scaled_sum_norm", "_biased_gelu", "_norm_queries_and_keys"):
        monkeypatch.setattr(fused_vision, name, broken)
    tower, pixels = tower_of(config), pixels_of(2)
    plain = tower(pixels)
    with caplog.at_level(logging.WARNING):
        fuse_vision(tower, KernelChoice())
    assert tower.kernels == PLAIN
    assert torch.equal(tower(pixels), plain)
    assert [record.message for record in caplog.records if "no compiler here" in record.message]
    assert len(caplog.records) == 1


def test_attention_that_is_called_by_name_is_the_towers(monkeypatch):
    tower, pixels = tower_of(SMALL), pixels_of(2)
    plain = tower(pixels)
    calls = []

    def attend(q, k, v):
        calls.append(q.shape)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    tower.use(fused_vision.VisionKernels(attend=attend))
    assert torch.equal(tower(pixels), plain)
    assert calls == [(2, 4, 17, 12)] * 3


def test_flash_and_cudnn_are_tried_on_gpus_alone():
    tower = tower_of(SMALL, torch.bfloat16)
    trials = fused_vision._Trials.of(tower)
    assert fused_vision._fastest_attention(KernelChoice(), trials) is None


@pytest.mark.parametrize(
    ("usual", "one", "other", "taken"), [(1, 2, 3, None), (2, 1, 3, "one"), (3, 2, 1, "other")]
)
def test_the_fastest_attention_is_taken(monkeypatch, usual, one, other, taken):
    sdpa = torch.nn.functional.scaled_dot_product_attention
    named = {"one": lambda q, k, v: sdpa(q, k, v), "other": lambda q, k, v: sdpa(q, k, v)}
    monkeypatch.setattr(fused_vision, "ATTENTIONS", named)
    trials = fused_vision._Trials.of(tower_of(SMALL))
    fastest = min(usual, one)
    # What is tried is timed first, then the fastest before it.
    seconds = iter([one, usual, other, fastest])
    choice = KernelChoice(seconds=lambda run: float(next(seconds)))
    found = fused_vision._fastest(choice, trials)
    assert found is (None if taken is None else named[taken])


@pytest.mark.gpu
@pytest.mark.compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [SMALL, LARGE], ids=["layer norms", "RMS norms"])
def test_a_fused_tower_gives_what_the_plain_one_gives_on_a_gpu(config, dtype):
    tower, pixels = tower_of(config, dtype, "cuda"), pixels_of(13, dtype, "cuda")
    plain = tower(pixels)
    fuse_vision(tower, KernelChoice())
    assert tower.kernels.scaled_sum_norm is not None
    assert_close(tower(pixels), plain)
