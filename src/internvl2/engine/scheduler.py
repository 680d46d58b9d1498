"""Who runs in the next step, and with how many tokens.

First come, first served. Every step first gives each writing sequence its one token, then cuts the
rest of the token budget into chunks of prompts, oldest first. A sequence gets the blocks of all its
tokens when it starts. When a writing sequence finds no block, the youngest running one gives its
blocks back and waits at the front to be computed again: the oldest always makes progress.

A step may be launched before the tokens of the one before are known (`follow`). What a sequence
has while a step writes to it stays its own until that step is done, also when it has ended.
"""

from collections import deque
from dataclasses import dataclass

from internvl2.engine.kv_cache import KVCache
from internvl2.engine.sequence import FinishReason, Sequence, Status


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens `start` to `stop` of one sequence, computed in one step."""

    sequence: Sequence
    start: int
    stop: int

    @property
    def samples(self) -> bool:
        """Whether the chunk ends with the newest token, so that the next one is chosen."""
        return self.stop >= len(self.sequence.token_ids)


@dataclass(frozen=True, slots=True)
class Step:
    """The scheduler's decision: chunks of prompts first, single written tokens last."""

    prefills: tuple[Chunk, ...]
    decodes: tuple[Chunk, ...]
    preempted: tuple[Sequence, ...] = ()
    """Those that gave their blocks back for it; what else is kept for them can go too."""
    follows: bool = False
    """Whether the tokens of its decodes are those that the step before chooses, which the host has
    not read yet."""

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        """All of them, in the order of the token stream."""
        return self.prefills + self.decodes

    @property
    def num_tokens(self) -> int:
        """How many tokens are computed."""
        return sum(chunk.stop - chunk.start for chunk in self.chunks)


class Scheduler:
    """Keeps the queues and decides."""

    def __init__(
        self, cache: KVCache, *, max_context: int, max_sequences: int, max_batch_tokens: int
    ) -> None:
        for name, value in (("max_context", max_context), ("max_sequences", max_sequences)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if max_batch_tokens < max_sequences:
            raise ValueError(
                f"max_batch_tokens {max_batch_tokens} is below max_sequences {max_sequences}: "
                "every running sequence needs one token of a step"
            )
        self.cache = cache
        self.max_context = max_context
        self.max_sequences = max_sequences
        self.max_batch_tokens = max_batch_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._refused: Sequence | None = None
        """The first in the queue, where it finds no room until blocks come back."""

    @property
    def has_work(self) -> bool:
        """Whether any sequence waits or runs."""
        return bool(self.waiting or self.running)

    @property
    def longest(self) -> int:
        """Most tokens, prompt and answer together, that a sequence can have."""
        return min(self.max_context, self.cache.capacity)

    def check(self, sequence: Sequence) -> None:
        """Raises ValueError when a sequence can never fit."""
        length = sequence.prompt_length
        if length >= self.longest:
            visual, cache = sequence.prompt.num_image_tokens, self.cache
            raise ValueError(
                f"the prompt has {length} tokens ({visual} of them visual); with the first of its "
                f"answer that is {length + 1} tokens in {cache.blocks_for(length + 1)} blocks, but "
                f"a sequence can have {self.longest} (context {self.max_context}, cache "
                f"{cache.capacity} in {cache.pool.num_blocks} blocks of {cache.block_size}); "
                "use fewer tiles or a shorter prompt"
            )

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence, or raises ValueError when it can never fit."""
        self.check(sequence)
        length = sequence.prompt_length
        sequence.limit = min(length + sequence.params.max_tokens, self.longest)
        self.waiting.append(sequence)

    def schedule(self) -> Step:
        """The next step; empty only when there is no work."""
        preempted: list[Sequence] = []
        decodes = self._schedule_decodes(preempted)
        reading = [(s, s.num_computed) for s in self.running if not _is_writing(s)]
        prefills = self._schedule_prefills(reading, self.max_batch_tokens - len(decodes))
        return Step(prefills, tuple(decodes), tuple(preempted))

    def follow(self, step: Step) -> Step | None:
        """The step behind a launched one, while the tokens of that are unread.

        None where they have to be known first: one of them decides how the next is chosen, there
        are no blocks, or a prompt may come whose beginning is being computed. Who writes the last
        token leaves out.
        """
        if step.prefills and self._may_admit():
            return None
        launched = {chunk.sequence.id: chunk for chunk in step.chunks}
        writing, reading = [], []
        for sequence in self.running:
            chunk = launched.get(sequence.id)
            if chunk is not None and chunk.samples:
                writing.append(sequence)
            else:
                reading.append((sequence, sequence.num_computed if chunk is None else chunk.stop))
        going_on = [s for s in writing if len(s.token_ids) + 1 < s.limit]
        looks_back = any(sequence.params.uses_history for sequence in going_on)
        if looks_back or not self.cache.extend_all(going_on, 1):
            return None
        newest = [(sequence, len(sequence.token_ids)) for sequence in going_on]
        prefills = self._schedule_prefills(reading, self.max_batch_tokens - len(newest))
        decodes = tuple(Chunk(sequence, index, index + 1) for sequence, index in newest)
        return Step(prefills, decodes, follows=True) if prefills or decodes else None

    def launch(self, step: Step) -> None:
        """Notes that a step is on its way; every chunk of it must be completed."""
        for chunk in step.chunks:
            chunk.sequence.num_in_flight += 1

    def complete(self, chunk: Chunk) -> None:
        """Notes that a launched chunk is in the cache; call it before its token is appended."""
        sequence = chunk.sequence
        sequence.num_in_flight -= 1
        if sequence.status is Status.FINISHED:
            self._free(sequence)
            return
        sequence.num_computed = chunk.stop
        self.cache.commit(sequence)

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Ends a sequence, wherever it is; a second time changes nothing.

        Its blocks are free as soon as no step on its way writes to them.
        """
        if sequence.status is Status.FINISHED:
            return
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        sequence.status = Status.FINISHED
        sequence.finish_reason = reason
        self._free(sequence)

    def _free(self, sequence: Sequence) -> None:
        self._refused = None
        if not sequence.num_in_flight:
            self.cache.free(sequence)

    def _schedule_decodes(self, preempted: list[Sequence]) -> list[Chunk]:
        decodes: list[Chunk] = []
        for sequence in list(self.running):
            is_running = sequence.status is Status.RUNNING
            if is_running and _is_writing(sequence) and self._make_room(sequence, preempted):
                newest = len(sequence.token_ids) - 1
                decodes.append(Chunk(sequence, newest, newest + 1))
        return decodes

    def _schedule_prefills(
        self, reading: list[tuple[Sequence, int]], budget: int
    ) -> tuple[Chunk, ...]:
        """Chunks of running prompts, from where each has got to, then of those that wait."""
        chunks: list[Chunk] = []
        for sequence, start in reading:
            chunk = _prompt_chunk(sequence, start, budget)
            if chunk is not None:
                chunks.append(chunk)
                budget -= chunk.stop - chunk.start
        while budget > 0 and self._admit_next():
            chunk = _prompt_chunk(self.running[-1], self.running[-1].num_computed, budget)
            assert chunk is not None, "an admitted sequence has at least one token to compute"
            chunks.append(chunk)
            budget -= chunk.stop - chunk.start
        return tuple(chunks)

    def _make_room(self, sequence: Sequence, preempted: list[Sequence]) -> bool:
        while not self.cache.extend(sequence):
            youngest = self.running[-1]
            self._preempt(youngest)
            preempted.append(youngest)
            if youngest is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        assert not sequence.num_in_flight, f"sequence {sequence.id} is still written to"
        self.running.remove(sequence)
        self._free(sequence)
        sequence.status = Status.WAITING
        sequence.num_preemptions += 1
        self.waiting.appendleft(sequence)

    def _may_admit(self) -> bool:
        has_place = bool(self.waiting) and len(self.running) < self.max_sequences
        return has_place and self.waiting[0] is not self._refused

    def _admit_next(self) -> bool:
        if not self.waiting or len(self.running) >= self.max_sequences:
            return False
        sequence = self.waiting[0]
        if not self.cache.admit(sequence, headroom=len(self.running)):
            self._refused = sequence
            return False
        self.waiting.popleft()
        self.running.append(sequence)
        sequence.status = Status.RUNNING
        if not sequence.num_preemptions:
            sequence.num_cached = sequence.num_computed
        return True


def _is_writing(sequence: Sequence) -> bool:
    return sequence.num_generated > 0 and len(sequence.token_ids) - sequence.num_computed == 1


def _prompt_chunk(sequence: Sequence, start: int, budget: int) -> Chunk | None:
    count = min(len(sequence.token_ids) - start, budget)
    return Chunk(sequence, start, start + count) if count > 0 else None
