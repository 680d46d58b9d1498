"""Many requests through one engine: pictures prepared a little ahead, answers as they complete."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Rows
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from internvl2.cores import read_cores
from internvl2.engine.requests import Collector, Failure, Mailbox
from internvl2.engine.sequence import Answer, Output, SamplingParams, Sequence
from internvl2.engine.step_loop import Inbox, StepLoop
from internvl2.processing.conversation import Conversation
from internvl2.processing.prompt import Prompt

FEWEST_ENCODERS, MOST_ENCODERS = 4, 16
"""Threads that read and cut pictures; decoding and resizing do not hold the interpreter."""


@dataclass(frozen=True, slots=True)
class Answered:
    """How one of many requests ended."""

    index: int
    """Its place among the requests."""
    answer: Answer | None
    error: Exception | None
    """Why there is no answer."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a batch needs of an engine."""

    encode: Callable[[Conversation | Prompt], Prompt]
    submit: Callable[[Prompt, SamplingParams, Mailbox], Sequence]
    loop: StepLoop


class Batch:
    """One run over many requests; `ahead` bounds how many are in work at a time."""

    def __init__(
        self, work: Work, params: SamplingParams | Rows[SamplingParams], ahead: int
    ) -> None:
        self._work = work
        self._params = params
        self._ahead = ahead
        self._inbox: Inbox = Inbox()
        self._indices: dict[int, int] = {}
        self._collectors: dict[int, Collector] = {}
        self._encoding: deque[tuple[int, Future[Prompt]]] = deque()

    def run(self, requests: Iterable[Conversation | Prompt]) -> Iterator[Answered]:
        """Every request's end, in the order in which they end."""
        source = enumerate(requests)
        encoders = max(FEWEST_ENCODERS, min(MOST_ENCODERS, read_cores().threads))
        with ThreadPoolExecutor(encoders, thread_name_prefix="encode") as pool:
            try:
                while self._fill(source, pool):
                    yield from self._start_encoded()
                    if self._collectors:
                        yield from self._take(self._work.loop.wait(self._inbox))
            finally:
                for _, future in self._encoding:
                    future.cancel()
                for sequence_id in self._collectors:
                    self._work.loop.abort(sequence_id)

    def _fill(
        self, source: Iterator[tuple[int, Conversation | Prompt]], pool: ThreadPoolExecutor
    ) -> bool:
        """Reads on; says whether anything is left to do."""
        while len(self._encoding) + len(self._collectors) < self._ahead:
            following = next(source, None)
            if following is None:
                break
            index, request = following
            self._encoding.append((index, pool.submit(self._work.encode, request)))
        return bool(self._encoding or self._collectors)

    def _start_encoded(self) -> Iterator[Answered]:
        """Starts what is ready; waits for it when nothing else is running."""
        while self._encoding and (self._encoding[0][1].done() or not self._collectors):
            index, future = self._encoding.popleft()
            try:
                sequence = self._work.submit(
                    future.result(), params_of(index, self._params), self._inbox.put
                )
            except (ValueError, OSError) as error:
                yield Answered(index, None, error)
                continue
            self._indices[sequence.id] = index
            self._collectors[sequence.id] = Collector(sequence)

    def _take(self, item: Output | Failure) -> Iterator[Answered]:
        index = self._indices[item.sequence_id]
        if isinstance(item, Failure):
            del self._collectors[item.sequence_id]
            yield Answered(index, None, item.error)
            return
        answer = self._collectors[item.sequence_id].add(item)
        if answer is not None:
            del self._collectors[item.sequence_id]
            yield Answered(index, answer, None)


def params_of(index: int, params: SamplingParams | Rows[SamplingParams]) -> SamplingParams:
    """Those of one of many requests, where one record is for all or each has its own."""
    if isinstance(params, SamplingParams):
        return params
    if index >= len(params):
        raise ValueError(f"there are {len(params)} params but more requests than that")
    return params[index]
