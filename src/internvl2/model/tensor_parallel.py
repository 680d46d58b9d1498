"""A model divided over several processes, each of which computes its share of every layer.

Heads and the width of the MLP are divided (1909.08053), so that a layer has two sums over all
processes, and the head by tokens of the vocabulary. Embedding, norms and vision tower are whole in
each process; of the tiles that are encoded together, each process encodes its share.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int, Integer, UInt8
from torch import Tensor, nn

from internvl2.config import DecoderConfig, InternVLConfig
from internvl2.model.decoder import DecoderLayer
from internvl2.model.int4 import Groups
from internvl2.model.internvl import InternVL


@runtime_checkable
class Peers(Protocol):
    """What the processes of a divided model do together, each at the same place."""

    def sum(self, x: Float[Tensor, "tokens dim"]) -> Float[Tensor, "tokens dim"]:
        """The sum of what all have, with the same bits in each; `x` may be overwritten."""
        ...

    def gather(self, x: Float[Tensor, "first *rest"]) -> Float[Tensor, "everyone *rest"]:
        """What all have, of one shape, one below the other."""
        ...

    def adopt(self, x: Integer[Tensor, "*shape"]) -> Integer[Tensor, "*shape"]:
        """What the first process has, in place of what is in `x`."""
        ...


@dataclass(frozen=True, slots=True)
class Cut:
    """A run of rows (axis 0) or columns (axis 1) of a tensor."""

    axis: int
    start: int
    stop: int

    def of(self, tensor: Tensor) -> Tensor:
        """The run, as a view."""
        return tensor.narrow(self.axis, self.start, self.stop - self.start)


@dataclass(frozen=True, slots=True)
class Share:
    """What one of several processes holds of a model."""

    rank: int
    size: int

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"there is no share {self.rank} of {self.size}")

    def decoder(self, config: DecoderConfig) -> DecoderConfig:
        """The heads and the width that one process computes; ValueError where they do not divide.

        Key-value heads that are fewer than the processes are held by several of them.
        """
        if not _divides(config, self.size):
            fitting = [n for n in range(2, config.num_heads + 1) if _divides(config, n)]
            raise ValueError(
                f"a decoder with {config.num_heads} heads, {config.num_kv_heads} key-value heads "
                f"and an MLP of {config.intermediate_size} cannot be divided over {self.size} "
                f"processes; tensor_parallel can be {', '.join(map(str, [1, *fitting]))}"
            )
        return replace(
            config,
            num_heads=config.num_heads // self.size,
            num_kv_heads=max(1, config.num_kv_heads // self.size),
            intermediate_size=config.intermediate_size // self.size,
        )

    def config(self, config: InternVLConfig) -> InternVLConfig:
        """A config with the decoder of one process."""
        return replace(config, decoder=self.decoder(config.decoder))

    def tokens(self, vocab_size: int) -> range:
        """The tokens whose logits this process computes; the last ones may have fewer, or none."""
        most = -(-vocab_size // self.size)
        return range(min(self.rank * most, vocab_size), min((self.rank + 1) * most, vocab_size))

    def cut(self, name: str, config: DecoderConfig) -> Cut | None:
        """The run of a parameter that this process holds; None where it holds all of it."""
        place, _, kind = name.rpartition(".")
        if name == "decoder.head.weight":
            rows = self.tokens(config.vocab_size)
            return Cut(0, rows.start, rows.stop)
        if not place.startswith("decoder.layers."):
            return None
        own = self.decoder(config)
        queries, width = own.num_heads * own.head_dim, own.intermediate_size
        sizes = {"attention.q": (0, queries), "mlp.gate": (0, width), "mlp.up": (0, width)}
        sizes |= {"attention.o": (1, queries), "mlp.down": (1, width)}
        part = ".".join(place.split(".")[-2:])
        if part in ("attention.k", "attention.v"):
            first = self.rank * config.num_kv_heads // self.size
            return Cut(0, first * own.head_dim, (first + own.num_kv_heads) * own.head_dim)
        if part not in sizes:
            return None
        axis, size = sizes[part]
        assert axis == 0 or kind == "weight", name
        return Cut(axis, self.rank * size, (self.rank + 1) * size)

    def parts(
        self, weights: Iterable[tuple[str, Tensor]], config: DecoderConfig
    ) -> Iterator[tuple[str, Tensor]]:
        """Of whole weights by name, what this process holds of each: views."""
        for name, tensor in weights:
            cut = self.cut(name, config)
            yield name, tensor if cut is None else cut.of(tensor)

    def groups(self, name: str, whole: Groups, config: DecoderConfig) -> Groups:
        """The same of a matrix in four bits."""
        cut = self.cut(name, config)
        if cut is None:
            return whole
        coarse = cut
        if cut.axis == 1:
            inputs = whole.codes.shape[1] // whole.scales.shape[1]
            coarse = Cut(1, cut.start // inputs, cut.stop // inputs)
        return Groups(cut.of(whole.codes), coarse.of(whole.scales), coarse.of(whole.offsets))


class DividedInternVL(InternVL):
    """The share of a model that one process holds; it computes once it has been `join`ed.

    `config` is the whole model's, `decoder.config` has this process's heads and width.
    """

    def __init__(self, config: InternVLConfig, share: Share):
        super().__init__(share.config(config))
        self.config = config
        self.share = share
        vocab = config.decoder.vocab_size
        own = len(share.tokens(vocab))
        self.decoder.head = nn.Linear(config.decoder.hidden_size, own, bias=False)
        self._peers: Peers | None = None

    @property
    def peers(self) -> Peers:
        """The other processes."""
        assert self._peers is not None, "a divided model was asked before it joined its peers"
        return self._peers

    def join(self, peers: Peers) -> "DividedInternVL":
        """Has each layer's two sums made with the other processes."""
        self._peers = peers

        def summed(module: nn.Module, given: tuple[object, ...], own: Tensor) -> Tensor:
            return peers.sum(own)

        for layer in self.decoder.layers:
            assert isinstance(layer, DecoderLayer)
            layer.attention.register_forward_hook(summed)
            layer.mlp.register_forward_hook(summed)
        return self

    def embed(
        self,
        tokens: Int[Tensor, " tokens"],
        visual: Float[Tensor, "visual dim"] | None = None,
        rows: Int[Tensor, " places"] | None = None,
    ) -> Float[Tensor, "tokens dim"]:
        """As `InternVL.embed`, of the first process's tokens: its choices alone count."""
        return super().embed(self.peers.adopt(tokens), visual, rows)

    def encode_tiles(
        self, tiles: UInt8[Tensor, "tiles size size 3"]
    ) -> Float[Tensor, "tiles visual dim"]:
        """Visual tokens of the first process's tiles, of which each process encodes a share."""
        tiles = self.peers.adopt(tiles)
        rows = torch.arange(len(tiles) + -len(tiles) % self.share.size, device=tiles.device)
        own = rows.clamp(max=len(tiles) - 1).chunk(self.share.size)[self.share.rank]
        return self.peers.gather(super().encode_tiles(tiles[own]))[: len(tiles)]

    def logits(self, hidden: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows vocab"]:
        """Scores of every token of the vocabulary, in fp32, alike in all processes."""
        vocab = self.config.decoder.vocab_size
        most = -(-vocab // self.share.size)
        own = self.decoder.scores(hidden)
        everyone = self.peers.gather(F.pad(own, (0, most - own.shape[1])))
        pattern = "(ranks rows) most -> rows (ranks most)"
        return rearrange(everyone, pattern, ranks=self.share.size)[:, :vocab].float()


def _divides(config: DecoderConfig, size: int) -> bool:
    """Whether the heads and the width of a decoder can be divided by so many."""
    kv_heads = config.num_kv_heads
    fits_kv = kv_heads % size == 0 or size % kv_heads == 0
    return fits_kv and config.num_heads % size == 0 and config.intermediate_size % size == 0
