"""One causal decoder for InternLM2, Qwen2, Qwen3, Llama and Phi-3.

They differ in biases, per-head norms, head size and rotary scaling, all fields of the config; how
their files interleave or fuse weights is a matter of storage (`checkpoint.layouts`).
"""

from collections.abc import Callable, Iterator

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from internvl2.config import DecoderConfig
from internvl2.model.attention import Attention, PagedAttention
from internvl2.model.initial import normal
from internvl2.model.joined import JoinedLinears, row_matrix
from internvl2.model.kernels import PLAIN, FusedKernels, RMSNorm, gated, gated_halves
from internvl2.model.rotary import Positions, Rotary, Rotation


class Decoder(nn.Module):
    """Embedding, layers and head of the language model, over one flat stream of tokens."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config, self.kernels = config, PLAIN
        self.rotary = Rotary(config.rotary, config.head_dim)
        rows, row = config.vocab_size, config.hidden_size
        self.embedding = nn.Embedding(rows, row, _weight=normal(rows, row, deviation=1.0))
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(
        self, x: Float[Tensor, "tokens dim"], positions: Positions, attend: Attention
    ) -> Float[Tensor, "tokens dim"]:
        """Hidden states behind the last norm; `attend` says who sees whom."""
        rotate = self.rotary(positions)
        if self.kernels is not PLAIN:
            attend = self.kernels.within(attend)
            if len(x) == 1 and self.kernels.row is not None and isinstance(attend, PagedAttention):
                return self._one_row(x, rotate, attend)
            return self._fused(x, rotate, attend)
        for layer in self.layers:
            x = layer(x, rotate, attend)
        return self.norm(x)

    def scores(self, hidden: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows vocab"]:
        """What the head gives for each token of the vocabulary."""
        if len(hidden) == 1 and self.kernels.head is not None:
            return self.kernels.head(hidden, row_matrix(self.head))
        if len(hidden) > 1 and self.kernels.scores is not None:
            return self.kernels.scores(hidden, self.head.weight)
        return self.head(hidden)

    def use(self, kernels: FusedKernels) -> None:
        """From now on computes with these kernels, which have no gradients."""
        self.kernels = kernels
        for layer in self._each_layer():
            layer.kernels = layer.attention.kernels = layer.mlp.kernels = kernels

    def _fused(
        self, x: Float[Tensor, "tokens dim"], rotate: Rotation, attend: Attention
    ) -> Float[Tensor, "tokens dim"]:
        """The same layers, cut so that every norm takes the sum before it along."""
        layers = list(self._each_layer())
        normed = layers[0].attention_norm(x)
        following = [*(layer.attention_norm for layer in layers[1:]), self.norm]
        for layer, norm in zip(layers, following, strict=True):
            x, normed = layer.fused(x, normed, rotate, attend, norm)
        return normed

    def _one_row(
        self, x: Float[Tensor, "1 dim"], rotate: Rotation, attend: PagedAttention
    ) -> Float[Tensor, "1 dim"]:
        """The same for a single token: norms and gates are part of the products."""
        added = torch.zeros_like(x)
        for layer in self._each_layer():
            x, added = layer.one_row(x, added, rotate, attend)
        return self.norm.of_sum(x, added, self.kernels)[1]

    def _each_layer(self) -> "Iterator[DecoderLayer]":
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            yield layer


class DecoderLayer(nn.Module):
    """Attention and gated MLP, each behind an RMS norm."""

    def __init__(self, config: DecoderConfig, index: int):
        super().__init__()
        self.kernels = PLAIN
        self.attention_norm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.attention = DecoderAttention(config, index)
        self.mlp_norm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = GatedMLP(config)

    def forward(
        self, x: Float[Tensor, "tokens dim"], rotate: Rotation, attend: Attention
    ) -> Float[Tensor, "tokens dim"]:
        """One layer of the decoder."""
        x = x + self.attention(self.attention_norm(x), rotate, attend)
        return x + self.mlp(self.mlp_norm(x))

    def fused(
        self,
        x: Float[Tensor, "tokens dim"],
        normed: Float[Tensor, "tokens dim"],
        rotate: Rotation,
        attend: Attention,
        next_norm: RMSNorm,
    ) -> tuple[Float[Tensor, "tokens dim"], Float[Tensor, "tokens dim"]]:
        """The layer behind its own first norm, up to the norm of whatever reads it."""
        out = self.attention(normed, rotate, attend)
        x, normed = self.mlp_norm.of_sum(x, out, self.kernels)
        return next_norm.of_sum(x, self.mlp(normed), self.kernels)

    def one_row(
        self,
        x: Float[Tensor, "1 dim"],
        added: Float[Tensor, "1 dim"],
        rotate: Rotation,
        attend: PagedAttention,
    ) -> tuple[Float[Tensor, "1 dim"], Float[Tensor, "1 dim"]]:
        """The layer for a stream of one token and what is yet to be added to it: both of them."""
        row, norms = self.kernels.row, (self.attention_norm, self.mlp_norm)
        states, opening = self.attention.joined, self.mlp.joined
        assert row is not None
        assert states is not None
        assert opening is not None
        x, product = row.normed(x, added, norms[0].weight, norms[0].eps, states.matrix)
        out = self.attention.over_cache(product, rotate, attend)
        added = row.output(out, row_matrix(self.attention.o))
        x, inner = row.gated(x, added, norms[1].weight, norms[1].eps, opening.matrix)
        return x, row.down(inner, row_matrix(self.mlp.down))


class DecoderAttention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim, self.kernels = layer, config.head_dim, PLAIN
        self.joined: JoinedLinears | None = None
        width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q = nn.Linear(config.hidden_size, width, bias=config.qkv_bias)
        self.k = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.v = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.o = nn.Linear(width, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None

    def join(self, form: Callable[[nn.Linear], nn.Module]) -> None:
        """Joins the three maps that read the same states; see `joined`."""
        self.joined = JoinedLinears([self.q, self.k, self.v], form)
        del self.q, self.k, self.v

    def forward(
        self, x: Float[Tensor, "tokens dim"], rotate: Rotation, attend: Attention
    ) -> Float[Tensor, "tokens dim"]:
        """Project, norm per head where the model does, turn, attend, project back."""
        has_kernel = self.kernels.turn_and_store is not None
        if self.joined is not None and has_kernel and isinstance(attend, PagedAttention):
            return self.o(self.over_cache(self.joined(x), rotate, attend))
        states = (self.q(x), self.k(x), self.v(x)) if self.joined is None else self.joined.split(x)
        q, k, v = (rearrange(y, "t (h d) -> t h d", d=self.head_dim) for y in states)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        out = attend(self.layer, rotate(q), rotate(k), v)
        return self.o(rearrange(out, "t h d -> t (h d)"))

    @property
    def head_norms(self) -> tuple[tuple[Tensor, Tensor] | None, float]:
        """Weights of the norms of queries and of keys, where the model has them, and their eps."""
        if self.q_norm is None or self.k_norm is None or self.q_norm.eps is None:
            return None, 0.0
        return (self.q_norm.weight, self.k_norm.weight), self.q_norm.eps

    def over_cache(
        self, product: Float[Tensor, "tokens wide"], rotate: Rotation, attend: PagedAttention
    ) -> Float[Tensor, "tokens inner"]:
        """Attention by what the joined product gave, with one kernel between them."""
        assert self.kernels.turn_and_store is not None
        keys, values = attend.keys[self.layer], attend.values[self.layer]
        turned = self.kernels.turn_and_store(
            product, rotate.cos, rotate.sin, *self.head_norms, keys, values, attend.slots
        )
        kv_heads = keys.shape[2]
        heads = turned.shape[1] - kv_heads
        q, k = turned.split([heads, kv_heads], dim=1)
        v = rearrange(product, "t (h d) -> t h d", d=self.head_dim)[:, -kv_heads:]
        return rearrange(attend.over_cache(self.layer, q, k, v), "t h d -> t (h d)")


class GatedMLP(nn.Module):
    """SwiGLU (2002.05202)."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.joined: JoinedLinears | None = None
        self.kernels = PLAIN

    def join(self, form: Callable[[nn.Linear], nn.Module]) -> None:
        """Joins the two maps that read the same states; see `joined`."""
        self.joined = JoinedLinears([self.gate, self.up], form)
        del self.gate, self.up

    def forward(self, x: Float[Tensor, "tokens dim"]) -> Float[Tensor, "tokens dim"]:
        """Transform each token by itself."""
        if self.joined is None:
            return self.down(gated(self.gate(x), self.up(x)))
        return self.down(gated_halves(self.joined(x), self.kernels))
