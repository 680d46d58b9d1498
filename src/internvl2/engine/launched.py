"""The tokens of a launched step on their way to the host."""

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from internvl2 import device as devices
from internvl2.engine.runner import NextToken
from internvl2.engine.sampler import RawLogprobs, Sampled
from internvl2.engine.sequence import Logprobs, Sequence, TokenLogprob


@dataclass(frozen=True)
class Chosen:
    """The tokens that a step has chosen, on the device, until the next step has begun."""

    sequences: tuple[Sequence, ...]
    ids: Int[Tensor, " rows"]

    def of(self, sequences: Rows[Sequence]) -> Int[Tensor, " some"]:
        """Those of some of its sequences."""
        rows = {sequence.id: row for row, sequence in enumerate(self.sequences)}
        index = torch.tensor([rows[sequence.id] for sequence in sequences])
        return self.ids.index_select(0, devices.upload(index, self.ids.device))


@dataclass(frozen=True)
class LaunchedStep:
    """Copies in the host's memory that the device fills, and the event behind them."""

    sequences: tuple[Sequence, ...]
    sampled: Sampled
    """Of the first rows, as many as there are sequences."""
    copied: torch.cuda.Event | None
    """None where the copies were waited for."""

    @classmethod
    def of(cls, sequences: tuple[Sequence, ...], sampled: Sampled) -> "LaunchedStep":
        """Queues copies of what was sampled, which later steps may overwrite."""
        raw = sampled.logprobs
        if raw is not None:
            raw = RawLogprobs(_fetch(raw.chosen), _fetch(raw.top_values), _fetch(raw.top_ids))
        copies = Sampled(_fetch(sampled.ids), raw)
        if sampled.ids.device.type != "cuda":
            return cls(sequences, copies, None)
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(sampled.ids.device))
        return cls(sequences, copies, copied)

    def tokens(self) -> list[NextToken]:
        """The chosen tokens, when they have arrived."""
        if self.copied is not None:
            self.copied.synchronize()
        ids = self.sampled.ids.tolist()[: len(self.sequences)]
        reports = _reports(self.sequences, ids, self.sampled.logprobs)
        return [
            NextToken(sequence, token, report)
            for sequence, token, report in zip(self.sequences, ids, reports, strict=True)
        ]


def nothing_sampled() -> LaunchedStep:
    """A step in which no chunk reaches its sequence's end."""
    return LaunchedStep((), Sampled(torch.empty(0, dtype=torch.int64), None), None)


def _fetch(values: Tensor) -> Tensor:
    """A copy in the host's memory; from a CUDA device the host does not wait for it."""
    is_cuda = values.device.type == "cuda"  # into pinned memory then
    return values.to("cpu", non_blocking=is_cuda, copy=True)


def _reports(
    sequences: tuple[Sequence, ...], ids: list[int], raw: RawLogprobs | None
) -> list[Logprobs | None]:
    if raw is None:
        return [None] * len(sequences)
    reported = zip(raw.chosen.tolist(), raw.top_ids.tolist(), raw.top_values.tolist(), strict=True)
    reports: list[Logprobs | None] = []
    for sequence, token in zip(sequences, ids, strict=True):
        wanted = sequence.params.logprobs
        if wanted is None:
            reports.append(None)
            continue
        chosen, top_ids, top_values = next(reported)
        top = zip(top_ids[:wanted], top_values[:wanted], strict=True)
        alternatives = tuple(TokenLogprob(i, value) for i, value in top)
        reports.append(Logprobs(TokenLogprob(token, chosen), alternatives))
    return reports
