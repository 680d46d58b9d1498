"""Few bits on a GPU: kernels as they are planned there, in models and in CUDA graphs."""

import logging

import pytest
import torch
from torch import nn

from internvl2.config import DecoderConfig, RotaryConfig
from internvl2.model.attention import PackedAttention
from internvl2.model.decoder import Decoder
from internvl2.model.joined import join_linears
from internvl2.model.kernel_choice import KernelChoice
from internvl2.model.low_bit import FP8_CAPABILITY, LINEARS
from internvl2.model.low_bit_linear import LowBitLinear
from internvl2.model.low_bit_plans import plan_products
from internvl2.model.quantize import linear_maps
from internvl2.model.rotary import Positions

pytestmark = [pytest.mark.gpu, pytest.mark.compiled]

CONFIG = DecoderConfig("qwen2", 300, 512, 2, 8, 2, 64, 1024, 512, RotaryConfig(1e4), qkv_bias=True)


@pytest.fixture(params=LINEARS)
def kind(request) -> type[LowBitLinear]:
    if request.param == "fp8" and torch.cuda.get_device_capability() < FP8_CAPABILITY:
        pytest.skip("this GPU has no fp8")
    return LINEARS[request.param]


def one_map(kind, dtype=torch.bfloat16, inputs=2048, outputs=1088) -> LowBitLinear:
    torch.manual_seed(0)
    plain = nn.Linear(inputs, outputs, dtype=dtype, device="cuda").requires_grad_(False)
    return kind(plain.weight, plain.bias)


def always_kernels() -> KernelChoice:
    """Takes every kernel that computes the right numbers, faster or not."""
    return KernelChoice(lambda _: 0.0)


def few_bit_decoder(kind) -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(CONFIG).cuda().bfloat16().eval().requires_grad_(False)
    for holder, name in linear_maps(decoder.layers):
        linear = getattr(holder, name)
        setattr(holder, name, kind(linear.weight, linear.bias))
    return decoder


@torch.inference_mode()
def log_probabilities(decoder: Decoder, lengths: list[int]) -> torch.Tensor:
    tokens = torch.arange(sum(lengths), device="cuda") % CONFIG.vocab_size
    attend = PackedAttention.of(lengths, tokens.device)
    positions = Positions.packed(lengths, tokens.device)
    hidden = decoder(decoder.embedding(tokens), positions, attend)
    return decoder.head(hidden).float().log_softmax(dim=-1)


@pytest.mark.parametrize("rows", [1, 2, 7, 16, 33, 64, 100, 256, 300])
def test_planned_products_are_those_of_the_dequantised_weight(kind, rows, caplog):
    few = one_map(kind)
    with caplog.at_level(logging.WARNING):
        plan_products(few, always_kernels())
    assert not caplog.records
    assert [type(plan).__name__ for _, plan in few.plans][:2] == ["Vectors", "Tiles"]
    x = torch.randn(rows, 2048, dtype=torch.bfloat16, device="cuda")
    wanted = nn.functional.linear(x.double(), few.weight.double(), few.bias.double())
    limit = 0.05 if few._plan(rows) is None and kind is LINEARS["fp8"] else 0.01
    error = (few(x).double() - wanted).norm() / wanted.norm()
    assert error < limit


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("name", ["int8", "int4"])
def test_other_formats_than_bf16_are_planned_too(name, dtype):
    few = one_map(LINEARS[name], dtype)
    plan_products(few, always_kernels())
    for rows in (1, 5):
        x = torch.randn(rows, 2048, dtype=dtype, device="cuda")
        wanted = nn.functional.linear(x.double(), few.weight.double(), few.bias.double())
        limit = 1e-5 if dtype is torch.float32 and name == "int8" else 2e-3
        assert (few(x).double() - wanted).norm() / wanted.norm() < limit


@pytest.mark.parametrize("rows", [1, 5, 64])
@torch.inference_mode()
def test_planned_products_are_captured_in_a_cuda_graph(kind, rows):
    few = one_map(kind)
    plan_products(few, always_kernels())
    x = torch.randn(rows, 2048, dtype=torch.bfloat16, device="cuda")
    few(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = few(x)
    for _ in range(3):
        x.copy_(torch.randn_like(x))
        graph.replay()
        assert torch.equal(found, few(x))


@pytest.mark.parametrize("lengths", [[1], [1] * 7, [20, 30], [150, 250]])
def test_predictions_with_kernels_are_close_to_those_without(kind, lengths):
    plain, planned = few_bit_decoder(kind), few_bit_decoder(kind)
    join_linears(planned.layers, in_few_bits=True)
    plan_products(planned, always_kernels())
    wanted, found = (log_probabilities(one, lengths) for one in (plain, planned))
    divergence = (wanted.exp() * (wanted - found)).sum(dim=-1).mean()
    # Kernels leave inputs as they are, which PyTorch's product in fp8 rounds.
    assert divergence < (0.05 if kind is LINEARS["fp8"] else 1e-3)


def test_four_bit_codes_that_come_to_a_gpu_and_go_are_the_same_weight():
    torch.manual_seed(0)
    few = LINEARS["int4"](torch.randn(192, 256, dtype=torch.bfloat16), None)
    wanted, codes = few.weight, few.codes.clone()
    assert torch.equal(few.cuda().weight.cpu(), wanted)
    assert not torch.equal(few.codes.cpu(), codes)
    assert torch.equal(few.cpu().codes, codes)
