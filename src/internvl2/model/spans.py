"""What the stream of a step over a paged cache consists of: runs of prompts, then single tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from internvl2 import device as devices

GATHERED = 2**15
"""Tokens whose keys and values are copied out of the cache at a time, unless one sequence alone has
more."""


@dataclass(frozen=True)
class PrefillSpan:
    """A run of one sequence's prompt tokens in the stream of a step."""

    start: int
    stop: int
    context: int
    """How many tokens of the sequence earlier steps have put into the cache."""
    blocks: Int[Tensor, " blocks"]
    """Cache blocks of the sequence, enough for `context` and this run."""

    @property
    def total(self) -> int:
        """Tokens of the sequence up to the end of this run."""
        return self.context + self.stop - self.start


@dataclass(frozen=True)
class DecodeSpan:
    """The end of a step's stream: one new token for each of several sequences."""

    start: int
    block_tables: Int[Tensor, "sequences blocks"]
    """Cache blocks of each sequence; unused entries may point anywhere inside the cache."""
    context_lens: Int[Tensor, " sequences"]
    """Tokens of each sequence, the new one included."""
    lengths: tuple[int, ...] | None
    """The same numbers, for kernels that want them of the host; None where it does not know."""

    @cached_property
    def short_tables(self) -> Int[Tensor, "sequences blocks"]:
        """The block tables in 32 bits."""
        return self.block_tables.int()

    def slots(self, block_size: int) -> Int[Tensor, " tokens"]:
        """Where the keys of all tokens lie in the cache, one sequence after the other."""
        assert self.lengths is not None, "kernels of Ascend want the lengths of the host"
        within = torch.arange(block_size, device=self.block_tables.device)
        slots = self.block_tables[:, :, None] * block_size + within
        slots = rearrange(slots, "s n b -> s (n b)")
        return torch.cat([row[:n] for row, n in zip(slots, self.lengths, strict=True)])


@dataclass(frozen=True)
class PackedSpans:
    """Prefill spans as one stream of queries and one of keys, for a kernel that takes many."""

    spans: tuple[PrefillSpan, ...]
    bounds: Int[Tensor, "two bounds"]
    """Where each span's queries and keys begin, then how many there are; int32."""
    key_slots: Int[Tensor, " keys"] | None
    """Where the keys lie in the cache; None where all of them are in the step's own stream."""

    @classmethod
    def of(
        cls, spans: Sequence[PrefillSpan], block_size: int, device: torch.device
    ) -> list["PackedSpans"]:
        """Spans that follow each other, in as few packs as the room for copied keys allows."""
        return [cls._packed(pack, block_size, device) for pack in _fitting(spans)]

    @property
    def longest(self) -> int:
        """Queries of the longest span."""
        return max(span.stop - span.start for span in self.spans)

    @property
    def most_keys(self) -> int:
        """Keys of the span that has most."""
        return max(span.total for span in self.spans)

    @classmethod
    def _packed(
        cls, spans: tuple[PrefillSpan, ...], block_size: int, device: torch.device
    ) -> "PackedSpans":
        queries = accumulate((span.stop - span.start for span in spans), initial=0)
        keys = accumulate((span.total for span in spans), initial=0)
        bounds = torch.tensor([list(queries), list(keys)], dtype=torch.int32)
        slots = _key_slots(spans, block_size) if any(span.context for span in spans) else None
        return cls(spans, devices.upload(bounds, device), slots)


def _fitting(spans: Sequence[PrefillSpan]) -> Iterator[tuple[PrefillSpan, ...]]:
    pack: list[PrefillSpan] = []
    for span in spans:
        if pack and sum(other.total for other in pack) + span.total > GATHERED:
            yield tuple(pack)
            pack = []
        pack.append(span)
    yield tuple(pack)


def _key_slots(spans: Sequence[PrefillSpan], block_size: int) -> Int[Tensor, " keys"]:
    """Block * block_size + offset of every key, with as many operations for many spans as for one.

    Which entries are read of all spans' tables behind each other is known on the host.
    """
    blocks = torch.cat([span.blocks for span in spans])
    starts = accumulate((len(span.blocks) * block_size for span in spans), initial=0)
    runs = [torch.arange(a, a + span.total) for a, span in zip(starts, spans, strict=False)]
    read = devices.upload(torch.cat(runs), blocks.device)
    return blocks[read // block_size] * block_size + read % block_size
