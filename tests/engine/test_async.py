"""Concurrent asynchronous callers get what they would get alone, and errors of their own only."""

import asyncio
import threading
import time

import pytest

from internvl2.engine.sequence import SamplingParams
from internvl2.processing.conversation import Message

TEN = SamplingParams(max_tokens=10, ignore_eos=True)
ENDLESS = SamplingParams(max_tokens=300, ignore_eos=True)


async def tokens_of(engine, request, params=TEN) -> tuple[int, ...]:
    return tuple([t async for o in engine.astream(request, params) for t in o.token_ids])


def test_concurrent_answers_equal_sequential_ones(make_engine, make_prompt):
    prompts = [make_prompt([n, n + 1], [(n % 3, 1)]) for n in range(12)]
    sequential = [make_engine().answer(prompt, TEN).token_ids for prompt in prompts]
    engine = make_engine(max_sequences=4)

    async def ask_all():
        return await asyncio.gather(*(tokens_of(engine, prompt) for prompt in prompts))

    assert asyncio.run(ask_all()) == sequential


def test_concurrent_callers_share_steps(make_engine, make_prompt, monkeypatch):
    engine = make_engine()
    sizes = []
    run = engine.runner.begin
    monkeypatch.setattr(engine.runner, "begin", lambda s: (sizes.append(len(s.chunks)), run(s))[1])

    async def ask_all():
        await asyncio.gather(*(tokens_of(engine, make_prompt([n]), ENDLESS) for n in range(4)))

    asyncio.run(ask_all())
    assert max(sizes) == 4


def wait_until(condition, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def test_cancelling_frees_the_blocks(make_engine, make_prompt, monkeypatch):
    engine = make_engine()
    pool = engine.scheduler.cache.pool
    run = engine.runner.begin
    # Slow steps, so that the answer is not complete before anybody has looked.
    monkeypatch.setattr(engine.runner, "begin", lambda step: (time.sleep(0.005), run(step))[1])

    async def ask_and_cancel():
        task = asyncio.create_task(tokens_of(engine, make_prompt([1] * 50), ENDLESS))
        while pool.num_free == pool.num_blocks:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(ask_and_cancel())
    wait_until(lambda: pool.num_free == pool.num_blocks)


def test_a_bad_request_fails_alone(make_engine, make_prompt):
    engine = make_engine()

    async def ask_both():
        good = tokens_of(engine, make_prompt([1, 2]))
        bad = tokens_of(engine, [Message.user("bad")])
        return await asyncio.gather(good, bad, return_exceptions=True)

    good, bad = asyncio.run(ask_both())
    assert len(good) == 10
    assert isinstance(bad, ValueError)


def test_whatever_stops_a_step_reaches_the_callers_and_not_the_thread(
    make_engine, make_prompt, monkeypatch
):
    engine = make_engine()

    def fail(step):
        raise KeyError("broken")

    with monkeypatch.context() as broken:
        broken.setattr(engine.runner, "begin", fail)
        with pytest.raises(KeyError, match="broken"):
            asyncio.run(tokens_of(engine, make_prompt([1, 2])))
    assert len(asyncio.run(tokens_of(engine, make_prompt([1, 2])))) == 10


def test_synchronous_callers_of_several_threads_and_asynchronous_ones_get_along(
    make_engine, make_prompt
):
    engine = make_engine()
    wanted = make_engine().answer(make_prompt([1, 2]), TEN).token_ids
    found = []

    def ask():
        found.append(engine.answer(make_prompt([1, 2]), TEN).token_ids)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    found.append(asyncio.run(tokens_of(engine, make_prompt([1, 2]))))
    for thread in threads:
        thread.join(timeout=20)
    assert found == [wanted] * 5


def test_a_closed_engine_starts_no_thread(make_engine, make_prompt):
    engine = make_engine()
    engine.close()
    before = threading.active_count()
    with pytest.raises(ValueError, match="the engine is closed"):
        asyncio.run(tokens_of(engine, make_prompt([1])))
    assert threading.active_count() == before


def test_a_request_that_comes_while_the_engine_closes_is_aborted(make_engine, make_prompt):
    engine = make_engine()
    reasons = []
    check = engine.scheduler.check
    engine.scheduler.check = lambda sequence: (check(sequence), engine.close())
    reasons += [output.finish_reason for output in engine.stream(make_prompt([1]), TEN)]
    assert reasons == ["abort"]


def test_a_fault_ends_the_requests_of_its_step_and_none_that_wait(
    make_engine, make_prompt, monkeypatch
):
    engine = make_engine(max_sequences=1)
    run = engine.runner.begin

    def fail_for_first(step):
        if any(chunk.sequence.id == 0 for chunk in step.chunks):
            raise KeyError("broken")
        return run(step)

    monkeypatch.setattr(engine.runner, "begin", fail_for_first)
    added = engine.add(make_prompt([5]), TEN)

    async def ask_both():
        asked = (tokens_of(engine, make_prompt([n])) for n in (1, 2))
        return await asyncio.gather(*asked)

    assert added == 0
    assert [len(tokens) for tokens in asyncio.run(ask_both())] == [10, 10]
    with pytest.raises(KeyError, match="broken"):
        engine.step()
    assert not engine.has_work


def test_a_synchronous_caller_does_not_get_the_error_of_another(
    make_engine, make_prompt, monkeypatch
):
    engine = make_engine(max_sequences=1)
    run = engine.runner.begin

    def fail_for_first(step):
        if step.chunks[0].sequence.id == 0:
            raise KeyError("broken")
        return run(step)

    monkeypatch.setattr(engine.runner, "begin", fail_for_first)
    engine.add(make_prompt([5]), TEN)
    assert engine.answer(make_prompt([1]), TEN).finish_reason == "length"
    with pytest.raises(KeyError, match="broken"):
        engine.step()
