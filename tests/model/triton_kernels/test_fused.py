"""A decoder with joined products and fused kernels computes what it computed before."""

import copy
from dataclasses import replace
from itertools import count

import pytest
import torch
from torch import Tensor

from internvl2.config import DecoderConfig, RotaryConfig
from internvl2.model.attention import DecodeSpan, PagedAttention, PrefillSpan
from internvl2.model.decoder import Decoder
from internvl2.model.fused import fuse
from internvl2.model.kernel_choice import KernelChoice
from internvl2.model.kernels import PLAIN
from internvl2.model.rotary import Positions

pytestmark = pytest.mark.compiled

QWEN2 = DecoderConfig("qwen2", 99, 64, 2, 6, 2, 16, 96, 512, RotaryConfig(1e4), qkv_bias=True)
QWEN3 = replace(QWEN2, kind="qwen3", head_dim=24, qkv_bias=False, qk_norm=True)
PHI3 = replace(
    QWEN2,
    kind="phi3",
    num_kv_heads=6,
    qkv_bias=False,
    rotary=RotaryConfig(1e4, "long", 20, 1.0, (1.0,) * 8, (4.0,) * 8, 1.19),
)
BOUND = {torch.float32: 2e-6, torch.bfloat16: 3e-2}
TABLES, LENGTHS = [[3, 1, 2], [5, 4, 4], [7, 7, 7]], (40, 17, 3)


def decoders(config: DecoderConfig, device: torch.device, dtype: torch.dtype) -> list[Decoder]:
    """The same one plain and fused, with every kernel."""
    torch.manual_seed(0)
    plain = Decoder(config).to(device, dtype).eval().requires_grad_(False)
    for name, weight in plain.named_parameters():
        if "norm" in name:
            weight.uniform_(0.5, 1.5)
    fused = copy.deepcopy(plain)
    times = (2.0**n for n in count())  # what is tried is timed first, and taken
    fuse(fused, KernelChoice(seconds=lambda run: next(times)))
    for_any = set(PLAIN.__slots__) - {"prefill", "scores"}
    assert None not in [getattr(fused.kernels, name) for name in for_any]
    return [plain, fused]


def caches(config: DecoderConfig, device: torch.device, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (2, config.num_layers, 9, 16, config.num_kv_heads, config.head_dim)
    return torch.randn(shape, generator=generator).to(device, dtype)


def decode_step(
    decoder: Decoder, device: torch.device, dtype: torch.dtype, rows: int
) -> list[Tensor]:
    """Hidden states of a new token of so many sequences, and the cache behind them."""
    keys, values = caches(decoder.config, device, dtype)
    tables, lengths = (torch.tensor(x[:rows], device=device) for x in (TABLES, LENGTHS))
    index = lengths - 1
    slots = tables.gather(1, (index // 16)[:, None])[:, 0] * 16 + index % 16
    span = DecodeSpan(0, tables, lengths, LENGTHS[:rows])
    attend = PagedAttention(keys, values, slots, (), span)
    x = decoder.embedding(torch.tensor([5, 6, 7], device=device)[:rows])
    hidden = decoder(x, Positions(index, lengths), attend)
    return [hidden, decoder.scores(hidden), keys, values]


def assert_close(found: Tensor, wanted: Tensor) -> None:
    error = (found.double() - wanted.double()).norm() / wanted.double().norm()
    assert error <= BOUND[wanted.dtype]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [QWEN2, QWEN3, PHI3], ids=lambda config: config.kind)
@pytest.mark.parametrize("rows", [3, 1])
@torch.no_grad()
def test_a_step_of_single_tokens(device, config, dtype, rows):
    plain, fused = (decode_step(d, device, dtype, rows) for d in decoders(config, device, dtype))
    for found, wanted in zip(fused, plain, strict=True):
        assert_close(found, wanted)


@pytest.mark.slow
@torch.no_grad()
def test_each_product_with_one_row_gets_its_fastest_shape_and_none_if_no_faster(device):
    from internvl2.model.triton_kernels.row_product import shapes_for

    times = (2.0**n for n in count())
    decoder = Decoder(QWEN2).to(device).eval().requires_grad_(False)
    fuse(decoder, KernelChoice(seconds=lambda run: next(times)))
    row = decoder.kernels.row
    chosen = [part.keywords["shape"] for part in (row.output, row.normed, row.gated, row.down)]
    products = ((96, False), (64, False), (64, True), (96, False))
    assert chosen == [shapes_for(inputs, 4, is_gated=gated)[-1] for inputs, gated in products]
    usual = Decoder(QWEN2).to(device).eval().requires_grad_(False)
    fuse(usual, KernelChoice(seconds=lambda run: 1.0))
    assert usual.kernels.row is None


@pytest.mark.slow
@torch.no_grad()
def test_a_step_that_mixes_prompts_and_single_tokens(device):
    dtype, steps = torch.float32, []
    for decoder in decoders(QWEN3, device, dtype):
        keys, values = caches(QWEN3, device, dtype)
        blocks = torch.tensor([[0, 6], [8, 2]], device=device)
        prompts = PrefillSpan(0, 5, 0, blocks[0, :1]), PrefillSpan(5, 12, 14, blocks[1])
        single = DecodeSpan(
            12, torch.tensor([[3, 1]], device=device), torch.tensor([18], device=device), (18,)
        )
        slots = torch.tensor([*range(5), *range(128 + 14, 144), *range(32, 37), 17], device=device)
        index = torch.tensor([*range(5), *range(14, 21), 17], device=device)
        attend = PagedAttention(keys, values, slots, prompts, single)
        x = decoder.embedding(torch.arange(13, device=device))
        steps.append([decoder(x, Positions(index, index + 1), attend), keys, values])
    for wanted, found in zip(*steps, strict=True):
        assert_close(found, wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [3, 1])
@pytest.mark.parametrize("config", [QWEN2, QWEN3], ids=lambda config: config.kind)
@torch.no_grad()
def test_a_fused_step_can_be_captured_as_a_cuda_graph(config, rows):
    device, dtype = torch.device("cuda"), torch.bfloat16
    _, fused = decoders(config, device, dtype)
    keys, values = caches(config, device, dtype)
    tables, lengths = (torch.tensor(x[:rows], device=device) for x in (TABLES, LENGTHS))
    tokens = torch.tensor([5, 6, 7], device=device)[:rows]

    def step() -> Tensor:
        index = lengths - 1
        slots = tables.gather(1, (index // 16)[:, None])[:, 0] * 16 + index % 16
        attend = PagedAttention(keys, values, slots, (), DecodeSpan(0, tables, lengths, None))
        return fused(fused.embedding(tokens), Positions(index, lengths), attend)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    tokens += 20
    lengths += torch.tensor([1, 15, 3], device=device)[:rows]
    graph.replay()
    torch.testing.assert_close(captured, step())
