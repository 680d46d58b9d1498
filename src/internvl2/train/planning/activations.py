"""Bytes that a layer keeps of its forward pass for the backward pass, counted from its shapes.

A linear map keeps its input where its weight or its adapter is trained; norms, gates and attention
keep what their own gradients need. A compiled layer computes products, norms and some masks
of dropout anew and keeps less. The counts are those that autograd is seen to keep
(tests/train/planning).
"""

from dataclasses import dataclass

from internvl2.config import DecoderConfig, VisionConfig


@dataclass(frozen=True, slots=True)
class Learning:
    """What of a layer is trained; nothing, where gradients only pass through."""

    weights: bool = True
    rank: int = 0
    """Of its adapters; 0 without any."""
    dropout: bool = False
    """Whether each adapter sees an input of its own, partly left out."""
    dora: bool = False


@dataclass(frozen=True, slots=True)
class Execution:
    """How layers run."""

    compiled: bool
    fused: bool = True
    """Whether RMS norms and dropout that are not compiled are kernels, as on CUDA; if they are not,
    norms keep fp32 numbers, and dropout a number of the activations' type for a byte."""
    number: int = 2
    """Bytes of a weight and of an activation."""

    @property
    def mask(self) -> int:
        """Bytes that say of a number whether dropout left it out."""
        return 1 if self.compiled or self.fused else self.number


def kept_by_decoder_layer(config: DecoderConfig, learning: Learning, execution: Execution) -> int:
    """Bytes per token, the layer's input among them."""
    wide, inner = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    kept = 2 * wide + 2 * (q + kv) + (2 if execution.compiled else 3) * inner
    other = 4 * config.num_heads + 8
    if config.qk_norm:
        kept += q + kv
        other += 4 * (config.num_heads + config.num_kv_heads)
    if learning.rank and learning.dropout:
        kept += 5 * wide + q + inner  # of q k v gate up, of o, of down
        masks = 5 * wide + (0 if execution.compiled else q + inner)
        other += masks * execution.mask
    elif learning.rank or learning.weights:
        kept += 2 * wide + inner + (q if learning.rank and execution.compiled else 0)
    if learning.dora:
        kept += 2 * wide + q + kv + (0 if execution.compiled else kv + 2 * inner)
    kept += 7 * learning.rank
    if not execution.compiled and not execution.fused:
        other += _unfused(2 * wide + config.qk_norm * (q + kv), learning, execution)
    return execution.number * kept + other


def kept_by_vision_layer(config: VisionConfig, learning: Learning, execution: Execution) -> int:
    """Bytes per patch, the layer's input among them."""
    wide, inner = config.hidden_size, config.intermediate_size
    kept = 2 * inner + (9 if execution.compiled else 10) * wide
    other = 4 * config.num_heads + 8 + 8 * config.qk_norm
    if learning.rank:
        own = wide if learning.dropout else 2 * wide
        kept += 4 * learning.rank - (0 if execution.compiled else own)
        masks = 2 * wide if execution.compiled else inner + 3 * wide
        other += masks * execution.mask if learning.dropout else 0
    if learning.dora:
        kept += 5 * wide + inner
    if config.qk_norm:
        kept += 2 * wide
    if config.norm == "rms_norm" and not execution.compiled and not execution.fused:
        other += _unfused(2 * wide + config.qk_norm * 2 * wide, learning, execution)
    return execution.number * kept + other


def _unfused(inputs: int, learning: Learning, execution: Execution) -> int:
    """What fp32 norms keep instead of their inputs: a copy, and the quotient for their weight."""
    copies = 8 if learning.weights else 4
    return inputs * (copies - execution.number) if execution.number < 4 else inputs * (copies - 4)
