"""What computes steps, as the step loop sees it: begun, then asked for its tokens."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from internvl2.engine.scheduler import Step
from internvl2.engine.sequence import Logprobs, Sequence


@dataclass(frozen=True, slots=True)
class NextToken:
    """What a step chose for one sequence."""

    sequence: Sequence
    token_id: int
    logprobs: Logprobs | None


@runtime_checkable
class Launched(Protocol):
    """A step on its way through the model."""

    def tokens(self) -> list[NextToken]:
        """A token for every chunk that reaches its sequence's end; waits until they are chosen.

        What went wrong in the step may be raised here.
        """
        ...


@runtime_checkable
class Runner(Protocol):
    """Computes the scheduler's steps, one after the other."""

    @property
    def runs_ahead(self) -> bool:
        """Whether a step that `follows` may begin before the tokens of the one before are read."""
        ...

    def begin(self, step: Step) -> Launched:
        """Queues the work of a step, and waits for none of it where the device can do that."""
        ...

    def release(self, sequence: Sequence) -> None:
        """Forgets what is kept for a sequence that has ended or gave its blocks back."""
        ...
