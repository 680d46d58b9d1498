"""The plan's activations are above what the largest steps take, as an allocator counts it."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from internvl2.config import DecoderConfig, InternVLConfig, RotaryConfig, VisionConfig
from internvl2.engine.activations import StepSizes, step_bytes
from internvl2.engine.engine import Engine, EngineOptions
from internvl2.engine.sequence import SamplingParams
from internvl2.model.internvl import random_model
from internvl2.model.low_bit import LINEARS
from internvl2.processing.processor import Processor
from internvl2.processing.prompt import MediaSpan, Prompt

SIDE, PER_TILE, VOCAB = 112, 16, 6000
WILD = SamplingParams(
    max_tokens=3,
    ignore_eos=True,
    temperature=1.0,
    top_p=0.9,
    top_k=50,
    min_p=0.01,
    repetition_penalty=1.1,
    presence_penalty=0.1,
    no_repeat_ngram_size=3,
    min_tokens=1,
    logprobs=5,
    seed=1,
)
GREEDY = SamplingParams(max_tokens=3, ignore_eos=True)


def config_of(vision_width, decoder_width, kv_heads):
    decoder = DecoderConfig(
        kind="qwen2",
        vocab_size=VOCAB,
        hidden_size=decoder_width,
        num_layers=2,
        num_heads=4,
        num_kv_heads=kv_heads,
        head_dim=decoder_width // 4,
        intermediate_size=4 * decoder_width,
        max_positions=4096,
        rotary=RotaryConfig(theta=10000.0),
        qkv_bias=True,
    )
    vision = VisionConfig(vision_width, 2, 4, 4 * vision_width, SIDE)
    return InternVLConfig(vision, decoder, "internvl2_5", tile_size=SIDE, image_token_id=5)


class Silent(Processor):
    """Just what an engine asks of a processor when prompts are ready."""

    def __init__(self, config):
        self.config, self.stop_token_ids = config, (7,)
        stream = SimpleNamespace(add=lambda token: "", finish=lambda: "")
        self.tokenizer = SimpleNamespace(
            stream=lambda: stream, bos_id=None, id_of=lambda token: None
        )


def prompt_of(seed, num_words, tiles=()):
    """Words, then pictures of so many tiles each."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(10, VOCAB, num_words).tolist()
    pixels, media = [np.zeros((0, SIDE, SIDE, 3), np.uint8)], []
    for count in tiles:
        first, start = sum(map(len, pixels)), len(ids)
        ids += [5] * (count * PER_TILE)
        pixels.append(rng.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8))
        known = pixels[-1].tobytes()[:64]
        media.append(MediaSpan(start, len(ids), first, count, count, 1, False, known))
    return Prompt(ids, [False] * len(ids), np.concatenate(pixels), tuple(media))


def peak_of(work):
    """Most bytes that were allocated at once while `work` ran, beyond what was there before."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        work()
    changes, waiting = [], list(profile.profiler.kineto_results.experimental_event_tree())
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.tag.name == "Allocation":
            changes.append((event.start_time_ns, event.extra_fields.alloc_size))
    assert changes
    return int(np.cumsum([size for _, size in sorted(changes)]).max())


LOADS = {
    "many tiles": (GREEDY, [prompt_of(n, 10, (6, 6)) for n in range(3)]),
    "a long prompt": (GREEDY, [prompt_of(1, 900)]),
    "a video": (GREEDY, [prompt_of(2, 30, (1,) * 50)]),
    "many writers": (WILD, [prompt_of(n, 20) for n in range(16)]),
}
WIDTHS = {"wide tower": (256, 64, 4), "wide decoder": (32, 256, 1), "both narrow": (32, 64, 4)}
"""Of the tower, of the decoder, and how many heads have keys of their own."""


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("load", LOADS)
def test_no_load_takes_more_than_was_planned(widths, load):
    config = config_of(*WIDTHS[widths])
    options = EngineOptions(
        max_context=1024,
        cache_tokens=2048,
        max_sequences=16,
        max_batch_tokens=256,
        vision_tiles=6,
        vision_cache_bytes=2**16,
    )
    params, prompts = LOADS[load]
    with Engine(random_model(config), Silent(config), options) as engine:
        peak = peak_of(lambda: engine.generate(prompts, params))
        assert peak <= engine.plan.activation_bytes


@pytest.mark.parametrize("quantization", LINEARS)
def test_what_a_product_in_few_bits_makes_for_itself_was_planned(quantization):
    config, tokens = config_of(32, 512, 4), 300
    decoder = config.decoder
    weight = torch.randn(decoder.hidden_size, decoder.intermediate_size)
    few, x = LINEARS[quantization](weight, None), torch.randn(tokens, decoder.intermediate_size)
    out = tokens * decoder.hidden_size * 4
    sizes = StepSizes(tokens, sequences=1, vision_tiles=1, context=tokens)
    planned = [
        step_bytes(config, torch.float32, torch.device("cpu"), replace(sizes, quantization=q))
        for q in (quantization, None)
    ]
    if quantization == "fp8":  # emulated here with a copy of the matrix in fp32
        out += 4 * weight.numel() + 3 * out
    assert peak_of(lambda: few(x)) <= planned[0] - planned[1] + 2 * out
