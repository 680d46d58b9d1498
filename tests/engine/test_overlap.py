"""Requests are prepared in threads of their own: the model goes on with those that are ready."""

import asyncio
import threading

import pytest

from internvl2.engine.sequence import SamplingParams
from internvl2.processing.conversation import Message

PARAMS = SamplingParams(max_tokens=5, ignore_eos=True)
PATIENCE = 20.0
"""Seconds after which a request that waits in vain gives up, so that a test ends."""


@pytest.fixture
def slow_engine(make_engine, monkeypatch):
    """An engine that can prepare what is called slow only after the model has begun a step."""
    engine, has_stepped = make_engine(), threading.Event()
    encode, begin = engine.processor.encode, engine.runner.begin

    def encode_slowly(conversation, *, options):
        if "slow" in conversation[0].text and not has_stepped.wait(PATIENCE):
            raise ValueError("the model waits for what is being prepared")
        return encode(conversation, options=options)

    def begin_step(step):
        has_stepped.set()
        return begin(step)

    monkeypatch.setattr(engine.processor, "encode", encode_slowly)
    monkeypatch.setattr(engine.runner, "begin", begin_step)
    return engine


def test_a_batch_is_answered_while_its_next_request_is_prepared(slow_engine):
    requests = [[Message.user(text)] for text in ("ready", "slow", "another")]
    assert [len(a.token_ids) for a in slow_engine.generate(requests, PARAMS)] == [5, 5, 5]


def test_callers_are_answered_while_another_request_is_prepared(slow_engine):
    async def tokens_of(text):
        request = [Message.user(text)]
        return [
            t async for output in slow_engine.astream(request, PARAMS) for t in output.token_ids
        ]

    async def ask_all():
        return await asyncio.gather(*(tokens_of(text) for text in ("slow", "ready", "another")))

    assert [len(ids) for ids in asyncio.run(ask_all())] == [5, 5, 5]
