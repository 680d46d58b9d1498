"""One causal decoder for InternLM2, Qwen2, Qwen3, Llama and Phi-3.

They differ in biases, per-head norms, head size and rotary scaling, all fields of the config; how
their files interleave or fuse weights is a matter of storage (`checkpoint.layouts`).
"""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from internvl2.config import DecoderConfig
from internvl2.model.attention import Attention
from internvl2.model.initial import normal
from internvl2.model.kernels import RMSNorm, gated
from internvl2.model.packed import JoinedLinears
from internvl2.model.rotary import Positions, Rotary, Rotation


class Decoder(nn.Module):
    """Embedding, layers and head of the language model, over one flat stream of tokens."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
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
        for layer in self.layers:
            x = layer(x, rotate, attend)
        return self.norm(x)


class DecoderLayer(nn.Module):
    """Attention and gated MLP, each behind an RMS norm."""

    def __init__(self, config: DecoderConfig, index: int):
        super().__init__()
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


class DecoderAttention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.joined: JoinedLinears | None = None
        width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q = nn.Linear(config.hidden_size, width, bias=config.qkv_bias)
        self.k = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.v = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.o = nn.Linear(width, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None

    def pack(self) -> None:
        """Joins and packs the three maps that read the same states; see `packed`."""
        self.joined = JoinedLinears([self.q, self.k, self.v])
        del self.q, self.k, self.v

    def forward(
        self, x: Float[Tensor, "tokens dim"], rotate: Rotation, attend: Attention
    ) -> Float[Tensor, "tokens dim"]:
        """Project, norm per head where the model does, turn, attend, project back."""
        states = (self.q(x), self.k(x), self.v(x)) if self.joined is None else self.joined(x)
        q, k, v = (rearrange(y, "t (h d) -> t h d", d=self.head_dim) for y in states)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        out = attend(self.layer, rotate(q), rotate(k), v)
        return self.o(rearrange(out, "t h d -> t (h d)"))


class GatedMLP(nn.Module):
    """SwiGLU (2002.05202)."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.joined: JoinedLinears | None = None

    def pack(self) -> None:
        """Joins and packs the two maps that read the same states; see `packed`."""
        self.joined = JoinedLinears([self.gate, self.up])
        del self.gate, self.up

    def forward(self, x: Float[Tensor, "tokens dim"]) -> Float[Tensor, "tokens dim"]:
        """Transform each token by itself."""
        gate, up = (self.gate(x), self.up(x)) if self.joined is None else self.joined(x)
        return self.down(gated(gate, up))
