"""Trained nano in fp32 writes in any mix, to the token, what it writes to each request alone."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from internvl2.checkpoint.hub import EMBEDDED, resolve
from internvl2.checkpoint.store import load_model
from internvl2.engine.engine import Engine, EngineOptions
from internvl2.engine.graphs import CallAgain
from internvl2.engine.sequence import SamplingParams
from internvl2.processing.conversation import Message, Picture
from internvl2.processing.processor import Processor

pytestmark = [pytest.mark.trained, pytest.mark.slow]

MOST = 16


@pytest.fixture(scope="module")
def nano():
    """The model and its processor."""
    directory = resolve(EMBEDDED)
    model = load_model(directory, device=torch.device("cpu"), dtype=torch.float32)
    return model, Processor.from_directory(directory, model.config)


@pytest.fixture(scope="module")
def alone(nano):
    """Prompts with common beginnings, and what each of them is answered by itself."""
    model, processor = nano
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    picture = Picture(Image.fromarray(pixels).resize((448, 448)))
    prices = "the red box costs 12 and the blue one 30; " * 3
    conversations = [
        [Message.user("Who are you?")],
        [Message.user(prices, "What does the red one cost?")],
        [Message.user(prices, "How many boxes are there?")],
        [Message.user("What is 12 + 30?")],
        [Message.user(picture, "Describe it.")],
        [Message.user(picture, "Which colours are there?")],
    ]
    prompts = [processor.encode(conversation) for conversation in conversations]
    options = EngineOptions(max_context=1024, max_sequences=1, prefix_reuse=False)
    params = SamplingParams(max_tokens=MOST, ignore_eos=True)
    with Engine(model, processor, options) as engine:
        return [(prompt, engine.answer(prompt, params).token_ids) for prompt in prompts]


def options_of(rng, longest):
    most, size = rng.randint(2, 5), rng.choice([4, 16, 64])
    return EngineOptions(
        max_context=1024,
        max_sequences=most,
        block_size=size,
        # Of so small a cache somebody has to give blocks back.
        cache_tokens=longest + MOST + rng.choice([2, 4, 40]) * size,
        max_batch_tokens=most + rng.choice([90, 2048]),
        prefix_reuse=rng.random() < 0.7,
        vision_cache_bytes=rng.choice([0, 2**28]),
    )


def written_in_a_mix(rng, engine, requests):
    """The tokens of each request, which come one after the other; some are given up."""
    waiting, numbers, written = list(requests), {}, {}
    while waiting or engine.has_work:
        while waiting and rng.random() < 0.5:
            request = waiting.pop()
            logprobs = rng.choice([None, 1])
            params = SamplingParams(max_tokens=MOST, ignore_eos=True, logprobs=logprobs)
            numbers[engine.add(request[0], params)] = request
        for output in engine.step():
            written.setdefault(output.sequence_id, []).extend(output.token_ids)
            if rng.random() < 0.02:
                engine.abort(output.sequence_id)
    return [(numbers[number][1], tokens) for number, tokens in written.items()]


@pytest.mark.parametrize("seed", range(6))
def test_any_mix_gives_the_tokens_that_a_request_gets_alone(nano, alone, seed):
    rng = random.Random(seed)
    model, processor = nano
    longest = max(len(prompt.token_ids) for prompt, _ in alone)
    recorder = [None, CallAgain()][seed % 2]
    with Engine(model, processor, options_of(rng, longest), recorder) as engine:
        for cached in (engine.runner.cache.keys, engine.runner.cache.values):
            cached[:, : engine.plan.num_blocks] = torch.nan
        requests = rng.choices(alone, k=6)
        for expected, tokens in written_in_a_mix(rng, engine, requests):
            assert tuple(tokens) == expected[: len(tokens)]
        pool = engine.scheduler.cache.pool
        assert (pool.num_free, engine.runner.vision.num_held) == (pool.num_blocks, 0)
