"""Who runs in the next step, and with how many tokens.

First come, first served. Every step first gives each writing sequence its one token, then cuts the
rest of the token budget into chunks of prompts, oldest first. A sequence gets the blocks of all its
tokens when it starts. When a writing sequence finds no block, the youngest running one gives its
blocks back and waits at the front to be computed again: the oldest always makes progress.
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
        return self.stop == len(self.sequence.token_ids)


@dataclass(frozen=True, slots=True)
class Step:
    """The scheduler's decision: chunks of prompts first, single written tokens last."""

    prefills: tuple[Chunk, ...]
    decodes: tuple[Chunk, ...]
    preempted: tuple[Sequence, ...] = ()
    """Those that gave their blocks back for it; what else is kept for them can go too."""

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
        budget = self.max_batch_tokens
        preempted: list[Sequence] = []
        decodes = self._schedule_decodes(preempted)
        budget -= len(decodes)
        prefills: list[Chunk] = []
        for sequence in self.running:
            chunk = _prompt_chunk(sequence, budget)
            if chunk is not None and not _is_writing(sequence):
                prefills.append(chunk)
                budget -= chunk.stop - chunk.start
        while budget > 0 and self._admit_next():
            chunk = _prompt_chunk(self.running[-1], budget)
            assert chunk is not None, "an admitted sequence has at least one token to compute"
            prefills.append(chunk)
            budget -= chunk.stop - chunk.start
        return Step(tuple(prefills), tuple(decodes), tuple(preempted))

    def complete(self, chunk: Chunk) -> None:
        """Notes that a chunk is in the cache; call it before the next token is appended."""
        chunk.sequence.num_computed = chunk.stop
        self.cache.commit(chunk.sequence)

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Ends a sequence, wherever it is, and frees its blocks; a second time changes nothing."""
        if sequence.status is Status.FINISHED:
            return
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self.cache.free(sequence)
        sequence.status = Status.FINISHED
        sequence.finish_reason = reason

    def _schedule_decodes(self, preempted: list[Sequence]) -> list[Chunk]:
        decodes: list[Chunk] = []
        for sequence in list(self.running):
            is_running = sequence.status is Status.RUNNING
            if is_running and _is_writing(sequence) and self._make_room(sequence, preempted):
                newest = len(sequence.token_ids) - 1
                decodes.append(Chunk(sequence, newest, newest + 1))
        return decodes

    def _make_room(self, sequence: Sequence, preempted: list[Sequence]) -> bool:
        while not self.cache.extend(sequence):
            youngest = self.running[-1]
            self._preempt(youngest)
            preempted.append(youngest)
            if youngest is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.cache.free(sequence)
        sequence.status = Status.WAITING
        sequence.num_preemptions += 1
        self.waiting.appendleft(sequence)

    def _admit_next(self) -> bool:
        if not self.waiting or len(self.running) >= self.max_sequences:
            return False
        sequence = self.waiting[0]
        if not self.cache.admit(sequence, headroom=len(self.running)):
            return False
        self.waiting.popleft()
        self.running.append(sequence)
        sequence.status = Status.RUNNING
        if not sequence.num_preemptions:
            sequence.num_cached = sequence.num_computed
        return True


def _is_writing(sequence: Sequence) -> bool:
    return sequence.num_generated > 0 and len(sequence.token_ids) - sequence.num_computed == 1


def _prompt_chunk(sequence: Sequence, budget: int) -> Chunk | None:
    count = min(len(sequence.token_ids) - sequence.num_computed, budget)
    if count < 1:
        return None
    return Chunk(sequence, sequence.num_computed, sequence.num_computed + count)
