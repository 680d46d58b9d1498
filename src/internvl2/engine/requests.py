"""What the engine keeps for each request beside its sequence, and how outputs become an answer."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from internvl2.config import InternVLConfig
from internvl2.engine.answer_text import AnswerText
from internvl2.engine.runner import NextToken
from internvl2.engine.sequence import (
    Answer,
    FinishReason,
    Logprobs,
    Output,
    Sequence,
    Timings,
)
from internvl2.processing.prompt import Prompt

Mailbox = Callable[["Output | Failure"], None]
"""Where a request's outputs go; called from whichever thread runs the step."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that ended by an error."""

    sequence_id: int
    error: Exception


def check_prompt(prompt: Prompt, config: InternVLConfig) -> None:
    """Raises ValueError for a prompt that the model cannot read.

    It would otherwise stop a step, and with it the requests that share the step.
    """
    ids = np.array(prompt.token_ids, dtype=np.int64)
    vocab, side = config.decoder.vocab_size, config.tile_size
    outside = ids[(ids < 0) | (ids >= vocab)]
    if len(outside):
        raise ValueError(
            f"the prompt has token {outside[0]}; the model has tokens 0 to {vocab - 1}"
        )
    if len(prompt.tiles) and prompt.tiles.shape[1:] != (side, side, 3):
        raise ValueError(
            f"the prompt's tiles have shape {prompt.tiles.shape[1:]}; "
            f"this model takes {(side, side, 3)}"
        )
    for span in prompt.media:
        tokens = span.num_tiles * config.tokens_per_tile
        fits = span.start >= 0 and span.stop <= len(ids) and span.stop - span.start == tokens
        if not fits or not 0 <= span.first_tile <= len(prompt.tiles) - span.num_tiles:
            raise ValueError(
                f"a picture of {span.num_tiles} tiles needs {tokens} tokens inside the prompt; "
                f"its span is {span.start} to {span.stop} of {len(ids)}"
            )


@dataclass(eq=False, slots=True)
class Request:
    """One sequence with its text and its reader."""

    sequence: Sequence
    text: AnswerText
    mailbox: Mailbox | None
    """None: the caller of `Engine.step` reads it."""

    def take(self, token: NextToken) -> Output:
        """Appends the token that a step chose; the output says whether it was the last."""
        sequence = self.sequence
        reason = sequence.append(token.token_id)
        may_stop = sequence.num_generated > sequence.params.min_tokens
        text = ""
        if reason != "stop":
            text = self.text.add(token.token_id, may_stop)
            if self.text.is_stopped:
                reason = "stop"
        if reason is not None:
            text += self.text.finish(may_stop)
            reason = "stop" if self.text.is_stopped else reason
        logprobs = () if token.logprobs is None else (token.logprobs,)
        return Output(sequence.id, text, (token.token_id,), reason, sequence.usage, logprobs)

    def aborted(self) -> Output:
        """The last output of a request that nobody wants any more."""
        return Output(self.sequence.id, "", (), "abort", self.sequence.usage)


@dataclass(slots=True)
class Collector:
    """Gathers the outputs of one request."""

    sequence: Sequence
    started: float = field(default_factory=time.perf_counter)
    first_token_at: float | None = None
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Logprobs] = field(default_factory=list)

    def add(self, output: Output) -> Answer | None:
        """Takes one output and gives the answer when it was the last one."""
        if self.first_token_at is None:
            self.first_token_at = time.perf_counter()
        self.texts.append(output.text)
        self.token_ids += output.token_ids
        self.logprobs += output.logprobs
        if output.finish_reason is None:
            return None
        return self._answer(output, output.finish_reason, self.first_token_at)

    def _answer(self, last: Output, reason: FinishReason, first_token_at: float) -> Answer:
        return Answer(
            sequence_id=last.sequence_id,
            text="".join(self.texts),
            token_ids=tuple(self.token_ids),
            finish_reason=reason,
            usage=last.usage,
            timings=Timings(first_token_at - self.started, time.perf_counter() - self.started),
            prompt_token_ids=tuple(self.sequence.prompt.token_ids),
            media=self.sequence.prompt.media,
            logprobs=tuple(self.logprobs),
        )
