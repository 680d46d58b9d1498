"""Which samples a pack holds: filled evenly with tokens, tiles and arithmetic, or in their order.

A pack is begun with the sample that waits longest, so that nobody waits for ever, and filled from a
window of those after it with whatever lies closest to the room that is left (the dot product of
demand and room, both as shares of a whole pack), the first of those that are about as close. What a
pack holds depends on the samples' sizes and order alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64

from internvl2.config import InternVLConfig

Fill = Literal["evenly", "in_order"]
"""How a pack is filled: with a plan over the sizes of samples, which are measured first, or with
samples in their order as each is made, from a window of the pack's own."""

MOST_REFUSED = 3
"""Samples without room after which a pack that takes them in order is full."""
ALIKE = 0.95
"""Share of the closest that counts as close: among such samples the order decides. If it were 1,
the last packs of a small data set would hold nothing but its shorter kind of samples."""
UNEVENNESS = 1.1
"""How much more arithmetic than the mean pack a pack may hold."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a pack can hold."""

    tokens: int
    tiles: int
    window: int = 64
    """How many samples are looked at to fill a pack."""

    def __post_init__(self) -> None:
        for name, least in (("tokens", 1), ("tiles", 0), ("window", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} of a pack is {getattr(self, name)}; least is {least}")


@dataclass(frozen=True, slots=True)
class Costs:
    """Multiplications that a sample takes in a forward pass."""

    token: float
    square: float
    """Per token and token that it sees: attention."""
    tile: float

    @classmethod
    def of(cls, config: InternVLConfig) -> "Costs":
        """The costs of a model of this shape."""
        d, v = config.decoder, config.vision
        heads = (2 * d.num_heads + 2 * d.num_kv_heads) * d.head_dim
        patches = (config.tile_size // v.patch_size) ** 2 + 1
        layer = v.hidden_size * (4 * v.hidden_size + 2 * v.intermediate_size)
        return cls(
            token=float(d.num_layers * d.hidden_size * (heads + 3 * d.intermediate_size)),
            square=float(d.num_layers * d.num_heads * d.head_dim),
            tile=float(v.num_layers * patches * (layer + 2 * patches * v.hidden_size)),
        )

    def __call__(self, tokens: int, tiles: int) -> float:
        """The cost of one sample."""
        return self.token * tokens + self.square * tokens**2 + self.tile * tiles


@dataclass(frozen=True, slots=True)
class Waiting:
    """A sample that no pack has taken yet."""

    sample: int
    tokens: int
    tiles: int


@dataclass(frozen=True, slots=True)
class PackPlan:
    """Which samples a pack holds, in their order."""

    samples: tuple[int, ...]
    """Where packs are filled in order, those among which it may choose."""
    tokens: int
    """Those of its samples, or the most that it can have."""
    tiles: int


class Planner:
    """Takes samples in their order and gives packs; `waiting` is all that it remembers."""

    def __init__(self, limits: Limits, costs: Costs, waiting: Iterable[Waiting] = ()) -> None:
        self.limits, self.costs = limits, costs
        self._waiting = list(waiting)

    @property
    def waiting(self) -> tuple[Waiting, ...]:
        """Samples that no pack has taken yet, oldest first."""
        return tuple(self._waiting)

    def add(self, sample: Waiting) -> None:
        """Let a sample wait."""
        if sample.tokens > self.limits.tokens or sample.tiles > self.limits.tiles:
            raise ValueError(
                f"a sample of {sample.tokens} tokens and {sample.tiles} tiles is too large for a "
                f"pack of {self.limits.tokens} and {self.limits.tiles}"
            )
        self._waiting.append(sample)

    @property
    def has_choice(self) -> bool:
        """Whether enough wait to fill a pack well: a window of samples, and two packs' worth."""
        if len(self._waiting) < self.limits.window:
            return False
        tokens = sum(sample.tokens for sample in self._waiting)
        tiles = sum(sample.tiles for sample in self._waiting)
        return tokens >= 2 * self.limits.tokens or tiles >= 2 * max(self.limits.tiles, 1)

    def next_pack(self) -> PackPlan:
        """The pack that begins with the sample that waits longest."""
        waiting = self._waiting
        demand = np.array(
            [[s.tokens, s.tiles, self.costs(s.tokens, s.tiles)] for s in waiting], np.float64
        )
        whole = np.array([self.limits.tokens, max(self.limits.tiles, 1), self._fair_cost(demand)])
        demand = demand / whole
        free = np.ones(len(waiting), bool)
        room, chosen = np.ones(3), 0
        while chosen >= 0:
            free[chosen] = False
            room = room - demand[chosen]
            fits = free & (demand <= room + 1e-9).all(axis=1)
            closeness = np.where(fits, demand @ np.maximum(room, 0), -1.0)
            is_close = closeness >= ALIKE * closeness.max()
            chosen = int(is_close.argmax()) if fits.any() else -1
        taken = [sample for sample, is_free in zip(waiting, free, strict=True) if not is_free]
        self._waiting = [s for s, is_free in zip(waiting, free, strict=True) if is_free]
        return PackPlan(
            tuple(sample.sample for sample in taken),
            sum(sample.tokens for sample in taken),
            sum(sample.tiles for sample in taken),
        )

    def _fair_cost(self, demand: Float64[np.ndarray, "samples 3"]) -> float:
        """What a pack may cost: a little more than the mean of the packs that all would fill."""
        tokens, tiles, cost = demand.sum(axis=0)
        packs = max(tokens / self.limits.tokens, tiles / max(self.limits.tiles, 1))
        return UNEVENNESS * float(cost) / packs


def plan_packs(sizes: Iterable[Waiting], limits: Limits, costs: Costs) -> list[PackPlan]:
    """Packs of a whole list of samples."""
    planner, packs = Planner(limits, costs), []
    for size in sizes:
        planner.add(size)
        while planner.has_choice:
            packs.append(planner.next_pack())
    while planner.waiting:
        packs.append(planner.next_pack())
    return packs


@dataclass(slots=True)
class Room:
    """What is free in a pack that takes samples in their order."""

    tokens: int
    tiles: int
    refused: int = 0

    @property
    def is_closed(self) -> bool:
        """Whether so many samples had no room that the pack counts as full."""
        return self.refused == MOST_REFUSED

    def take(self, tokens: int, tiles: int) -> bool:
        """Whether there was room for a sample, which then is taken."""
        if self.is_closed or tokens > self.tokens or tiles > self.tiles:
            self.refused = min(self.refused + 1, MOST_REFUSED)
            return False
        self.tokens, self.tiles = self.tokens - tokens, self.tiles - tiles
        return True


def plan_in_order(sizes: Sequence[Waiting], limits: Limits) -> list[PackPlan]:
    """Packs of a whole list of samples, each with a window of its own, the rest left out."""
    packs = []
    for start in range(0, len(sizes), limits.window):
        room = Room(limits.tokens, limits.tiles)
        window = sizes[start : start + limits.window]
        taken = tuple(size.sample for size in window if room.take(size.tokens, size.tiles))
        packs.append(PackPlan(taken, limits.tokens - room.tokens, limits.tiles - room.tiles))
    return packs
