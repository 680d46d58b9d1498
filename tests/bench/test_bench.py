"""What is measured is what was asked for, and limits are those of the arithmetic."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from internvl2.bench import latency, throughput
from internvl2.bench.conditions import Conditions
from internvl2.bench.limits import FORWARD, Limits
from internvl2.bench.random_weights import random_engine, shape_of
from internvl2.bench.rows import Row, table
from internvl2.bench.subjects import Size, Subject, draw, draw_frames, question
from internvl2.bench.timing import Arrivals, Spread, ask
from internvl2.engine.engine import Engine, EngineOptions
from internvl2.train.monitoring.flops import pack_flops
from internvl2.train.planning.machine import Speeds

MODEL = Path(__file__).parents[1] / "data/official/A_internlm2/checkpoint"
PICTURE = Subject(8, picture=Size(90, 60))


@pytest.fixture(scope="module")
def engine():
    with Engine.load(MODEL, device="cpu", options=throughput.together(3)) as engine:
        yield engine


def test_an_answer_has_as_many_tokens_as_were_asked_for(engine: Engine):
    conversation = PICTURE.conversation(engine.processor.tokenizer, 0)
    arrivals = ask(engine, conversation, 5)
    assert len(arrivals.ids) == len(arrivals.tokens) == 5
    assert arrivals.asked < arrivals.tokens[0] <= arrivals.tokens[-1]


def test_speed_is_that_of_the_tokens_after_the_first():
    arrivals = Arrivals(asked=10.0, tokens=[10.5, 10.75, 11.0], ids=[1, 2, 3])
    assert arrivals.first_ms == 500
    assert arrivals.tokens_per_s == 4


def test_latency_has_rows_for_pictures_videos_text_and_next_tokens(engine: Engine):
    video = Subject(8, frames=2, frame=Size(40, 30))
    work = latency.Work(Subject(8), (PICTURE, video), tokens=3, rounds=2)
    usual = engine.processor
    rows = list(latency.measure(engine, work))
    assert [row.what for row in rows] == [
        "preprocessing, picture 90x60, exact",
        "first token, picture 90x60, exact, 7 tiles",
        "preprocessing, picture 90x60, fast",
        "first token, picture 90x60, fast, 7 tiles",
        "preprocessing, video of 2 frames, exact",
        "first token, video of 2 frames, exact, 2 tiles",
        "preprocessing, video of 2 frames, fast",
        "first token, video of 2 frames, fast, 2 tiles",
        "first token, text",
        "next tokens, batch 1",
    ]
    assert all(len(row.spread.every) == 2 for row in rows)
    assert engine.processor is usual


def test_pictures_are_resized_in_the_way_that_is_measured(engine: Engine):
    with latency.resizing(engine, "fast"):
        assert engine.processor.pictures.arithmetic == "fast"
    assert engine.processor.pictures.arithmetic == "exact"


def test_throughput_counts_requests_and_tokens(engine: Engine):
    work = throughput.Work(PICTURE, requests=3, tokens=4, rounds=2)
    requests, tokens = throughput.measure(engine, work)
    assert (requests.unit, tokens.unit) == ("requests/s", "tokens/s")
    assert tokens.spread.median == pytest.approx(4 * requests.spread.median)


def test_answers_that_the_context_cuts_are_no_measurement():
    with Engine.load(MODEL, device="cpu", options=EngineOptions(max_context=96)) as engine:
        asked = [Subject(8).conversation(engine.processor.tokenizer, 0)]
        with pytest.raises(ValueError, match="the context does not hold them"):
            throughput.seconds_for(engine, asked, 96)


def test_the_limit_of_decoding_is_the_weights_at_the_speed_of_memory(engine: Engine):
    limits = Limits.of(engine)
    assert limits.speeds is None
    assert limits.tokens_per_s() is None
    decoder = engine.model.config.decoder
    matrices = sum(p.nbytes for p in engine.model.decoder.parameters())
    embedding = decoder.vocab_size * decoder.hidden_size * 4
    assert limits.weight_bytes == matrices - embedding
    known = replace(limits, speeds=Speeds(tflops=100.0, bandwidth=1000.0))
    assert known.tokens_per_s() == 1e12 / limits.weight_bytes


@pytest.mark.parametrize(("name", "milliseconds"), [("1b", 15), ("2b", 26), ("8b", 75)])
def test_a_first_token_is_limited_by_its_arithmetic(name: str, milliseconds: int):
    """13 tiles at 790 TFLOP/s, reckoned by hand."""
    flops = pack_flops(shape_of(name), FORWARD, [13 * 256 + 32], 13, labelled=1).total
    assert math.floor(1000 * flops / 790e12) == milliseconds


def test_a_batch_is_limited_by_arithmetic_or_by_memory(engine: Engine):
    prompts = [engine.encode(PICTURE.conversation(engine.processor.tokenizer, 0))]
    limits = replace(Limits.of(engine), multiplies_bf16=True)
    slow_memory = replace(limits, speeds=Speeds(tflops=1e9, bandwidth=1.0))
    slow_products = replace(limits, speeds=Speeds(tflops=1e-6, bandwidth=1e9))
    by_memory = slow_memory.batch_s(engine, prompts, 4)
    assert by_memory is not None
    assert by_memory > 4 * limits.weight_bytes / 1e9
    by_products = slow_products.batch_s(engine, prompts, 4)
    first = slow_products.first_token_ms(engine, prompts[0])
    assert by_products is not None
    assert first is not None
    assert by_products > first / 1000


def test_a_row_says_how_much_of_the_limit_is_reached():
    spread = Spread.of([2.0, 8.0, 4.0])
    assert (spread.median, spread.low, spread.high) == (4.0, 2.0, 8.0)
    assert Row("a", "ms", spread, limit=1.0).share == 0.25
    assert Row("a", "tokens/s", spread, limit=16.0).share == 0.25
    header, line = table([Row("a", "tokens/s", spread, limit=16.0)])
    assert header.split() == ["median", "lowest", "highest", "limit", "share"]
    assert line.split() == ["a", "4.00", "2.00", "8.00", "tokens/s", "16.0", "25%"]


def test_pictures_follow_from_their_number():
    first, again, other = (draw(Size(64, 48), number) for number in (1, 1, 2))
    assert first.size == (64, 48)
    assert np.array_equal(np.asarray(first), np.asarray(again))
    assert not np.array_equal(np.asarray(first), np.asarray(other))


def test_frames_of_a_video_differ():
    frames = draw_frames(Size(64, 48), 3, 0)
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 3
    assert not np.array_equal(frames[0], frames[2])


def test_questions_have_the_length_that_was_asked_for(engine: Engine):
    tokenizer = engine.processor.tokenizer
    assert 20 <= len(tokenizer.encode(question(tokenizer, 20, 0))) <= 30
    assert question(tokenizer, 20, 0) != question(tokenizer, 20, 1)


@pytest.mark.parametrize("text", ["1600", "1600x", "axb", "0x5", "1x2x3"])
def test_sizes_that_are_none_are_refused(text: str):
    with pytest.raises(ValueError, match="WIDTHxHEIGHT"):
        Size.of(text)


@pytest.mark.slow
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_random_weights_in_the_shape_of_nano_answer(quantize: str | None):
    with random_engine("nano", device="cpu", quantize=quantize, options=latency.ALONE) as engine:
        conversation = Subject(8).conversation(engine.processor.tokenizer, 0)
        assert len(ask(engine, conversation, 4).ids) == 4
        conditions = Conditions.of(engine, "nano, random weights")
    assert conditions.quantization == quantize
    assert "13.7M weights" in conditions.lines()


@pytest.mark.slow
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_random_weights_are_divided_over_processes(quantize: str | None):
    made = {"device": "cpu", "quantize": quantize, "options": latency.ALONE}
    with random_engine("nano", tensor_parallel=2, **made) as engine:
        conversation = PICTURE.conversation(engine.processor.tokenizer, 0)
        assert len(ask(engine, conversation, 4).ids) == 4
        conditions = Conditions.of(engine, "nano, random weights")
    assert conditions.device == "2 x cpu"
    assert conditions.quantization == quantize


def test_shapes_go_by_their_short_names():
    assert shape_of("2b") == shape_of("internvl2-2b") == shape_of("OpenGVLab/InternVL2-2B")
    with pytest.raises(ValueError, match="unknown model"):
        shape_of("3b")


@pytest.mark.gpu
def test_a_gpu_has_limits_and_stays_below_them():
    with random_engine("nano", device="cuda", options=latency.ALONE) as engine:
        work = latency.Work(Subject(8), (Subject(8, picture=Size(640, 480)),), tokens=16, rounds=2)
        rows = list(latency.measure(engine, work))
    timed = [row for row in rows if not row.what.startswith("preprocessing")]
    if rows[-1].limit is None:
        pytest.skip("the makers' speeds of this GPU are not known")
    assert all(row.share is not None and 0 < row.share < 1 for row in timed)
