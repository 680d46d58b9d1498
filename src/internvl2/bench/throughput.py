"""Many requests at once, each with a picture of its own."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from internvl2.bench.limits import Limits
from internvl2.bench.rows import Row, Unit
from internvl2.bench.subjects import Subject
from internvl2.bench.timing import Spread
from internvl2.engine.engine import Engine, EngineOptions
from internvl2.engine.sequence import SamplingParams
from internvl2.processing.conversation import Conversation


def together(requests: int) -> EngineOptions:
    """An engine that answers so many at once and keeps nothing for the next round."""
    return EngineOptions(
        max_sequences=requests, prefix_reuse=False, vision_cache_bytes=0, tile_cache_bytes=0
    )


@dataclass(frozen=True, slots=True)
class Work:
    """What is asked at once, and how often."""

    subject: Subject
    requests: int = 64
    tokens: int = 128
    """Of each answer, whatever the model would like."""
    rounds: int = 3
    """After one that warms up and does not count."""


def measure(engine: Engine, work: Work) -> Iterator[Row]:
    """Requests and written tokens per second, preprocessing included."""
    tokenizer = engine.processor.tokenizer
    asked = [work.subject.conversation(tokenizer, number) for number in range(work.requests)]
    seconds = [seconds_for(engine, asked, work.tokens) for _ in range(1 + work.rounds)][1:]
    prompts = [engine.encode(conversation) for conversation in asked]
    best = Limits.of(engine).batch_s(engine, prompts, work.tokens)
    what = f"{work.requests} x {work.subject}, {work.tokens} tokens out"
    units: tuple[tuple[Unit, int], ...] = (("requests/s", 1), ("tokens/s", work.tokens))
    for unit, each in units:
        total = work.requests * each
        limit = None if best is None else total / best
        yield Row(what, unit, Spread.of(total / taken for taken in seconds), limit)


def seconds_for(engine: Engine, asked: list[Conversation], tokens: int) -> float:
    """From all requests at once to the last token of the last answer."""
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    started = time.perf_counter()
    answers = engine.generate(asked, params)
    taken = time.perf_counter() - started
    written = sum(len(answer.token_ids) for answer in answers)
    if written != tokens * len(asked):
        raise ValueError(
            f"{written} tokens were written where {tokens} for each of {len(asked)} were asked "
            "for: the context does not hold them"
        )
    return taken
