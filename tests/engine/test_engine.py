"""Asking, streaming, batching, stopping and aborting, from one caller or from many."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from internvl2.engine.sequence import SamplingParams
from internvl2.processing.conversation import Message

TEN = SamplingParams(max_tokens=10, ignore_eos=True)


def drain(engine) -> list:
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    return outputs


def test_streamed_outputs_sum_up_to_the_answer(make_engine, make_prompt):
    engine = make_engine()
    prompt = make_prompt([4, 5, 6], [(1, 2)])
    answer = engine.answer(prompt, TEN)
    outputs = list(engine.stream(prompt, TEN))
    assert "".join(output.text for output in outputs) == answer.text
    assert [t for output in outputs for t in output.token_ids] == list(answer.token_ids)
    assert [o.finish_reason for o in outputs] == [None] * 9 + ["length"]
    assert (answer.usage.prompt_tokens, answer.usage.image_tokens) == (12, 8)
    assert answer.usage.completion_tokens == 10


def test_a_caller_may_run_the_steps_itself(make_engine, make_prompt):
    engine = make_engine()
    first = engine.add(make_prompt([1, 2]), TEN)
    second = engine.add(make_prompt([3]), TEN)
    outputs = drain(engine)
    assert {output.sequence_id for output in outputs} == {first, second}
    assert sum(output.finish_reason == "length" for output in outputs) == 2


def test_a_stop_token_ends_the_answer_and_is_not_in_its_text(make_engine, make_prompt):
    engine = make_engine()
    free = engine.answer(make_prompt([4, 5, 6]), TEN)
    end = free.token_ids[4]
    first = free.token_ids.index(end)
    params = SamplingParams(max_tokens=10, stop_token_ids=(end,))
    answer = engine.answer(make_prompt([4, 5, 6]), params)
    assert answer.finish_reason == "stop"
    assert answer.token_ids == free.token_ids[: first + 1]
    assert answer.text == free.text[:first]


def test_a_stop_text_across_tokens_ends_the_answer(make_engine, make_prompt):
    engine = make_engine()
    free = engine.answer(make_prompt([4, 5, 6]), TEN)
    stop = free.text[3:5]
    params = SamplingParams(max_tokens=10, ignore_eos=True, stop=(stop,))
    answer = engine.answer(make_prompt([4, 5, 6]), params)
    assert answer.finish_reason == "stop"
    assert answer.text == free.text[: free.text.index(stop)]


def test_an_answer_ends_where_the_context_does(make_engine, make_prompt):
    engine = make_engine(max_context=16)
    params = SamplingParams(max_tokens=100, ignore_eos=True)
    answer = engine.answer(make_prompt([1] * 10), params)
    assert (len(answer.token_ids), answer.finish_reason) == (6, "length")


def test_logprobs_are_reported_for_each_token(make_engine, make_prompt):
    answer = make_engine().answer(make_prompt([4, 5]), SamplingParams(max_tokens=3, logprobs=2))
    assert [entry.chosen.token_id for entry in answer.logprobs] == list(answer.token_ids)
    assert all(entry.top[0] == entry.chosen for entry in answer.logprobs)
    assert all(len(entry.top) == 2 for entry in answer.logprobs)


def test_an_aborted_request_says_so_and_others_go_on(make_engine, make_prompt):
    engine = make_engine()
    first, second = (engine.add(make_prompt([n, 2]), TEN) for n in (1, 3))
    engine.step()
    engine.abort(first)
    engine.abort(12345)
    reasons = {o.sequence_id: o.finish_reason for o in drain(engine)}
    assert reasons == {first: "abort", second: "length"}


def test_leaving_a_stream_frees_its_blocks(make_engine, make_prompt):
    engine = make_engine()
    pool = engine.scheduler.cache.pool
    stream = engine.stream(make_prompt([1] * 40), TEN)
    next(stream)
    assert pool.num_free < pool.num_blocks
    stream.close()
    assert pool.num_free == pool.num_blocks


def test_a_bad_conversation_among_many_fails_alone(make_engine):
    engine = make_engine()
    asked = [[Message.user("hello")], [Message.user("bad")], [Message.user("you")]]
    ended = {entry.index: entry for entry in engine.answers(iter(asked), TEN)}
    assert "cannot be read" in str(ended[1].error)
    assert [ended[n].answer.finish_reason for n in (0, 2)] == ["length", "length"]
    with pytest.raises(ValueError, match="cannot be read"):
        engine.generate(asked, TEN)


def test_a_prompt_beyond_the_context_is_refused_and_the_engine_goes_on(make_engine, make_prompt):
    engine = make_engine(max_context=32)
    with pytest.raises(ValueError, match="the context holds 31"):
        engine.answer([Message.user("x" * 40)], TEN)
    with pytest.raises(ValueError, match="the prompt has 40 tokens"):
        engine.answer(make_prompt([1] * 40), TEN)
    assert engine.answer(make_prompt([1] * 20), TEN).finish_reason == "length"


def test_many_more_requests_than_places_are_answered_in_order(make_engine, make_prompt):
    engine = make_engine(max_sequences=3)
    prompts = [make_prompt([n % 50, 3]) for n in range(20)]
    params = [SamplingParams(max_tokens=1 + n % 5, ignore_eos=True) for n in range(20)]
    answers = engine.generate(prompts, params)
    assert [a.prompt_token_ids[0] for a in answers] == list(range(20))
    assert [len(a.token_ids) for a in answers] == [1 + n % 5 for n in range(20)]


def test_too_few_or_too_many_params_are_an_error(make_engine, make_prompt):
    with pytest.raises(ValueError, match="there are 1 params but 2 requests"):
        make_engine().generate([make_prompt([1]), make_prompt([2])], [TEN])

    with pytest.raises(ValueError, match="there are 0 params but 1 requests"):
        make_engine().generate([make_prompt([1])], [])
    with pytest.raises(ValueError, match="there are 2 params but 1 requests"):
        make_engine().generate([make_prompt([1])], [TEN, TEN])


def changed_prompts(make_prompt):
    picture = make_prompt([4], [(1, 2)])
    small = np.zeros((2, 28, 28, 3), np.uint8)
    longer = (replace(picture.media[0], stop=99),)
    return {
        "token 100; the model has tokens 0 to 99": make_prompt([5, 100]),
        "token -1; the model": make_prompt([5, -1]),
        "this model takes \\(56, 56, 3\\)": replace(picture, tiles=small),
        "2 tiles needs 8 tokens": replace(picture, media=longer),
    }


def test_a_prompt_that_the_model_cannot_read_fails_alone(make_engine, make_prompt):
    engine = make_engine()
    other = engine.add(make_prompt([1, 2]), TEN)
    for message, prompt in changed_prompts(make_prompt).items():
        with pytest.raises(ValueError, match=message):
            engine.answer(prompt, TEN)
    reasons = {o.sequence_id: o.finish_reason for o in drain(engine)}
    assert reasons == {other: "length"}


def test_a_stop_token_that_the_model_does_not_have_is_refused(make_engine, make_prompt):
    params = SamplingParams(stop_token_ids=(100,), min_tokens=2)
    with pytest.raises(ValueError, match="stop_token_ids has 100; the model has 100 tokens"):
        make_engine().answer(make_prompt([1]), params)


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_sequences", 0), ("max_batch_tokens", 0), ("vision_tiles", 0)],
)
def test_sizes_of_nothing_are_refused(make_engine, name, value):
    with pytest.raises(ValueError, match=f"{name} is 0; it must be at least 1"):
        make_engine(**{name: value})


def test_a_vision_cache_of_less_than_nothing_is_refused(make_engine):
    with pytest.raises(ValueError, match="vision cache has -1 bytes"):
        make_engine(vision_cache_bytes=-1)


def test_a_failing_device_ends_the_requests_of_the_step_and_no_others(
    make_engine, make_prompt, monkeypatch
):
    engine = make_engine()

    def fail(step):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as broken:
        broken.setattr(engine.runner, "begin", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            engine.answer(make_prompt([1, 2]), TEN)
    assert engine.answer(make_prompt([1, 2]), TEN).finish_reason == "length"


def test_a_closed_engine_takes_no_requests(make_engine, make_prompt):
    engine = make_engine()
    with engine:
        engine.add(make_prompt([1]), TEN)
    with pytest.raises(ValueError, match="the engine is closed"):
        engine.answer(make_prompt([1]), TEN)


request = st.tuples(st.integers(1, 40), st.integers(1, 10), st.integers(0, 3))


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    requests=st.lists(request, min_size=1, max_size=8),
    aborts=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 7)), max_size=8),
)
def test_aborted_requests_free_every_block(make_engine, make_prompt, requests, aborts):
    engine = make_engine(
        cache_tokens=96, block_size=4, max_context=64, max_sequences=3, max_batch_tokens=9
    )
    ids = [
        engine.add(
            make_prompt([length] * length, [(pictures, 1)] * pictures),
            SamplingParams(max_tokens=count, ignore_eos=True),
        )
        for length, count, pictures in requests
    ]
    reasons, steps = {}, 0
    while engine.has_work:
        for when, which in aborts:
            if when == steps:
                engine.abort(ids[which % len(ids)])
        reasons |= {o.sequence_id: o.finish_reason for o in engine.step() if o.finish_reason}
        steps += 1
    assert set(reasons) == set(ids)
    pool = engine.scheduler.cache.pool
    assert pool.num_free == pool.num_blocks
    assert not engine.runner.vision.num_held


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    "request_", ["hi", Message.user("hi"), ["hi"], [{"role": "user", "content": "hi"}]]
)
def test_what_is_no_conversation_is_refused_in_one_line(make_engine, request_):
    with pytest.raises(ValueError, match=r"a conversation (is a list of Message|has a)"):
        make_engine().answer(request_, TEN)


def test_small_steps_of_written_tokens_take_one_thread_of_a_cpu(make_engine, make_prompt):
    engine, seen, usual = make_engine(), [], torch.get_num_threads()
    hook = engine.model.decoder.register_forward_hook(
        lambda *_: seen.append(torch.get_num_threads())
    )
    torch.set_num_threads(2)
    try:
        engine.answer(make_prompt([4, 5, 6]), SamplingParams(max_tokens=3, ignore_eos=True))
        assert (seen, torch.get_num_threads()) == ([2, 1, 1], 2)
    finally:
        hook.remove()
        torch.set_num_threads(usual)
