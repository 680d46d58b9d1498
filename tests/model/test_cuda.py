"""On a CUDA device the model computes what it computes on a CPU, within bf16's rounding."""

import dataclasses

import pytest
import torch

from internvl2.config import DecoderConfig, InternVLConfig, RotaryConfig, VisionConfig
from internvl2.model.attention import DecodeSpan, PackedAttention, PagedAttention, PrefillSpan
from internvl2.model.internvl import InternVL, random_model
from internvl2.model.rotary import Positions

pytestmark = pytest.mark.gpu

DECODER = DecoderConfig(
    kind="qwen2",
    vocab_size=512,
    hidden_size=256,
    num_layers=4,
    num_heads=8,
    num_kv_heads=2,
    head_dim=64,
    intermediate_size=512,
    max_positions=4096,
    rotary=RotaryConfig(theta=1e6, kind="dynamic", limit=300, factor=2.0),
    qkv_bias=True,
)
CONFIG = InternVLConfig(
    vision=VisionConfig(hidden_size=128, num_layers=4, num_heads=2, intermediate_size=256),
    decoder=DECODER,
    template="Hermes-2",
    image_token_id=7,
)
BLOCK_SIZE = 16


def models(dtype: torch.dtype) -> tuple[InternVL, InternVL]:
    """The same weights on the CPU in fp32 and on the GPU in `dtype`."""
    reference = random_model(CONFIG).to(dtype).float()
    on_gpu = random_model(CONFIG).to(dtype).cuda()
    return reference, on_gpu


def relative_error(value: torch.Tensor, expected: torch.Tensor) -> float:
    expected = expected.double()
    return float((value.double().cpu() - expected).norm() / expected.norm())


def tokens(count: int) -> torch.Tensor:
    return torch.randint(8, 512, (count,), generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)]
)
@torch.no_grad()
def test_a_pack_on_the_gpu_equals_each_sequence_on_the_cpu(dtype, bound):
    reference, on_gpu = models(dtype)
    pack = [tokens(n) for n in (37, 400, 1, 129)]
    lengths = [len(t) for t in pack]
    stream = torch.cat(pack).cuda()
    hidden = on_gpu(
        stream, Positions.packed(lengths, "cuda"), None, PackedAttention.of(lengths, "cuda")
    )
    logits = on_gpu.logits(hidden).split(lengths)
    for got, alone in zip(logits, pack, strict=True):
        n = [len(alone)]
        expected = reference(alone, Positions.packed(n), None, PackedAttention.of(n))
        assert relative_error(got, reference.logits(expected)) < bound


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
@torch.no_grad()
def test_tiles_on_the_gpu_equal_tiles_on_the_cpu(dtype, bound):
    reference, on_gpu = models(dtype)
    generator = torch.Generator().manual_seed(0)
    tiles = torch.randint(0, 256, (3, 448, 448, 3), dtype=torch.uint8, generator=generator)
    assert relative_error(on_gpu.encode_tiles(tiles.cuda()), reference.encode_tiles(tiles)) < bound


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
@torch.no_grad()
def test_chunks_and_single_tokens_from_the_cache_equal_the_whole(dtype, bound):
    reference, on_gpu = models(dtype)
    sequence = tokens(90)
    shape = (DECODER.num_layers, 8, BLOCK_SIZE, DECODER.num_kv_heads, DECODER.head_dim)
    keys = torch.zeros(shape, dtype=dtype, device="cuda")
    values = torch.zeros_like(keys)
    table = torch.tensor([5, 2, 7, 0, 6, 1], device="cuda")

    def run(start: int, stop: int, decode: bool) -> torch.Tensor:
        index = torch.arange(start, stop, device="cuda")
        slots = table[index // BLOCK_SIZE] * BLOCK_SIZE + index % BLOCK_SIZE
        lengths = torch.full_like(index, stop if decode else 80)
        single = DecodeSpan(0, table[None], torch.tensor([stop], device="cuda"), (stop,))
        chunk = PrefillSpan(0, stop - start, start, table)
        attend = PagedAttention(
            keys, values, slots, () if decode else (chunk,), single if decode else None
        )
        return on_gpu(sequence[start:stop].cuda(), Positions(index, lengths), None, attend)

    parts = [run(0, 33, False), run(33, 80, False)]
    parts += [run(i, i + 1, True) for i in range(80, 90)]
    whole = reference(sequence, Positions.packed([90]), None, PackedAttention.of([90]))
    assert relative_error(torch.cat(parts), whole) < bound


def test_gradients_on_the_gpu_equal_gradients_on_the_cpu():
    reference, on_gpu = models(torch.bfloat16)
    lengths, stream = [37, 91], tokens(128)
    for model, device in ((reference, "cpu"), (on_gpu, "cuda")):
        hidden = model(
            stream.to(device),
            Positions.packed(lengths, device),
            None,
            PackedAttention.of(lengths, device),
        )
        model.logits(hidden).square().mean().backward()
    pairs = zip(reference.decoder.parameters(), on_gpu.decoder.parameters(), strict=True)
    assert max(relative_error(b.grad, a.grad) for a, b in pairs) < 5e-2


@torch.no_grad()
def test_a_decode_step_can_be_captured_as_a_cuda_graph():
    _, on_gpu = models(torch.bfloat16)
    shape = (DECODER.num_layers, 8, BLOCK_SIZE, DECODER.num_kv_heads, DECODER.head_dim)
    keys = torch.randn(shape, dtype=torch.bfloat16, device="cuda")
    values = torch.randn_like(keys)
    ids, index = torch.tensor([11, 12], device="cuda"), torch.tensor([3, 20], device="cuda")
    tables = torch.tensor([[1, 2], [4, 3]], device="cuda")
    slots = torch.tensor([16 + 3, 48 + 4], device="cuda")
    lengths = tuple((index + 1).tolist())

    def step() -> torch.Tensor:
        span = DecodeSpan(0, tables, index + 1, lengths)
        attend = PagedAttention(keys, values, slots, decodes=span)
        return on_gpu.logits(on_gpu(ids, Positions(index, index + 1), None, attend))

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    ids.copy_(torch.tensor([40, 41]))
    graph.replay()
    torch.testing.assert_close(captured, step())


def test_the_config_used_here_crosses_its_rotary_limit():
    assert DECODER.rotary.state(400) == 400
    assert dataclasses.replace(DECODER.rotary, kind="plain").state(400) == 0
