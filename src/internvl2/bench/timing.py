"""One question with the times at which its tokens came, and what several rounds say together."""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from internvl2.engine.engine import Engine
from internvl2.engine.sequence import SamplingParams
from internvl2.processing.conversation import Conversation
from internvl2.processing.prompt import Prompt


@dataclass(frozen=True, slots=True)
class Arrivals:
    """When a question was asked and when each token of its answer came, in seconds."""

    asked: float
    tokens: list[float]
    ids: list[int]

    @property
    def first_ms(self) -> float:
        """Time to the first token."""
        return 1000 * (self.tokens[0] - self.asked)

    @property
    def tokens_per_s(self) -> float:
        """Speed of the tokens after the first."""
        return (len(self.tokens) - 1) / (self.tokens[-1] - self.tokens[0])


@dataclass(frozen=True, slots=True)
class Spread:
    """Numbers of several rounds."""

    median: float
    low: float
    high: float
    every: tuple[float, ...]

    @classmethod
    def of(cls, numbers: Iterable[float]) -> "Spread":
        """Those of some numbers, in the order of the rounds."""
        every = tuple(numbers)
        return cls(statistics.median(every), min(every), max(every), every)


def ask(engine: Engine, request: Conversation | Prompt, num_tokens: int) -> Arrivals:
    """So many tokens of an answer, and how long each took; a conversation is encoded in the time.

    Stop tokens do not end it.
    """
    params = SamplingParams(max_tokens=num_tokens, ignore_eos=True)
    times: list[float] = []
    ids: list[int] = []
    asked = time.perf_counter()
    for output in engine.stream(request, params):
        times += [time.perf_counter()] * len(output.token_ids)
        ids += output.token_ids
    return Arrivals(asked, times, ids)


def milliseconds_of(work: Callable[[], object]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)
