"""Ways in which a file stores our parameters: each turns tensors both ways, `read` and `write`."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from einops import rearrange
from torch import Tensor


@runtime_checkable
class Storage(Protocol):
    """How the tensors of a file and our parameters become each other."""

    def read(self, theirs: list[Tensor]) -> list[Tensor]:
        """Our parameters from a file's tensors."""
        ...

    def write(self, ours: list[Tensor]) -> list[Tensor]:
        """A file's tensors from our parameters."""
        ...


@dataclass(frozen=True, slots=True)
class Same:
    """Stored as it is."""

    def read(self, theirs: list[Tensor]) -> list[Tensor]:
        """The tensor itself."""
        return theirs

    def write(self, ours: list[Tensor]) -> list[Tensor]:
        """The tensor itself."""
        return ours


SAME = Same()


@dataclass(frozen=True, slots=True)
class Batched:
    """Stored with leading axes of length one."""

    axes: int

    def read(self, theirs: list[Tensor]) -> list[Tensor]:
        """Without the leading axes."""
        return [x.reshape(x.shape[self.axes :]) for x in theirs]

    def write(self, ours: list[Tensor]) -> list[Tensor]:
        """With them."""
        return [x.reshape((1,) * self.axes + x.shape) for x in ours]


@dataclass(frozen=True, slots=True)
class Joined:
    """Several of our parameters stored one below the other in one tensor."""

    rows: tuple[int, ...]

    def read(self, theirs: list[Tensor]) -> list[Tensor]:
        """The parts."""
        return list(theirs[0].split(self.rows))

    def write(self, ours: list[Tensor]) -> list[Tensor]:
        """The whole."""
        return [torch.cat(ours)]


@dataclass(frozen=True, slots=True)
class Split:
    """One of our parameters stored as several tensors, one below the other."""

    rows: tuple[int, ...]

    def read(self, theirs: list[Tensor]) -> list[Tensor]:
        """The whole."""
        return [torch.cat(theirs)]

    def write(self, ours: list[Tensor]) -> list[Tensor]:
        """The parts."""
        return list(ours[0].split(self.rows))


@dataclass(frozen=True, slots=True)
class ByKeyValueHead:
    """InternLM2's `wqkv`: for each key-value head its query heads, then the key, then the value."""

    kv_heads: int
    queries: int
    """Query heads per key-value head."""

    def read(self, theirs: list[Tensor]) -> list[Tensor]:
        """Separate query, key and value matrices (`modeling_internlm2.py`, lines 375-385)."""
        pattern = "(kv slots dim) hidden -> kv slots dim hidden"
        x = rearrange(theirs[0], pattern, kv=self.kv_heads, slots=self.queries + 2)
        parts = x.split((self.queries, 1, 1), dim=1)
        return [rearrange(part, "kv slots dim hidden -> (kv slots dim) hidden") for part in parts]

    def write(self, ours: list[Tensor]) -> list[Tensor]:
        """The fused matrix."""
        pattern = "(kv slots dim) hidden -> kv slots dim hidden"
        parts = [
            rearrange(x, pattern, kv=self.kv_heads, slots=slots)
            for x, slots in zip(ours, (self.queries, 1, 1), strict=True)
        ]
        return [rearrange(torch.cat(parts, 1), "kv slots dim hidden -> (kv slots dim) hidden")]


@dataclass(frozen=True, slots=True)
class Transposed:
    """Stored as [in, out], as Paddle does."""

    inner: Storage

    def read(self, theirs: list[Tensor]) -> list[Tensor]:
        """As [out, in]."""
        return self.inner.read([x.T for x in theirs])

    def write(self, ours: list[Tensor]) -> list[Tensor]:
        """As [in, out]."""
        return [x.T.contiguous() for x in self.inner.write(ours)]
