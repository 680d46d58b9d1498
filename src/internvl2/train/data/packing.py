"""Samples become packs: streams of one length, with their tiles, labels and weights.

Packs are made of plain arrays, without torch; `TrainBatch` imports it when it is made.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from internvl2.processing.prompt import Prompt
from internvl2.train.data.known_tiles import KnownFeatures, KnownTiles, find_known
from internvl2.train.data.tile_store import TileStore, tile_key

if TYPE_CHECKING:
    import torch

    from internvl2.model.attention import PackedAttention
    from internvl2.model.rotary import Positions

LossWeighting = Literal["token", "sample", "square"]

IGNORED = -100
"""Label of a position from which nothing is learned."""
PAD_TOKEN = 0
PADDING = 512
"""Tokens of padding that see each other: few, for attention costs the square of their number."""


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

    def tile_keys(self) -> tuple[bytes, ...]:
        """Hashes of the pixels of its pictures' tiles, in order."""
        if self.known is not None:
            return self.known.all_keys
        return tuple(map(tile_key, self.tiles[: self.num_tiles].cpu().numpy()))

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
