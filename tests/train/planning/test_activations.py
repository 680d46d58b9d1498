"""What layers keep, counted by formula and seen through autograd's own hooks."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from internvl2.config import DecoderConfig, VisionConfig
from internvl2.family import find
from internvl2.model.decoder import DecoderLayer
from internvl2.model.lora import LoraLinear, LoraSettings
from internvl2.model.quantize import linear_maps
from internvl2.model.rotary import Positions, Rotary
from internvl2.model.vision import VisionLayer
from internvl2.train.planning.activations import (
    Execution,
    Learning,
    kept_by_decoder_layer,
    kept_by_vision_layer,
)

TOKENS = 96
SMALL = {"hidden_size": 128, "intermediate_size": 384}
LEARNINGS = {
    "weights": Learning(),
    "nothing": Learning(weights=False),
    "adapters": Learning(weights=False, rank=8),
    "dropout": Learning(weights=False, rank=8, dropout=True),
}


class FlashAttention:
    """Keeps q, k, v, the result and a number per head and token, as the kernels of GPUs do."""

    def __call__(
        self,
        layer: int,
        q: Float[Tensor, "tokens heads dim"],
        k: Float[Tensor, "tokens kv dim"],
        v: Float[Tensor, "tokens kv dim"],
    ) -> Float[Tensor, "tokens heads dim"]:
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        attend = nn.functional.scaled_dot_product_attention
        out = attend(q, k, v, is_causal=True, enable_gqa=True)
        return out[0].transpose(0, 1)


def decoder_config(name: str) -> DecoderConfig:
    """The kind of a release, with few numbers; grouped heads, wider than the stream in Qwen3."""
    config = find(name).config.decoder
    return replace(config, **SMALL, num_heads=config.num_heads // 2, head_dim=16, num_kv_heads=2)


def vision_config(name: str) -> VisionConfig:
    """The kind of a release's tower, with few numbers."""
    return replace(find(name).config.vision, **SMALL, num_heads=4)


def seen(layer: nn.Module, call: Callable[[], Any], shared: tuple[Tensor, ...] = ()) -> int:
    """Bytes that autograd keeps in a call, weights and what is `shared` left out."""
    kept: dict[int, Tensor] = {}
    owned = (*layer.parameters(), *layer.buffers(), *shared)
    known = {tensor.untyped_storage().data_ptr() for tensor in owned}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        call()
    sizes = (t.untyped_storage().nbytes() for key, t in kept.items() if key not in known)
    return sum(sizes)


def prepared(layer: nn.Module, learning: Learning) -> nn.Module:
    """In bf16, with what is learned."""
    layer = layer.to(torch.bfloat16).requires_grad_(learning.weights)
    settings = LoraSettings(max(learning.rank, 1), 8.0, 0.1 if learning.dropout else 0.0)
    for holder, name in linear_maps(layer) if learning.rank else ():
        setattr(holder, name, LoraLinear(getattr(holder, name), settings))
    return layer.train()


def seen_in_decoder(config: DecoderConfig, learning: Learning, run: Callable[..., Any]) -> float:
    layer = prepared(DecoderLayer(config, 0), learning)
    x = torch.randn(TOKENS, config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    rotate = Rotary(config.rotary, config.head_dim)(Positions.packed([TOKENS]))
    forward = run(layer.forward)
    shared = (rotate.cos, rotate.sin)
    return seen(layer, lambda: forward(x, rotate, FlashAttention()), shared) / TOKENS


def seen_in_vision(config: VisionConfig, learning: Learning, run: Callable[..., Any]) -> float:
    layer = prepared(VisionLayer(config, 0.0), learning)
    x = torch.randn(2, TOKENS, config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    forward = run(layer.forward)
    return seen(layer, lambda: forward(x)) / (2 * TOKENS)


def plain(forward: Callable[..., Any]) -> Callable[..., Any]:
    return forward


def partitioned(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Divided into forward and backward as a compiled layer is, without compiling kernels."""
    torch.compiler.reset()
    return torch.compile(forward, backend="aot_eager_decomp_partition", dynamic=False)


@pytest.mark.parametrize("learning", LEARNINGS)
@pytest.mark.parametrize("member", ["internvl2-2b", "internvl3_5-1b"])
def test_a_decoder_layer_keeps_what_is_counted(member: str, learning: str):
    config, what = decoder_config(member), LEARNINGS[learning]
    counted = kept_by_decoder_layer(config, what, Execution(compiled=False, fused=False))
    assert seen_in_decoder(config, what, plain) == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize("learning", ["weights", "adapters", "dropout"])
def test_a_vision_layer_keeps_what_is_counted(learning: str):
    config, what = vision_config("internvl2-2b"), LEARNINGS[learning]
    counted = kept_by_vision_layer(config, what, Execution(compiled=False, fused=False))
    assert seen_in_vision(config, what, plain) == pytest.approx(counted, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("member", "learning"),
    [("internvl2-2b", learning) for learning in LEARNINGS] + [("internvl3_5-1b", "weights")],
)
def test_a_compiled_decoder_layer_keeps_what_is_counted(member: str, learning: str):
    config, what = decoder_config(member), LEARNINGS[learning]
    counted = kept_by_decoder_layer(config, what, Execution(compiled=True))
    assert seen_in_decoder(config, what, partitioned) == pytest.approx(counted, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("member", "learning"),
    [("internvl2-2b", "weights"), ("internvl2-2b", "dropout"), ("internvl2-26b", "weights")],
)
def test_a_compiled_vision_layer_keeps_what_is_counted(member: str, learning: str):
    config, what = vision_config(member), LEARNINGS[learning]
    counted = kept_by_vision_layer(config, what, Execution(compiled=True))
    assert seen_in_vision(config, what, partitioned) == pytest.approx(counted, rel=0.02)
