"""NF4: the paper's values and memory, the error that theory expects, and no weight kept."""

import pytest
import torch
import torch.nn.functional as F

from internvl2.config import DecoderConfig, InternVLConfig, RotaryConfig, VisionConfig
from internvl2.model.internvl import random_model
from internvl2.model.lora import LoraLinear, LoraSettings
from internvl2.model.quantize import (
    NF4,
    STORED,
    Nf4Linear,
    dequantize_nf4,
    linear_maps,
    quantize_decoder,
    quantize_nf4,
    rounded,
)

CONFIG = InternVLConfig(
    vision=VisionConfig(32, 2, 4, 64, image_size=28),
    decoder=DecoderConfig("qwen2", 64, 32, 2, 4, 2, 8, 64, 512, RotaryConfig(1e4)),
    template="internvl2_5",
    tile_size=28,
    image_token_id=7,
)


def nearest(numbers: torch.Tensor) -> torch.Tensor:
    """Of the sixteen values."""
    values = torch.tensor(NF4, dtype=numbers.dtype)
    return values[(numbers[..., None] - values).abs().argmin(dim=-1)]


def expected_error() -> float:
    """Mean square error of normal numbers in blocks of 64, integrated over the block's largest."""
    normal = torch.distributions.Normal(0.0, 1.0)
    largest = torch.linspace(0.5, 6.0, 300, dtype=torch.float64)
    inside = 2 * normal.cdf(largest) - 1
    density = 64 * inside**63 * 2 * normal.log_prob(largest).exp()
    share = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    x = largest[:, None] * share
    squares = (x - largest[:, None] * nearest(share)).square() * normal.log_prob(x).exp()
    given = torch.trapezoid(squares, x, dim=1) / inside
    return (63 / 64 * torch.trapezoid(given * density, largest)).item()


def saved_bytes(result_of, x: torch.Tensor) -> dict[int, tuple[torch.Size, int]]:
    """Shape and bytes of each tensor that is kept for the backward pass."""
    kept = {}

    def keep(t: torch.Tensor) -> torch.Tensor:
        kept[t.data_ptr()] = (t.shape, t.untyped_storage().nbytes())
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        result_of(x).square().sum().backward()
    return kept


def test_the_code_book_is_the_papers():
    """Quantiles of the normal distribution, one more above 0 than below it, the ends at 1."""
    end = (2 - 1 / 32 - 1 / 30) / 2
    above = torch.special.ndtri(torch.linspace(end, 0.5, 9, dtype=torch.float64)[:-1])
    below = -torch.special.ndtri(torch.linspace(end, 0.5, 8, dtype=torch.float64)[:-1])
    values = torch.cat([above, below, torch.zeros(1)]).sort().values
    found = torch.tensor(NF4, dtype=torch.float64)
    torch.testing.assert_close(found, values / above.max(), rtol=0, atol=5e-7)


def test_tensors_made_of_code_book_and_scales_come_back_exactly():
    torch.manual_seed(0)
    values = torch.tensor(NF4)[torch.randint(16, (512, 64))]
    values[:, 5] = 1.0
    scales = torch.tensor([0.75, 1.25]).repeat(256)[:, None]
    for tensor in (values * 0.5, values * scales):
        assert torch.equal(rounded(tensor), tensor)


def test_the_error_of_normal_numbers_is_the_expected_one():
    torch.manual_seed(0)
    weight = torch.randn(512, 1024)
    error = (rounded(weight) - weight).square().mean().item()
    assert error == pytest.approx(expected_error(), rel=0.01)


def test_quantised_scales_cost_next_to_nothing():
    torch.manual_seed(0)
    weight = torch.randn(256, 1024) * (0.2 + torch.rand(256, 1))
    blocks = weight.view(-1, 64)
    scales = blocks.abs().amax(dim=1, keepdim=True)
    exact = (nearest(blocks / scales) * scales - blocks).square().mean().item()
    assert (rounded(weight) - weight).square().mean().item() < 1.005 * exact


def test_a_weight_takes_half_a_byte_and_a_64th():
    linear = Nf4Linear(torch.randn(512, 1024), None)
    size = sum(getattr(linear, name).nbytes for name in STORED)
    books = linear.pair_values.nbytes + linear.scale_values.nbytes
    assert (size - books) / (512 * 1024) == pytest.approx(0.516, abs=0.0005)
    assert books < 4096


@pytest.mark.parametrize("shape", [(3, 5), (1, 64), (7, 65)])
def test_any_shape_can_be_stored(shape: tuple[int, int]):
    torch.manual_seed(0)
    weight = torch.randn(shape)
    stored = quantize_nf4(weight)
    back = dequantize_nf4(stored, weight.shape, torch.bfloat16)
    assert (back.shape, back.dtype) == (weight.shape, torch.bfloat16)
    assert (back - weight).abs().max() < 0.2 * weight.abs().max()


def test_zeros_stay_zeros():
    weight = torch.zeros(4, 128)
    assert torch.equal(rounded(weight), weight)
    weight[0, 0] = 3.0
    assert torch.count_nonzero(rounded(weight)) == 1


def test_a_quantised_map_and_its_gradient_are_those_of_the_dequantised_weight():
    torch.manual_seed(0)
    linear = Nf4Linear(torch.randn(40, 32), torch.randn(40))
    plain, quantised = (torch.randn(2, 3, 32).requires_grad_() for _ in range(2))
    quantised.data.copy_(plain.data)
    expected, found = F.linear(plain, linear.weight, linear.bias), linear(quantised)
    assert torch.equal(found, expected)
    for result in (found, expected):
        result.square().sum().backward()
    assert torch.equal(quantised.grad, plain.grad)
    assert linear.bias.grad is None


@pytest.mark.parametrize("dora", [False, True])
def test_no_dequantised_weight_is_kept_for_the_backward_pass(dora: bool):
    layer = LoraLinear(Nf4Linear(torch.randn(256, 256), None), LoraSettings(4, 8.0, dora=dora))
    kept = saved_bytes(layer, torch.randn(2, 256))
    assert torch.Size((2, 256)) in {shape for shape, _ in kept.values()}
    assert sum(size for _, size in kept.values()) < 256 * 256


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.parametrize("dora", [False, True])
def test_compiled_code_keeps_no_dequantised_weight_either(dora: bool):
    torch.manual_seed(0)
    base = Nf4Linear(torch.randn(256, 256), torch.randn(256))
    layer = LoraLinear(base, LoraSettings(4, 8.0, dora=dora))
    layer.up.data.normal_()
    x = torch.randn(2, 256).requires_grad_()
    found = []
    for run in (layer, torch.compile(layer.forward)):
        kept = saved_bytes(run, x)
        found.append([x.grad, *(p.grad for p in layer.parameters() if p.grad is not None)])
        x.grad = None
        layer.zero_grad()
    assert torch.Size((4, 256)) in {shape for shape, _ in kept.values()}
    assert sum(size for _, size in kept.values()) < 256 * 256
    for compiled, plain in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-3)


def test_the_decoders_layers_are_quantised_and_nothing_else():
    plain, model = random_model(CONFIG), random_model(CONFIG)
    quantize_decoder(model)
    left = {name for name, _ in model.named_parameters()}
    gone = {name for name, _ in plain.named_parameters()} - left
    maps = ("q", "k", "v", "o", "gate", "up", "down")
    assert {name.split(".")[-2] for name in gone} == set(maps)
    assert len(gone) == len(maps) * CONFIG.decoder.num_layers
    assert all(name.startswith("decoder.layers.") for name in gone)
    assert len(linear_maps(model.decoder.layers)) == len(gone)


def test_scales_that_were_converted_are_refused():
    linear = Nf4Linear(torch.randn(4, 64), None).to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"scales .* were converted to torch\.bfloat16"):
        linear(torch.randn(2, 64))
