"""Two processes that divide a model answer as one process does, and end together."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from internvl2.engine.engine import Engine, EngineOptions
from internvl2.engine.follower import StoredModel
from internvl2.engine.graphs import CallAgain
from internvl2.engine.opening import open_model
from internvl2.engine.sequence import SamplingParams
from internvl2.engine.tensor_parallel import choose_places
from internvl2.processing.conversation import Message, Picture
from internvl2.processing.processor import Processor

KINDS = {
    "internlm2": "A_internlm2",
    "qwen2": "B_qwen2",
    "phi3": "C_phi3",
    "llama": "D2_llama3_ntk",
    "qwen3": "F_qwen3",
    "qwen2, one key-value head, odd vocabulary": "E_qwen25_internvl2_5",
}
GREEDY = SamplingParams(max_tokens=16, ignore_eos=True, logprobs=3)
DRAWN = SamplingParams(
    max_tokens=12, temperature=1.0, top_p=0.9, seed=5, repetition_penalty=1.2, presence_penalty=0.3
)
PLAIN = SamplingParams(max_tokens=40)
SEEDED = SamplingParams(max_tokens=20, temperature=1.0, top_p=0.9, seed=5)


def picture(seed: int, width: int, height: int) -> Picture:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Picture(Image.fromarray(pixels))


def conversations() -> list[list[Message]]:
    """Text only, one and two pictures, several turns."""
    first = picture(0, 300, 200)
    return [
        [Message.user("How many people are there?")],
        [Message.user(first, "Describe the picture.")],
        [Message.user(picture(1, 100, 400), picture(2, 90, 90), "Compare them.")],
        [
            Message.user(first, "Describe the picture."),
            Message.assistant("A street."),
            Message.user("And the colours?"),
        ],
    ]


def load(directory: Path, size: int, **options: int) -> Engine:
    made = EngineOptions(**{"cache_tokens": 16384, "max_context": 4096} | options)
    return Engine.load(directory, device="cpu", dtype="float32", tensor_parallel=size, options=made)


def followers(engine: Engine) -> list[subprocess.Popen]:
    return [follower.process for follower in engine._team._followers]


@pytest.fixture(scope="module")
def directory(recording) -> Path:
    return recording("B_qwen2").checkpoint


@pytest.fixture(scope="module")
def alone(directory):
    with load(directory, 1) as engine:
        yield engine


@pytest.fixture
def divided(directory):
    with load(directory, 2) as engine:
        yield engine
    assert [process.returncode for process in followers(engine)] == [0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_write_the_tokens_of_one_for_every_decoder(recording, kind):
    directory = recording(KINDS[kind]).checkpoint
    with load(directory, 1) as engine:
        expected = engine.generate(conversations(), GREEDY)
    # Chunks of prompts, and fewer places than requests.
    with load(directory, 2, max_batch_tokens=64, max_sequences=3) as engine:
        found = engine.generate(conversations(), GREEDY)
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in expected]
    for one, other in zip(found, expected, strict=True):
        first, second = ([t.chosen.logprob for t in x.logprobs] for x in (one, other))
        assert first == pytest.approx(second, abs=1e-3)


@pytest.mark.slow
def test_a_small_cache_and_drawn_tokens_change_nothing(directory, alone):
    expected = [answer.token_ids for answer in alone.generate(conversations(), DRAWN)]
    with load(directory, 2, max_context=512, cache_tokens=512, max_sequences=4) as engine:
        assert [a.token_ids for a in engine.generate(conversations(), DRAWN)] == expected


@pytest.mark.slow
@pytest.mark.parametrize("params", [GREEDY, PLAIN, SEEDED], ids=["logprobs", "plain", "seeded"])
def test_recorded_steps_run_ahead_in_all_processes(directory, alone, params):
    """Recorded as on a GPU, with tokens that the host of no process has read."""
    expected = [answer.token_ids for answer in alone.generate(conversations(), params)]
    options = EngineOptions(cache_tokens=16384, max_context=4096, max_sequences=3)
    places = choose_places(2, "cpu")
    stored = StoredModel(directory, torch.float32, None, None)
    opened = open_model(stored, places, options.memory_request(places[0]))
    processor = Processor.from_directory(directory, opened.model.config)
    with Engine(opened.model, processor, options, CallAgain(), opened.team) as engine:
        assert engine.runner.runs_ahead
        assert [a.token_ids for a in engine.generate(conversations(), params)] == expected


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_a_quantised_decoder_is_divided(directory, quantize):
    with Engine.load(directory, device="cpu", quantize=quantize, tensor_parallel=2) as engine:
        answer = engine.answer(conversations()[1], SamplingParams(max_tokens=4, ignore_eos=True))
    assert len(answer.token_ids) == 4


@pytest.mark.slow
def test_answers_are_streamed_and_remembered(alone, divided):
    asked = conversations()[1]
    texts = []
    for engine in (alone, divided):
        parts = [output.text for output in engine.stream(asked, SamplingParams(max_tokens=8))]
        assert len(parts) > 1
        chat = engine.chat(params=SamplingParams(max_tokens=8))
        chat.ask("What is it?", images=[picture(0, 300, 200).source])
        texts.append(("".join(parts), chat.ask("And on this one?").text))
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_a_request_that_is_left_ends_everywhere_and_the_next_is_answered(alone, divided):
    asked = conversations()
    for output in divided.stream(asked[2], GREEDY):
        assert output.finish_reason is None
        break
    waiting = divided.add(asked[0], GREEDY)
    divided.abort(waiting)
    pool = divided.scheduler.cache.pool
    assert pool.num_free == pool.num_blocks
    assert divided.answer(asked[3], GREEDY).token_ids == alone.answer(asked[3], GREEDY).token_ids


@pytest.mark.slow
def test_each_process_holds_its_share_of_weights_and_cache(alone, divided):
    assert divided.plan.bytes_per_token == alone.plan.bytes_per_token / 2
    layer, whole = (engine.model.decoder.layers[0] for engine in (divided, alone))
    assert layer.mlp.down.in_features == whole.mlp.down.in_features / 2


@pytest.mark.slow
def test_a_second_divided_model_in_a_process_is_refused(directory, divided):
    with pytest.raises(ValueError, match="in one already"):
        load(directory, 2)
