"""The engine answers on a CUDA device as it does on a CPU."""

import numpy as np
import pytest
import torch
from PIL import Image

from internvl2.checkpoint.store import load_model
from internvl2.engine.engine import Engine, EngineOptions
from internvl2.engine.prepared import prepare
from internvl2.engine.sequence import SamplingParams
from internvl2.processing.conversation import Message, Picture
from internvl2.processing.processor import Processor

pytestmark = pytest.mark.gpu

OPTIONS = EngineOptions(max_context=1024, cache_tokens=8192, max_sequences=8)
GREEDY = SamplingParams(max_tokens=24)


def engine_of(
    directory, device: str, dtype: torch.dtype, options=OPTIONS, *, is_fused: bool = False
) -> Engine:
    model = load_model(directory, device=device, dtype=dtype)
    if is_fused:
        model = prepare(model)
        assert model.decoder.kernels.paged_decode is not None
    return Engine(model, Processor.from_directory(directory, model.config), options)


def picture(seed: int, width: int, height: int) -> Picture:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Picture(Image.fromarray(pixels))


def conversations():
    """Text only, one and two pictures, several turns."""
    return [
        [Message.user("How many people are there?")],
        [Message.user(picture(0, 300, 200), "Describe the picture.")],
        [Message.user(picture(1, 100, 400), picture(2, 90, 90), "Compare them.")],
        [
            Message.user(picture(0, 300, 200), "Describe the picture."),
            Message.assistant("A street."),
            Message.user("And the colours?"),
        ],
    ]


@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize("case", ["A_internlm2", "B_qwen2"])
def test_greedy_tokens_on_the_gpu_are_those_of_the_cpu(recording, case, is_fused):
    directory = recording(case).checkpoint
    with engine_of(directory, "cpu", torch.float32) as on_cpu:
        expected = [a.token_ids for a in on_cpu.generate(conversations(), GREEDY)]
    with engine_of(directory, "cuda", torch.float32, is_fused=is_fused) as on_gpu:
        together = [a.token_ids for a in on_gpu.generate(conversations(), GREEDY)]
        alone = [on_gpu.answer(c, GREEDY).token_ids for c in conversations()]
    assert together == expected
    assert alone == expected


@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_format_answers_a_mixed_batch(recording, dtype, is_fused):
    directory = recording("A_internlm2").checkpoint
    with engine_of(directory, "cuda", dtype, is_fused=is_fused) as engine:
        answers = engine.generate(conversations(), SamplingParams(max_tokens=8, ignore_eos=True))
    assert [len(a.token_ids) for a in answers] == [8] * 4


def test_small_chunks_and_a_small_cache_change_nothing_on_the_gpu(recording):
    directory = recording("A_internlm2").checkpoint
    tight = EngineOptions(max_context=512, cache_tokens=640, max_sequences=4, max_batch_tokens=64)
    with engine_of(directory, "cuda", torch.float32) as engine:
        expected = [a.token_ids for a in engine.generate(conversations(), GREEDY)]
    with engine_of(directory, "cuda", torch.float32, tight) as engine:
        assert [a.token_ids for a in engine.generate(conversations(), GREEDY)] == expected


def test_a_seed_gives_the_same_draw_whatever_shares_the_batch_on_the_gpu(recording):
    params = SamplingParams(max_tokens=16, temperature=1.0, top_p=0.9, seed=5)
    with engine_of(recording("B_qwen2").checkpoint, "cuda", torch.float32) as engine:
        together = [a.token_ids for a in engine.generate(conversations(), params)]
        alone = [engine.answer(c, params).token_ids for c in conversations()]
    assert together == alone
