"""On a CUDA device the model computes what it computes on a CPU, within bf16's rounding."""

import dataclasses

import pytest
import torch

from internvl2.config import DecoderConfig, InternVLConfig, RotaryConfig, VisionConfig
from internvl2.family import MEMBERS
from internvl2.model.attention import DecodeSpan, PackedAttention, PagedAttention, PrefillSpan
from internvl2.model.decoder import Decoder
from internvl2.model.fused import fuse
from internvl2.model.internvl import InternVL, random_model
from internvl2.model.kernel_choice import KernelChoice
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


@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
@torch.no_grad()
def test_chunks_and_single_tokens_from_the_cache_equal_the_whole(dtype, bound, is_fused):
    reference, on_gpu = models(dtype)
    if is_fused:
        fuse(on_gpu.decoder, KernelChoice())
        assert on_gpu.decoder.kernels.paged_decode is not None
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


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
@torch.no_grad()
def test_chunks_of_several_prompts_in_one_step_equal_the_whole_prompts(dtype, bound):
    reference, on_gpu = models(dtype)
    prompts, begun = [tokens(n) for n in (90, 40, 61)], (33, 0, 60)
    shape = (DECODER.num_layers, 16, BLOCK_SIZE, DECODER.num_kv_heads, DECODER.head_dim)
    keys = torch.zeros(shape, dtype=dtype, device="cuda")
    values = torch.zeros_like(keys)
    blocks = [5, 2, 7, 0, 6, 1], [3, 9, 4], [8, 15, 11, 10]
    tables = [torch.tensor(table, device="cuda") for table in blocks]

    def run(starts: tuple[int, ...], stops: tuple[int, ...]) -> list[torch.Tensor]:
        slots, index, lengths, spans, first = [], [], [], [], 0
        for row, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            if start < stop:
                spans.append(PrefillSpan(first, first + stop - start, start, tables[row]))
                first += stop - start
            index.append(torch.arange(start, stop, device="cuda"))
            slots.append(tables[row][index[-1] // BLOCK_SIZE] * BLOCK_SIZE + index[-1] % BLOCK_SIZE)
            lengths.append(torch.full_like(index[-1], len(prompts[row])))
        parts = [prompt[a:b] for prompt, a, b in zip(prompts, starts, stops, strict=True)]
        attend = PagedAttention(keys, values, torch.cat(slots), tuple(spans))
        positions = Positions(torch.cat(index), torch.cat(lengths))
        hidden = on_gpu(torch.cat(parts).cuda(), positions, None, attend)
        return list(hidden.split([len(part) for part in parts]))

    ends = tuple(len(prompt) for prompt in prompts)
    run((0, 0, 0), begun)
    for found, prompt, start in zip(run(begun, ends), prompts, begun, strict=True):
        n = [len(prompt)]
        whole = reference(prompt, Positions.packed(n), None, PackedAttention.of(n))
        assert relative_error(found, whole[start:]) < bound


@pytest.mark.parametrize("name", ["internvl2-1b", "internvl2-2b", "internvl2-4b", "internvl2-8b"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_shapes_of_released_decoders_have_every_kernel(name, dtype, caplog):
    config = dataclasses.replace(MEMBERS[name].config.decoder, num_layers=1, vocab_size=64)
    with torch.device("cuda"):
        decoder = Decoder(config).to(dtype)
    fuse(decoder, KernelChoice())
    assert caplog.records == []
    names = ("sum_norm", "gate", "turn_and_store", "paged_decode")
    assert None not in [getattr(decoder.kernels, name) for name in names]


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
