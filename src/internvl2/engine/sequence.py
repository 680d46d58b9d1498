"""One request from its arrival to its answer: how to sample it, what it has so far, what it gives.

Torch-free. A `Sequence` is the only mutable record here; the scheduler and the engine move it from
waiting to running to finished (and back to waiting when the cache is full).
"""

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from internvl2.processing.prompt import MediaSpan, Prompt

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next tokens are chosen and when to stop, in the names of OpenAI's interface."""

    max_tokens: int = 1024
    """Most tokens to write; the context may end an answer earlier."""
    min_tokens: int = 0
    """Stop tokens are banned, and stop strings ignored, before so many tokens are written."""
    temperature: float = 0.0
    """0 takes the most probable token."""
    top_k: int = 0
    """Only the k most probable tokens; 0 is all."""
    top_p: float = 1.0
    """Only the most probable tokens that together have this share of the probability."""
    min_p: float = 0.0
    """Only tokens with at least this share of the most probable token's probability."""
    repetition_penalty: float = 1.0
    """Divides positive, multiplies negative logits of tokens already written (not the prompt's)."""
    presence_penalty: float = 0.0
    """Taken off the logits of every token already written."""
    frequency_penalty: float = 0.0
    """Taken off the logits of a token once for every time it was written."""
    no_repeat_ngram_size: int = 0
    """No run of so many tokens is written twice; 0 is no limit."""
    seed: int | None = None
    """The same seed gives the same tokens, whatever else runs in the same batch."""
    logprobs: int | None = None
    """How many of the most probable tokens to report with the chosen one; None reports nothing."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they may span tokens."""
    stop_token_ids: tuple[int, ...] | None = None
    """Tokens that end the answer; None takes those of the model."""
    ignore_eos: bool = False
    """Writes on through stop tokens."""
    include_stop: bool = False
    """Leaves a stop text that was found at the end of the answer."""

    def __post_init__(self) -> None:
        _require_whole(self, "max_tokens", 1)
        for name in ("min_tokens", "top_k", "no_repeat_ngram_size"):
            _require_whole(self, name, 0)
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is above max_tokens {self.max_tokens}")
        _require_between(self, "temperature", 0.0, 100.0)
        _require_between(self, "top_p", 0.0, 1.0, open_below=True)
        _require_between(self, "min_p", 0.0, 1.0)
        _require_between(self, "repetition_penalty", 0.0, 100.0, open_below=True)
        _require_between(self, "presence_penalty", -100.0, 100.0)
        _require_between(self, "frequency_penalty", -100.0, 100.0)
        if self.logprobs is not None:
            _require_whole(self, "logprobs", 0)
        if self.seed is not None:
            _require_whole(self, "seed", None)
        self._check_stops()

    def _check_stops(self) -> None:
        if isinstance(self.stop, str):
            raise ValueError(f"stop is the text {self.stop!r}; it must be a tuple of texts")
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise ValueError(f"stop has {text!r}; every stop must be a text that is not empty")
        for token in self.stop_token_ids or ():
            if not _is_whole(token) or token < 0:
                raise ValueError(f"stop_token_ids has {token!r}; ids are whole numbers from 0 on")

    @property
    def is_plain(self) -> bool:
        """Whether logits alone decide, with temperature and truncation, and nothing is reported."""
        has_bans = self.min_tokens > 0 and not self.ignore_eos
        return not self.uses_history and not has_bans and self.logprobs is None

    @property
    def truncates(self) -> bool:
        """Whether tokens are drawn from the most probable ones only, which are put in order."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1)

    @property
    def uses_history(self) -> bool:
        """Whether the choice of a token depends on the tokens written before, beside the logits."""
        return self.has_penalty or self.no_repeat_ngram_size > 0

    @property
    def has_penalty(self) -> bool:
        """Whether logits are changed for tokens that were written before."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and the natural logarithm of its probability in the model's own distribution."""

    token_id: int
    logprob: float
    """Before penalties, temperature and truncation."""


@dataclass(frozen=True, slots=True)
class Logprobs:
    """The chosen token and the most probable ones at its place."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request has cost so far, in tokens."""

    prompt_tokens: int
    completion_tokens: int
    image_tokens: int
    """Visual tokens, a part of `prompt_tokens`."""
    cached_tokens: int
    """Prompt tokens whose keys and values were found in the cache."""


@dataclass(frozen=True, slots=True)
class Output:
    """What one step adds to one request."""

    sequence_id: int
    text: str
    """New text; empty while a character or a possible stop text is incomplete."""
    token_ids: tuple[int, ...]
    """New tokens, the stop token included."""
    finish_reason: FinishReason | None
    usage: Usage
    logprobs: tuple[Logprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Timings:
    """How long an answer took, in seconds from when its prompt was ready."""

    first_token_s: float
    total_s: float

    def tokens_per_s(self, completion_tokens: int) -> float:
        """Speed after the first token."""
        span = self.total_s - self.first_token_s
        return (completion_tokens - 1) / span if span > 0 and completion_tokens > 1 else 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """All that a request gave."""

    sequence_id: int
    text: str
    token_ids: tuple[int, ...]
    """Everything written, the stop token included."""
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    prompt_token_ids: tuple[int, ...]
    media: tuple[MediaSpan, ...]
    """The pictures and frames of the prompt, with their grids."""
    logprobs: tuple[Logprobs, ...] = ()


class Status(Enum):
    """Where a sequence is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False, slots=True)
class Sequence:
    """A request while it is worked on."""

    id: int
    prompt: Prompt
    params: SamplingParams
    stop_token_ids: frozenset[int]
    seed: int
    leading_ids: tuple[int, ...] = ()
    """What repetition_penalty and n-grams see before the first token, as in the official code."""
    limit: int = 0
    """Longest total length, in tokens; set when the scheduler takes the sequence."""
    token_ids: list[int] = field(default_factory=list)
    """The prompt and what was written."""
    num_computed: int = 0
    """How many tokens have their keys and values in the cache."""
    num_cached: int = 0
    """How many prompt tokens were found in the cache on arrival."""
    blocks: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    status: Status = Status.WAITING
    finish_reason: FinishReason | None = None
    num_preemptions: int = 0
    num_in_flight: int = 0
    """Launched steps that are not completed: they write to the blocks."""

    prompt_length: int = field(init=False)
    """Tokens of the prompt alone."""

    def __post_init__(self) -> None:
        if not self.prompt.token_ids:
            raise ValueError("the prompt is empty; it needs at least one token")
        self.token_ids = list(self.prompt.token_ids)
        self.prompt_length = len(self.token_ids)

    @property
    def num_generated(self) -> int:
        """Tokens written so far."""
        return len(self.token_ids) - self.prompt_length

    @property
    def generated_ids(self) -> list[int]:
        """The tokens written so far."""
        return self.token_ids[self.prompt_length :]

    @property
    def usage(self) -> Usage:
        """The costs so far."""
        return Usage(
            prompt_tokens=self.prompt_length,
            completion_tokens=self.num_generated,
            image_tokens=self.prompt.num_image_tokens,
            cached_tokens=self.num_cached,
        )

    def rotary_length(self, index: int) -> int:
        """The length that rotates token `index`, for ever: recomputing a token must not change it.

        The official code rotates a prompt by its whole length, and each written token by the length
        that the sequence had with it.
        """
        return max(self.prompt_length, index + 1)

    def append(self, token_id: int) -> FinishReason | None:
        """Takes the next token and says whether it is the last one."""
        self.token_ids.append(token_id)
        length = len(self.token_ids)
        written = length - self.prompt_length
        is_stop = token_id in self.stop_token_ids and not self.params.ignore_eos
        if is_stop and written > self.params.min_tokens:
            return "stop"
        return "length" if written >= self.params.max_tokens or length >= self.limit else None


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require_whole(params: SamplingParams, name: str, minimum: int | None) -> None:
    value = getattr(params, name)
    if not _is_whole(value) or (minimum is not None and value < minimum):
        wanted = "a whole number" if minimum is None else f"a whole number from {minimum} on"
        raise ValueError(f"{name} is {value!r}; it must be {wanted}")


def _require_between(
    params: SamplingParams, name: str, low: float, high: float, *, open_below: bool = False
) -> None:
    value = getattr(params, name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_inside = is_number and math.isfinite(value) and low <= value <= high
    if is_inside and not (open_below and value == low):
        return
    wanted = f"above {low:g} and at most {high:g}" if open_below else f"from {low:g} to {high:g}"
    raise ValueError(f"{name} is {value!r}; it must be a number {wanted}")
