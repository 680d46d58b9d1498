"""Whether two sides write the same greedy tokens, and if not, whether rounding explains it.

Sides that round in another order have slightly different logits, so that the two most probable
tokens may change places where they are as near to each other as that. From there on the texts
differ. Any other difference is a fault: a wrong mask, position or picture, or numbers that were
read before they were written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from internvl2.engine.sequence import Logprobs

TOP = 20
"""Tokens at each place whose logarithms of probabilities are compared."""
ROUNDING: Mapping[str, float] = MappingProxyType(
    {"float32": 1e-4, "float16": 3e-2, "bfloat16": 2e-1}
)
"""Most that rounding makes of a difference, as a share of the standard deviation of the logits."""
SLACK = 4
"""By how much a margin may exceed the differences seen before it: those of two tokens add up, and
no place has the largest of all."""


@dataclass(frozen=True)
class Written:
    """What one side wrote, with logarithms of probabilities at each place."""

    ids: Sequence[int]
    logprobs: Float[Tensor, "places vocab"]


@dataclass(frozen=True)
class Agreement:
    """What two sides have in common."""

    equal_tokens: int
    """From the beginning of the answer."""
    margin: float
    """How much more probable, by their logarithms, the token of one side is than that of the other
    where they part, or than the next where they come nearest to parting."""
    difference: float
    """The largest between both sides' logarithms, at places with the same tokens before them; where
    they part it counts only if that is the first place."""
    verdict: str
    """`equal`, `equal but for rounding` or `different`."""

    def __str__(self) -> str:
        margin, difference = f"margin {self.margin:.1e}", f"logits differ by {self.difference:.1e}"
        return f"{self.equal_tokens}, {self.verdict} ({margin}, {difference})"


def agreement(
    one: Written, ids: Sequence[int], reports: Sequence[Logprobs], dtype: str
) -> Agreement:
    """What a side has in common with our tokens and their reports, computed in a number format."""
    pairs = zip(one.ids, ids, strict=True)
    parting = next((place for place, (a, b) in enumerate(pairs) if a != b), None)
    equal = len(ids) if parting is None else parting
    margins = [_margin(one, place) for place in range(equal)]
    if parting is not None:
        margins = [_lead(one.logprobs[parting], one.ids[parting], ids[parting])]
    compared = max(1, equal)
    difference = max(_difference(one.logprobs[place], reports[place]) for place in range(compared))
    bound = ROUNDING[dtype] * one.logprobs[:compared].std().item()
    verdict = "equal"
    if difference > bound or (equal and parting is not None and margins[0] > SLACK * difference):
        verdict = "different"
    elif parting is not None:
        verdict = "equal but for rounding"
    return Agreement(equal, min(margins), difference, verdict)


def _margin(one: Written, place: int) -> float:
    first, second = one.logprobs[place].topk(2).values.tolist()
    return first - second


def _lead(logprobs: Float[Tensor, " vocab"], chosen: int, other: int) -> float:
    return (logprobs[chosen] - logprobs[other]).item()


def _difference(logprobs: Float[Tensor, " vocab"], report: Logprobs) -> float:
    ids = torch.tensor([token.token_id for token in report.top])
    ours = torch.tensor([token.logprob for token in report.top])
    return (logprobs[ids] - ours).abs().max().item()
