"""The language model's section of a config.json, read and written.

OpenGVLab's `llm_config` and transformers' `text_config` are the same section: the configuration of
a causal language model of `transformers` (or of InternLM2, whose code was only ever remote).
"""

import math
from typing import Any

from internvl2.checkpoint.fields import Section
from internvl2.config import DecoderConfig, DecoderKind, RotaryConfig

ARCHITECTURES: dict[DecoderKind, str] = {
    "internlm2": "InternLM2ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "phi3": "Phi3ForCausalLM",
}

# What each configuration class assumes where the file says nothing: vocab_size, hidden_size,
# intermediate_size, num_hidden_layers, num_attention_heads, max_position_embeddings, rms_norm_eps.
_DEFAULTS: dict[DecoderKind, tuple[int, int, int, int, int, int, float]] = {
    "internlm2": (103168, 4096, 11008, 32, 32, 2048, 1e-6),
    "qwen2": (151936, 4096, 22016, 32, 32, 32768, 1e-6),
    "qwen3": (151936, 4096, 22016, 32, 32, 32768, 1e-6),
    "llama": (32000, 4096, 11008, 32, 32, 2048, 1e-6),
    "phi3": (32064, 3072, 8192, 32, 32, 4096, 1e-5),
}


def decoder_kind(section: Section) -> DecoderKind:
    """Which of the language models a section describes; any other is an error that says so."""
    listed = section.values.get("architectures")
    named = listed[0] if isinstance(listed, list) and listed else None
    model_type = section.values.get("model_type")
    for kind, architecture in ARCHITECTURES.items():
        if named == architecture or (named is None and model_type == kind):
            return kind
    what = named or model_type
    mixture = " (a mixture of experts)" if "moe" in str(what).lower() else ""
    raise ValueError(
        f"{section.place}: the language model {what!r}{mixture} is not supported; "
        f"supported: {', '.join(ARCHITECTURES.values())}"
    )


def read_decoder(section: Section) -> DecoderConfig:
    """The decoder that a section describes, its unsupported settings refused."""
    kind = decoder_kind(section)
    vocab, hidden, intermediate, layers, heads, positions, eps = _DEFAULTS[kind]
    _require_supported(section, kind)
    hidden = section.integer("hidden_size", hidden)
    heads = section.count("num_attention_heads", heads)
    if kind == "qwen3":
        head_dim = section.integer("head_dim", 128)
    else:
        head_dim = section.integer("head_dim", hidden // heads)
    max_positions = section.integer("max_position_embeddings", positions)
    num_layers = section.integer("num_hidden_layers", layers)
    _require_full_attention(section, kind, max_positions, num_layers)
    return DecoderConfig(
        kind=kind,
        vocab_size=section.integer("vocab_size", vocab),
        hidden_size=hidden,
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=section.integer("num_key_value_heads", _usual_kv_heads(section, kind, heads)),
        head_dim=head_dim,
        intermediate_size=section.integer("intermediate_size", intermediate),
        max_positions=max_positions,
        rotary=_read_rotary(section, max_positions),
        norm_eps=section.number("rms_norm_eps", eps),
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
    )


def _usual_kv_heads(section: Section, kind: DecoderKind, heads: int) -> int:
    """Qwen's configurations assume 32 where the file says nothing; null is as many as heads."""
    is_null = "num_key_value_heads" in section.values
    return 32 if kind in ("qwen2", "qwen3") and not is_null else heads


def write_decoder(config: DecoderConfig, kind: DecoderKind) -> dict[str, Any]:
    """The section that describes a decoder as a language model of `kind`."""
    fields: dict[str, Any] = {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rotary.theta,
        "rope_scaling": _rope_scaling(config.rotary),
        "tie_word_embeddings": False,
        "use_cache": True,
        "attention_dropout": 0.0,
    }
    if kind == "internlm2":
        fields |= {"bias": False, "attn_implementation": "eager"}
    if kind in ("llama", "qwen3"):
        fields |= {"attention_bias": False}
    if kind in ("qwen2", "qwen3"):
        fields |= {"use_sliding_window": False, "sliding_window": None}
    if kind == "phi3":
        fields |= {"sliding_window": None, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
        original = config.rotary.limit if config.rotary.kind == "long" else config.max_positions
        fields |= {"original_max_position_embeddings": original}
    return fields


def _require_supported(section: Section, kind: DecoderKind) -> None:
    section.require("hidden_act", "silu", default="silu")
    section.require("partial_rotary_factor", 1, None)
    section.require("mlp_bias", False, None)
    section.require("pretraining_tp", 1, None)
    section.require("moe_config", None, {})
    if kind == "internlm2":
        section.require("bias", False, default=True)
    elif kind != "qwen2":
        section.require("attention_bias", False, None)


def _require_full_attention(
    section: Section, kind: DecoderKind, max_positions: int, num_layers: int
) -> None:
    """A window that no sequence outgrows is inert; any other would change the result."""
    if section.values.get("sliding_window") is None or kind in ("internlm2", "llama"):
        return
    window = section.integer("sliding_window")
    if window >= max_positions:
        return
    if kind in ("qwen2", "qwen3"):
        if not section.flag("use_sliding_window", False):
            return
        if section.integer("max_window_layers", 28) >= num_layers:
            return
    raise ValueError(
        f"{section.place}: sliding_window {window} is below max_position_embeddings "
        f"{max_positions}; attention with a sliding window is not supported"
    )


def _read_rotary(section: Section, max_positions: int) -> RotaryConfig:
    """How positions turn, from `rope_theta` and `rope_scaling`, or from `rope_parameters`."""
    scaling = section.values.get("rope_parameters") or section.values.get("rope_scaling")
    theta = section.number("rope_theta", 10000.0)
    if scaling is None:
        return RotaryConfig(theta)
    if not isinstance(scaling, dict):
        raise ValueError(f"{section.place}: rope_scaling is {scaling!r}; it must be an object")
    rope = Section(f"{section.place}: rope_scaling", scaling)
    theta = rope.number("rope_theta", theta)
    rope.require("partial_rotary_factor", 1, None)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return RotaryConfig(theta)
    if kind == "dynamic":
        return RotaryConfig(theta, "dynamic", max_positions, rope.number("factor"))
    if kind in ("su", "longrope"):
        return _read_long_rope(section, rope, theta, max_positions)
    raise ValueError(
        f"{rope.place}: type {kind!r} is not supported; supported: default, dynamic, su, longrope"
    )


def _read_long_rope(
    section: Section, rope: Section, theta: float, max_positions: int
) -> RotaryConfig:
    """Phi-3's rotation (`Phi3SuScaledRotaryEmbedding`): two lists of factors and a scale."""
    original = section.count(
        "original_max_position_embeddings",
        rope.count("original_max_position_embeddings", 4096),
    )
    ratio = max_positions / original
    scale = math.sqrt(1 + math.log(ratio) / math.log(original)) if ratio > 1 < original else 1.0
    return RotaryConfig(
        theta,
        "long",
        limit=original,
        short_factors=rope.numbers("short_factor"),
        long_factors=rope.numbers("long_factor"),
        scale=rope.number("attention_factor", scale),
    )


def _rope_scaling(rotary: RotaryConfig) -> dict[str, Any] | None:
    """The rotation as `rope_scaling`, under the old key `type` and the new one `rope_type`."""
    if rotary.kind == "plain":
        return None
    if rotary.kind == "dynamic":
        return {"type": "dynamic", "rope_type": "dynamic", "factor": rotary.factor}
    return {
        "type": "su",
        "rope_type": "longrope",
        "short_factor": list(rotary.short_factors),
        "long_factor": list(rotary.long_factors),
        "attention_factor": rotary.scale,
    }
