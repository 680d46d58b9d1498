"""A tiny random model behind the engine, with a tokenizer of single letters."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from internvl2.config import DecoderConfig, InternVLConfig, RotaryConfig, VisionConfig
from internvl2.engine.engine import Engine, EngineOptions
from internvl2.model.internvl import random_model
from internvl2.processing.conversation import Text
from internvl2.processing.pixels import PictureOptions
from internvl2.processing.processor import Processor
from internvl2.processing.prompt import MediaSpan, Prompt

IMAGE_TOKEN, STOP, BOS, VOCAB = 97, 98, 99, 100
SIDE, PER_TILE = 56, 4


def tiny_config(rotary: RotaryConfig) -> InternVLConfig:
    decoder = DecoderConfig(
        kind="internlm2",
        vocab_size=VOCAB,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        intermediate_size=48,
        max_positions=512,
        rotary=rotary,
    )
    vision = VisionConfig(
        hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32, image_size=SIDE
    )
    return InternVLConfig(
        vision, decoder, "internlm2-chat", tile_size=SIDE, image_token_id=IMAGE_TOKEN
    )


class Letters:
    """Decodes a token to a letter; the streaming decoder of these tests."""

    def add(self, token_id: int) -> str:
        return chr(0x4E00 + token_id)

    def finish(self) -> str:
        return ""


class LetterProcessor(Processor):
    """Encodes the texts of a conversation letter by letter; pictures are tiles already."""

    def __init__(self, config: InternVLConfig) -> None:
        self.config, self.pictures = config, PictureOptions()
        self.stop_token_ids = (STOP,)
        self.tokenizer = SimpleNamespace(stream=Letters, bos_id=BOS)

    def encode(self, conversation, *, options) -> Prompt:
        text = [p.text for m in conversation for p in m.content if isinstance(p, Text)]
        ids = [ord(letter) % 90 for letter in "".join(text)]
        if "bad" in text:
            raise ValueError("this conversation cannot be read")
        if len(ids) > options.max_context:
            raise ValueError(f"{len(ids)} tokens; the context holds {options.max_context}")
        return prompt_of(ids)


def prompt_of(ids, pictures=()) -> Prompt:
    """A prompt that begins with pictures: (seed, tiles) each."""
    token_ids: list[int] = []
    tiles, media = [np.zeros((0, SIDE, SIDE, 3), np.uint8)], []
    for seed, count in pictures:
        pixels = np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
        start, first = len(token_ids) + 1, sum(map(len, tiles))
        token_ids += [7, *[IMAGE_TOKEN] * (count * PER_TILE)]
        digest = bytes([seed, count])
        media.append(MediaSpan(start, len(token_ids), first, count, count, 1, False, digest))
        tiles.append(pixels)
    token_ids += ids
    return Prompt(token_ids, [False] * len(token_ids), np.concatenate(tiles), tuple(media))


@pytest.fixture(scope="session")
def make_prompt():
    return prompt_of


@pytest.fixture(scope="session")
def tiny_models():
    plain = tiny_config(RotaryConfig(theta=10000.0))
    dynamic = tiny_config(RotaryConfig(theta=10000.0, kind="dynamic", limit=20, factor=2.0))
    return {"plain": random_model(plain), "dynamic": random_model(dynamic)}


@pytest.fixture
def wide_model():
    """`wide_model(device, dtype)` has heads of the usual width, which fused kernels take."""

    def make(device="cpu", dtype=torch.float32):
        config = tiny_config(RotaryConfig(theta=10000.0))
        decoder = replace(config.decoder, hidden_size=256, head_dim=64, intermediate_size=384)
        return random_model(replace(config, decoder=decoder)).to(device, dtype)

    return make


@pytest.fixture
def processor_of():
    """`processor_of(model)` reads letters."""
    return lambda model: LetterProcessor(model.config)


@pytest.fixture
def make_engine(tiny_models):
    """`make_engine("plain", max_sequences=2)` is an engine over a tiny model."""
    engines: list[Engine] = []

    def make(
        kind: str = "plain", device="cpu", dtype=torch.float32, recorder=None, **options
    ) -> Engine:
        model = copy.deepcopy(tiny_models[kind]).to(device, dtype)
        options = {"cache_tokens": 1024, "max_context": 400} | options
        processor = LetterProcessor(model.config)
        engine = Engine(model, processor, EngineOptions(**options), recorder)
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.close()
        pool = engine.scheduler.cache.pool
        assert pool.num_free == pool.num_blocks, "blocks are lost"
        assert not engine.runner.vision.num_held, "pictures are lost"
