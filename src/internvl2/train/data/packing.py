"""Samples become packs: streams of one length, filled evenly with tokens, tiles and arithmetic.

A pack is begun with the sample that waits longest, so that nobody waits for ever, and filled from a
window of those after it with whatever lies closest to the room that is left (the dot product of
demand and room, both as shares of a whole pack). What a pack holds depends on the samples' sizes
and order alone. Planning needs no torch; `TrainBatch` imports it when it is made.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8

from internvl2.config import InternVLConfig
from internvl2.processing.prompt import Prompt
from internvl2.train.data.known_tiles import KnownFeatures, KnownTiles, find_known
from internvl2.train.data.tile_store import TileStore

if TYPE_CHECKING:
    import torch

    from internvl2.model.attention import PackedAttention
    from internvl2.model.rotary import Positions

LossWeighting = Literal["token", "sample", "square"]
Fill = Literal["evenly", "in_order"]
"""How a pack is filled: with a plan over the sizes of samples, which are measured first, or with
samples in their order as each is made, from a window of the pack's own."""

IGNORED = -100
"""Label of a position from which nothing is learned."""
PAD_TOKEN = 0
PADDING = 512
"""Tokens of padding that see each other: few, for attention costs the square of their number."""
MOST_REFUSED = 3
"""Samples without room after which a pack that takes them in order is full."""
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
            chosen = int(closeness.argmax()) if fits.any() else -1
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


def tile_buckets(most: int, count: int = 10) -> tuple[int, ...]:
    """Sizes to which the tiles of packs are padded, 0 among them, so that few graphs are made."""
    return tuple(sorted({0, *(-(-most * part // count) for part in range(1, count + 1))}))


def loss_weight(weighting: LossWeighting, learned: int) -> float:
    """What each learned token counts in a sample with so many of them (official `len2weight`)."""
    if not learned or weighting == "token":
        return 1.0
    return 1 / learned if weighting == "sample" else learned**-0.5


@dataclass(frozen=True)
class Sample:
    """A record as the model reads it, and where it stands."""

    prompt: Prompt
    where: str


@dataclass(frozen=True)
class Pack:
    """A pack as plain arrays, as a worker process makes it."""

    tokens: Int64[np.ndarray, " tokens"]
    labels: Int64[np.ndarray, " tokens"]
    weights: Float32[np.ndarray, " tokens"]
    visual_rows: Int64[np.ndarray, " visual"]
    lengths: tuple[int, ...]
    tiles: UInt8[np.ndarray, "tiles size size 3"]
    """Those that must be encoded."""
    num_tiles: int
    """Tiles of pictures, with those that are known."""
    where: tuple[str, ...]
    known: KnownTiles | None = None


def pack_samples(
    samples: Sequence[Sample], length: int, weighting: LossWeighting = "token"
) -> Pack:
    """Samples one after the other in a stream of `length`; the rest is sequences of their own."""
    lengths = tuple(len(sample.prompt.token_ids) for sample in samples)
    used = sum(lengths)
    if used > length:
        raise ValueError(f"samples of {used} tokens do not fit into a pack of {length}")
    tokens = np.full(length, PAD_TOKEN, np.int64)
    labels = np.full(length, IGNORED, np.int64)
    weights = np.zeros(length, np.float32)
    visual_rows = [np.zeros(0, np.int64)]
    start = 0
    for sample in samples:
        ids = np.array(sample.prompt.token_ids, np.int64)
        # A position learns the token after it, which must be one of its own sample.
        learned = np.array(sample.prompt.is_target[1:], bool)
        stop = start + len(ids)
        tokens[start:stop] = ids
        labels[start : stop - 1][learned] = ids[1:][learned]
        weights[start : stop - 1][learned] = loss_weight(weighting, int(learned.sum()))
        spans = sample.prompt.media
        visual_rows += [np.arange(start + span.start, start + span.stop) for span in spans]
        start = stop
    tiles = [sample.prompt.tiles for sample in samples if len(sample.prompt.tiles)]
    return Pack(
        tokens=tokens,
        labels=labels,
        weights=weights,
        visual_rows=np.concatenate(visual_rows),
        lengths=(*lengths, *_padding(length - used)),
        tiles=np.concatenate(tiles) if tiles else np.zeros((0, 0, 0, 3), np.uint8),
        num_tiles=sum(map(len, tiles)),
        where=tuple(sample.where for sample in samples),
    )


def _padding(tokens: int) -> list[int]:
    """Lengths of the sequences that so much padding is cut into."""
    whole, rest = divmod(tokens, PADDING)
    return [PADDING] * whole + ([rest] if rest else [])


def with_tile_bucket(pack: Pack, tile_size: int, bucket: int) -> Pack:
    """The pack with black tiles after its own, `bucket` of them in all."""
    own = len(pack.tiles)
    if bucket < own:
        raise ValueError(f"a pack of {own} tiles does not fit into {bucket}")
    if bucket == own and bucket:
        return pack
    tiles = np.zeros((bucket, tile_size, tile_size, 3), np.uint8)
    if own:
        tiles[:own] = pack.tiles
    return replace(pack, tiles=tiles)


def without_known_tiles(pack: Pack, store: TileStore, room: int) -> Pack:
    """The pack with the stored features of its tiles instead of those tiles themselves."""
    known = find_known(pack.tiles, store, room)
    return replace(pack, tiles=pack.tiles[known.missing], known=known)


@dataclass(frozen=True)
class TrainBatch:
    """A pack as the model reads it, on one device.

    Everything that a pass needs to know about the pack is made on the host beforehand, so that the
    device never waits for an answer.
    """

    tokens: "torch.Tensor"
    """Int64 [tokens]; the padding at the end is sequences of their own."""
    positions: "Positions"
    lengths: tuple[int, ...]
    """Tokens of each sequence, the padding last."""
    boundaries: "torch.Tensor"
    """Int32 [sequences + 1]: where each of them starts, then the length of the stream."""
    visual_rows: "torch.Tensor"
    """Int64 [visual]: the positions of visual tokens, in order."""
    tiles: "torch.Tensor"
    """UInt8 [tiles, size, size, 3]: those that must be encoded, padded to a bucket."""
    num_tiles: int
    """Tiles of pictures, the known ones among them; visual tokens of black ones have no place."""
    labels: "torch.Tensor"
    """Int64 [tokens]: what each position should say next; -100 where nothing is learned."""
    weights: "torch.Tensor"
    """Float32 [tokens]: what each position's loss counts; 0 where nothing is learned."""
    learned_rows: "torch.Tensor"
    """Int64 [learned]: the positions that learn."""
    weight_sum: float
    """Sum of the weights; a step's loss is divided by the sum over all of its packs."""
    num_samples: int
    num_tokens: int
    """Tokens of the samples, the padding not among them."""
    where: tuple[str, ...] = ()
    """File and line of each sample."""
    known: KnownFeatures | None = None
    """What of its pictures the feature cache has."""
    features: "torch.Tensor | None" = None
    """Float [tiles, visual, wide]: what the projector reads, where that is known beforehand."""

    @classmethod
    def of(cls, pack: Pack) -> "TrainBatch":
        """A pack on the CPU."""
        import torch

        from internvl2.model.rotary import Positions

        return cls(
            tokens=torch.from_numpy(pack.tokens),
            positions=Positions.packed(pack.lengths),
            lengths=pack.lengths,
            boundaries=torch.tensor([0, *accumulate(pack.lengths)], dtype=torch.int32),
            visual_rows=torch.from_numpy(pack.visual_rows),
            tiles=torch.from_numpy(pack.tiles),
            num_tiles=pack.num_tiles,
            labels=torch.from_numpy(pack.labels),
            weights=torch.from_numpy(pack.weights),
            learned_rows=torch.from_numpy((pack.labels != IGNORED).nonzero()[0]),
            weight_sum=float(pack.weights.sum(dtype=np.float64)),
            num_samples=len(pack.where),
            num_tokens=sum(pack.lengths[: len(pack.where)]),
            where=pack.where,
            known=pack.known and KnownFeatures.of(pack.known),
        )

    @property
    def num_encoded(self) -> int:
        """Tiles of pictures that go through the vision tower."""
        return self.num_tiles if self.known is None else len(self.known.keys)

    def to(self, device: "torch.device | str") -> "TrainBatch":
        """The batch on another device; from pinned memory the copies do not wait."""
        return self._moved(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> "TrainBatch":
        """The batch in memory from which an accelerator copies by itself."""
        return self._moved(lambda tensor: tensor.pin_memory())

    def used_by(self, stream: "torch.Stream") -> "TrainBatch":
        """The batch, whose memory is not given away before `stream` is done with it."""

        def held(tensor: "torch.Tensor") -> "torch.Tensor":
            tensor.record_stream(stream)
            return tensor

        return self._moved(held)

    def attention(self) -> "PackedAttention":
        """Attention that keeps the samples apart."""
        from internvl2.model.attention import PackedAttention

        return PackedAttention(self.lengths, self.boundaries, max(self.lengths))

    def _moved(self, move: "Callable[[torch.Tensor], torch.Tensor]") -> "TrainBatch":
        from internvl2.model.rotary import Positions

        return replace(
            self,
            tokens=move(self.tokens),
            positions=Positions(move(self.positions.index), move(self.positions.length)),
            boundaries=move(self.boundaries),
            visual_rows=move(self.visual_rows),
            tiles=move(self.tiles),
            labels=move(self.labels),
            weights=move(self.weights),
            learned_rows=move(self.learned_rows),
            known=self.known and self.known.moved(move),
        )
