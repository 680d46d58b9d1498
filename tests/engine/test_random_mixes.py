"""Random mixes of requests, on any decoder and rotary kind, equal a plain forward without cache.

The reference is written apart from the package's decoder: every step reads the whole sequence, each
token turned by the whole prompt's length or, once written, by its own.
"""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from internvl2.config import DecoderConfig, InternVLConfig, RotaryConfig, VisionConfig
from internvl2.engine.engine import Engine, EngineOptions
from internvl2.engine.graphs import CallAgain
from internvl2.engine.sequence import SamplingParams
from internvl2.model.internvl import random_model
from internvl2.processing.processor import Processor
from internvl2.processing.prompt import MediaSpan, Prompt

SIDE, PER_TILE, HEAD_DIM, CONTEXT = 56, 4, 8, 120
SHORT, LONG = (1.0, 1.1, 1.2, 1.3), (2.0, 4.0, 6.0, 9.0)


class Plain(Processor):
    """Just what an engine asks of a processor when prompts are ready."""

    def __init__(self, config):
        self.config, self.stop_token_ids = config, ()
        stream = SimpleNamespace(add=lambda token: "x", finish=lambda: "")
        self.tokenizer = SimpleNamespace(
            stream=lambda: stream, bos_id=None, id_of=lambda token: None
        )


def model_of(rng):
    limit = rng.choice([8, 16, 20, 40, 64])
    rotary = {
        "plain": RotaryConfig(1e4),
        "dynamic": RotaryConfig(1e4, "dynamic", limit, 2.0),
        "long": RotaryConfig(1e4, "long", limit, 1.0, SHORT, LONG, 1.19),
    }[rng.choice(["plain", "dynamic", "long"])]
    kind = rng.choice(["internlm2", "qwen2", "qwen3", "llama", "phi3"])
    shape = {"vocab_size": 100, "hidden_size": 32, "num_layers": 2, "num_heads": 4}
    width = {"head_dim": HEAD_DIM, "intermediate_size": 48, "max_positions": 512}
    biased, normed = kind == "qwen2", kind == "qwen3"
    heads = rng.choice([1, 2, 4])
    decoder = DecoderConfig(
        kind, **shape, num_kv_heads=heads, **width, rotary=rotary, qkv_bias=biased, qk_norm=normed
    )
    vision = VisionConfig(16, 1, 2, 32, SIDE)
    config = InternVLConfig(vision, decoder, "internlm2-chat", tile_size=SIDE, image_token_id=97)
    return random_model(config, rng.randrange(1000))


def prompt_of(parts):
    """Token ids as they are; a number is the seed of a picture, odd ones differ in one pixel."""
    ids, media, tiles = [], [], [np.zeros((0, SIDE, SIDE, 3), np.uint8)]
    for part in parts:
        if isinstance(part, list):
            ids += part
            continue
        pixels = np.random.default_rng(part // 2).integers(0, 256, (1, SIDE, SIDE, 3), np.uint8)
        pixels[0, 3, 4, 1] ^= 128 * (part % 2)
        digest = pixels.tobytes()
        place = len(ids), len(ids) + PER_TILE, len(tiles) - 1
        media.append(MediaSpan(*place, 1, 1, 1, False, digest))
        tiles.append(pixels)
        ids = [*ids, *[97] * PER_TILE]
    return Prompt(ids, [False] * len(ids), np.concatenate(tiles), tuple(media))


def angles(rotary, length):
    """As `modeling_internlm2.py` and `modeling_phi3.py` have them for a sequence so long."""
    exponents, theta = torch.arange(0, HEAD_DIM, 2) / HEAD_DIM, rotary.theta
    is_beyond = rotary.kind != "plain" and length > rotary.limit
    if rotary.kind == "dynamic" and is_beyond:
        stretch = rotary.factor * length / rotary.limit - (rotary.factor - 1)
        theta *= stretch ** (HEAD_DIM / (HEAD_DIM - 2))
    frequencies = 1 / theta**exponents
    if rotary.kind == "long":
        frequencies /= torch.tensor(rotary.long_factors if is_beyond else rotary.short_factors)
    return frequencies


@torch.no_grad()
def reference(model, prompt, ids):
    """Log-probabilities behind every token from the prompt's last on."""
    rotary, count, start = model.config.decoder.rotary, len(ids), len(prompt.token_ids)
    x = model.decoder.embedding.weight[torch.tensor(ids)].clone()
    for span in prompt.media:
        tile = torch.from_numpy(prompt.tiles[span.first_tile][None])
        x[span.start : span.stop] = model.encode_tiles(tile)[0]
    turns = torch.stack([i * angles(rotary, max(start, i + 1)) for i in range(count)])
    turns = torch.polar(torch.full_like(turns, rotary.scale), turns)
    for layer in model.decoder.layers:
        x = x + attention(layer.attention, layer.attention_norm(x), turns)
        x = x + layer.mlp(layer.mlp_norm(x))
    return model.decoder.head(model.decoder.norm(x))[start - 1 : -1].log_softmax(-1)


def attention(weights, x, turns):
    q, k, v = (part(x).unflatten(-1, (-1, HEAD_DIM)) for part in (weights.q, weights.k, weights.v))
    if weights.q_norm is not None:
        q, k = weights.q_norm(q), weights.k_norm(k)
    q, k = (torch.complex(*part.chunk(2, -1)) * turns[:, None] for part in (q, k))
    q, k = (torch.cat([part.real, part.imag], -1).transpose(0, 1) for part in (q, k))
    k, v = (p.repeat_interleave(len(q) // len(p), 0) for p in (k, v.transpose(0, 1)))
    scores = q @ k.transpose(1, 2) / HEAD_DIM**0.5
    hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
    out = F.softmax(scores.masked_fill(hidden, -torch.inf), -1) @ v
    return weights.o(out.transpose(0, 1).flatten(1))


def options_of(rng):
    most, size = rng.randint(1, 5), rng.choice([1, 2, 4, 5, 16])
    return EngineOptions(
        max_context=CONTEXT,
        max_sequences=most,
        block_size=size,
        cache_tokens=rng.choice([130, 170, 2000]),
        max_batch_tokens=most + rng.choice([0, 1, 9, 300]),
        vision_cache_bytes=rng.choice([0, 600, 10**6]),
        prefix_reuse=rng.random() < 0.8,
    )


def turns_of(rng):
    shared = list(range(3, 33))
    parts = [rng.choice([rng.randrange(4), shared[: rng.randint(1, 30)]]) for _ in range(3)]
    return [*parts, [rng.randrange(90)]]


def finish(rng, engine, conversations):
    """Each prompt and its outputs; some are aborted on the way."""
    params = SamplingParams(max_tokens=rng.choice([3, 20, 200]), ignore_eos=True, logprobs=0)
    prompts = {engine.add(prompt_of(parts), params): parts for parts in conversations}
    outputs = {number: [] for number in prompts}
    while engine.has_work:
        for output in engine.step():
            outputs[output.sequence_id].append(output)
        if rng.random() < 0.03:
            engine.abort(rng.choice(list(prompts)))
    return [(parts, outputs[number]) for number, parts in prompts.items()]


def assert_equals_reference(model, parts, outputs):
    prompt = prompt_of(parts)
    written = [token for output in outputs for token in output.token_ids]
    if not written:
        return
    expected = reference(model, prompt, [*prompt.token_ids, *written])
    chosen = expected[range(len(written)), written]
    found = [entry.chosen.logprob for output in outputs for entry in output.logprobs]
    torch.testing.assert_close(torch.tensor(found), chosen, atol=1e-4, rtol=0)
    assert (expected.max(-1).values - chosen).max() < 1e-4


MORE = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(5, 12)]


@pytest.mark.parametrize("seed", [*range(5), *MORE])
def test_any_mix_equals_a_plain_forward_turn_after_turn(seed):
    rng = random.Random(seed)
    model = model_of(rng)
    recorder = rng.choice([None, CallAgain()])
    with Engine(model, Plain(model.config), options_of(rng), recorder) as engine:
        conversations = [turns_of(rng) for _ in range(rng.randint(2, 6))]
        for _ in range(2):
            ended = finish(rng, engine, conversations)
            for parts, outputs in ended:
                assert_equals_reference(model, parts, outputs)
            written = [[t for o in outputs for t in o.token_ids][:12] for _, outputs in ended]
            following = zip(ended, written, strict=True)
            longer = [[*parts, new, 1, [8]] for (parts, _), new in following if new]
            conversations = [p for p in longer if len(prompt_of(p).token_ids) < CONTEXT - 5]
        pool = engine.scheduler.cache.pool
        assert (pool.num_free, engine.runner.vision.num_held) == (pool.num_blocks, 0)
