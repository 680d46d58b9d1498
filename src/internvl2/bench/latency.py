"""One request at a time: its preprocessing, its first token, and the speed of the next ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from internvl2.bench.limits import Limits
from internvl2.bench.rows import Row
from internvl2.bench.subjects import Subject
from internvl2.bench.timing import Spread, ask, milliseconds_of
from internvl2.engine.engine import Engine, EngineOptions
from internvl2.processing.conversation import Conversation
from internvl2.processing.resize import Arithmetic

ALONE = EngineOptions(prefix_reuse=False, vision_cache_bytes=0, tile_cache_bytes=0)
"""The usual sizes; nothing is kept from one round to the next."""
ARITHMETICS: tuple[Arithmetic, ...] = ("exact", "fast")


@dataclass(frozen=True, slots=True)
class Work:
    """What is asked, and how often."""

    text: Subject
    media: tuple[Subject, ...] = ()
    """Pictures and videos, asked about one at a time."""
    tokens: int = 128
    """Written after the first, for the speed of the next ones."""
    rounds: int = 5
    """After one that warms up and does not count."""


def measure(engine: Engine, work: Work) -> Iterator[Row]:
    """Rows as they are measured, for an engine of which `ALONE` says how it keeps nothing."""
    for subject in work.media:
        for arithmetic in ARITHMETICS:
            with resizing(engine, arithmetic):
                what = f"{subject}, {arithmetic}"
                yield preprocessing(engine, subject, work.rounds, f"preprocessing, {what}")
                yield first_token(engine, subject, work.rounds, f"first token, {what}")
    yield first_token(engine, work.text, work.rounds, "first token, text")
    yield decode(engine, work.text, work.rounds, work.tokens)


@contextmanager
def resizing(engine: Engine, arithmetic: Arithmetic) -> Iterator[None]:
    """Has an engine resize pictures in one way for a while."""
    usual = engine.processor
    pictures = replace(usual.pictures, arithmetic=arithmetic)
    engine.processor = usual.changed(usual.config, pictures)
    try:
        yield
    finally:
        engine.processor = usual


def preprocessing(engine: Engine, subject: Subject, rounds: int, what: str) -> Row:
    """From an opened picture and a text to token ids and tiles."""
    asked = _conversations(engine, subject, rounds)
    times = [milliseconds_of(partial(engine.encode, each)) for each in asked]
    return Row(what, "ms", Spread.of(times[1:]))


def first_token(engine: Engine, subject: Subject, rounds: int, what: str) -> Row:
    """From an opened picture and a text to the first token, preprocessing included."""
    asked = _conversations(engine, subject, rounds)
    times = [ask(engine, each, 1).first_ms for each in asked]
    prompt = engine.encode(asked[0])
    limit = Limits.of(engine).first_token_ms(engine, prompt)
    count = len(prompt.tiles)
    tiles = f", {count} tile{'s' * (count > 1)}" if count else ""
    return Row(f"{what}{tiles}", "ms", Spread.of(times[1:]), limit)


def decode(engine: Engine, subject: Subject, rounds: int, tokens: int) -> Row:
    """Tokens after the first, one answer at a time."""
    asked = _conversations(engine, subject, rounds)
    rates = [ask(engine, each, 1 + tokens).tokens_per_s for each in asked]
    limit = Limits.of(engine).tokens_per_s()
    return Row("next tokens, batch 1", "tokens/s", Spread.of(rates[1:]), limit)


def _conversations(engine: Engine, subject: Subject, rounds: int) -> list[Conversation]:
    """One for each round, and a first one that warms up."""
    tokenizer = engine.processor.tokenizer
    return [subject.conversation(tokenizer, number) for number in range(1 + rounds)]
