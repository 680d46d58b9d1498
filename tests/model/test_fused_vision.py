"""A tower with fused kernels computes what it computes without them, at every shape."""

import logging

import pytest
import torch

from internvl2.config import VisionConfig
from internvl2.model import fused_vision
from internvl2.model.fused_vision import TileAttention, fuse_vision
from internvl2.model.kernel_choice import KernelChoice
from internvl2.model.vision import VisionTower
from internvl2.model.vision_kernels import PLAIN

SIDE = 56
SMALL = VisionConfig(48, 3, 4, 96, SIDE)
EVEN = VisionConfig(64, 3, 4, 96, SIDE)
"""With heads of 16 numbers; flash attention and cuDNN's take multiples of 8 alone."""
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


def attention_that(suits):
    """Kernels of that name, which note what they are called with."""
    calls = []

    def attend(q, k, v):
        calls.append(q.shape)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    return TileAttention(attend, suits), calls


@pytest.mark.parametrize(
    ("config", "suits"), [(EVEN, False), (SMALL, True)], ids=["PyTorch's answer", "padded heads"]
)
def test_attention_that_does_not_take_such_heads_is_never_called(
    monkeypatch, caplog, config, suits
):
    asked = []
    named, calls = attention_that(lambda params: asked.append(params) or suits)
    monkeypatch.setattr(fused_vision, "ATTENTIONS", {"one": named})
    trials = fused_vision._Trials.of(tower_of(config, torch.bfloat16))
    assert fused_vision._fastest(KernelChoice(), trials) is None
    assert calls == []
    assert caplog.records == []
    if config is EVEN:
        assert (asked[0].query.shape, asked[0].query.dtype) == ((7, 4, 17, 16), torch.bfloat16)
        assert not asked[0].query.is_contiguous()  # as in the tower


def test_pytorch_has_neither_flash_nor_cudnn_attention_for_cpus():
    trials = fused_vision._Trials.of(tower_of(EVEN, torch.bfloat16))
    assert not any(trials.suits(name) for name in fused_vision.ATTENTIONS)


@pytest.mark.parametrize(
    ("usual", "one", "other", "taken"), [(1, 2, 3, None), (2, 1, 3, "one"), (3, 2, 1, "other")]
)
def test_the_fastest_attention_is_taken(monkeypatch, usual, one, other, taken):
    named = {name: attention_that(lambda params: True)[0] for name in ("one", "other")}
    monkeypatch.setattr(fused_vision, "ATTENTIONS", named)
    trials = fused_vision._Trials.of(tower_of(EVEN))
    fastest = min(usual, one)
    # What is tried is timed first, then the fastest before it.
    seconds = iter([one, usual, other, fastest])
    choice = KernelChoice(seconds=lambda run: float(next(seconds)))
    found = fused_vision._fastest(choice, trials)
    assert found is (None if taken is None else named[taken].attend)


@pytest.mark.gpu
@pytest.mark.compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [SMALL, EVEN, LARGE], ids=["odd heads", "even", "RMS norms"])
def test_a_fused_tower_gives_what_the_plain_one_gives_on_a_gpu(config, dtype):
    tower, pixels = tower_of(config, dtype, "cuda"), pixels_of(13, dtype, "cuda")
    plain = tower(pixels)
    fuse_vision(tower, KernelChoice())
    assert tower.kernels.scaled_sum_norm is not None
    assert_close(tower(pixels), plain)


@pytest.mark.gpu
@pytest.mark.compiled
@pytest.mark.parametrize("config", [SMALL, EVEN], ids=["odd heads", "even"])
def test_a_tower_is_prepared_again_and_again_in_one_process(config, caplog):
    # cuDNN's kernel, refused once, would end the process when asked a second time.
    for _ in range(3):
        fuse_vision(tower_of(config, torch.bfloat16, "cuda"), KernelChoice())
    assert "attention" not in caplog.text


@pytest.mark.gpu
@pytest.mark.parametrize("name", fused_vision.ATTENTIONS)
def test_attention_called_by_name_agrees_with_pytorchs_own_on_a_gpu(name):
    trials = fused_vision._Trials.of(tower_of(EVEN, torch.bfloat16, "cuda"))
    if not trials.suits(name):
        pytest.skip(f"PyTorch has no {name} here")
    q, k, v = (torch.randn(3, 4, 17, 16, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert_close(fused_vision.ATTENTIONS[name].attend(q, k, v), wanted)
