"""Rotary positions: how a token's place, and the length of its sequence, turn queries and keys.

Dynamic NTK and long rope make the rotation depend on the length of a token's own sequence. A key
is rotated once: a prompt's tokens by the whole prompt's length, a generated token by its own length
when it was made. So a position is two numbers, and batch or pack mates never change a result.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor

from internvl2 import device as devices
from internvl2.config import RotaryConfig


@dataclass(frozen=True)
class Positions:
    """Where each token of a stream stands in its own sequence."""

    index: Int[Tensor, " tokens"]
    length: Int[Tensor, " tokens"]
    """Length, in tokens, that decides the rotation: the prompt's, or index + 1 once generated."""

    @classmethod
    def packed(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> "Positions":
        """Positions of whole sequences that follow each other in one stream."""
        index = torch.cat([torch.arange(n, device=device) for n in lengths])
        length = torch.cat([torch.full((n,), n, device=device) for n in lengths])
        return cls(index, length)


@dataclass(frozen=True)
class Rotation:
    """Cosines and sines of the angles by which each pair of head dimensions is turned."""

    cos: Float[Tensor, "tokens half"]
    sin: Float[Tensor, "tokens half"]
    scale: float = 1.0
    """What both have been multiplied with."""

    def __call__(
        self, x: Float[Tensor, "tokens heads head_dim"]
    ) -> Float[Tensor, "tokens heads head_dim"]:
        """Turn queries or keys; dimension i is paired with i + head_dim / 2 (2104.09864)."""
        fused = devices.fused_kernel("npu_rotary_mul", x.device)
        if fused is not None and self.scale == 1:  # it takes nothing outside -1..1
            return fused(x.float()[None], *self._tables)[0].to(x.dtype)
        first, second = x.float().chunk(2, dim=-1)
        cos, sin = self.cos[:, None], self.sin[:, None]
        turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
        return turned.to(x.dtype)

    @cached_property
    def _tables(self) -> list[Float[Tensor, "1 tokens 1 head_dim"]]:
        """Cosines and sines as the kernel reads them: for both dimensions of a pair."""
        return [repeat(table, "t d -> 1 t 1 (two d)", two=2) for table in (self.cos, self.sin)]


@dataclass(frozen=True)
class _Frequencies:
    """By how much each pair of head dimensions turns from one position to the next."""

    exponents: Float[Tensor, " half"]
    plain: Float[Tensor, " half"]


class Rotary:
    """Angles for every token of a stream, in fp32, computed anew for each step.

    The factors of long rope are kept, once a device, so that a step copies nothing from the host;
    frequencies where `keep` was asked to.
    """

    def __init__(self, config: RotaryConfig, head_dim: int):
        self.config, self.head_dim = config, head_dim
        self._kept: dict[torch.device, _Frequencies] = {}
        self._factors: dict[torch.device, Float[Tensor, "2 half"]] = {}

    def __call__(self, positions: Positions) -> Rotation:
        """How each token's queries and keys are turned."""
        config, device = self.config, positions.index.device
        kept = self._kept.get(device) or self._frequencies(device)
        frequencies = kept.plain
        if config.kind == "dynamic":
            frequencies = self._dynamic(kept.exponents, frequencies, positions.length)
        elif config.kind == "long":
            frequencies = frequencies / self._long_factors(positions.length)
        angles = positions.index[:, None].float() * frequencies
        cos, sin = angles.cos(), angles.sin()
        if config.scale != 1:
            cos, sin = cos * config.scale, sin * config.scale
        return Rotation(cos, sin, config.scale)

    def keep(self, device: torch.device) -> None:
        """Keeps what no step changes: a step of one token there is made of small operations."""
        self._kept[device] = self._frequencies(device)

    def _frequencies(self, device: torch.device) -> _Frequencies:
        exponents = torch.arange(0, self.head_dim, 2, device=device).float() / self.head_dim
        return _Frequencies(exponents, 1.0 / self.config.theta**exponents)

    def _dynamic(
        self,
        exponents: Float[Tensor, " half"],
        plain: Float[Tensor, " half"],
        length: Int[Tensor, " tokens"],
    ) -> Float[Tensor, "tokens half"]:
        """Frequencies with a base that grows beyond the limit (`modeling_internlm2.py`)."""
        config = self.config
        excess = (length.float() / config.limit).clamp(min=1)
        stretch = config.factor * excess - (config.factor - 1)
        base = config.theta * stretch ** (self.head_dim / (self.head_dim - 2))
        stretched = 1.0 / base[:, None] ** exponents
        return torch.where((length > config.limit)[:, None], stretched, plain)

    def _long_factors(self, length: Int[Tensor, " tokens"]) -> Float[Tensor, "tokens half"]:
        """Per-frequency divisors, short or long by the length (`modeling_phi3.py`, su rope)."""
        if length.device not in self._factors:
            both = (self.config.short_factors, self.config.long_factors)
            self._factors[length.device] = devices.upload(torch.tensor(both), length.device)
        short, long = self._factors[length.device]
        return torch.where((length > self.config.limit)[:, None], long, short)
