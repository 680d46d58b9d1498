"""How each layout names and stores the weights: rule tables, read both ways by one interpreter.

A rule joins what a file holds (`theirs`) with our parameters (`ours`) and says how the numbers are
rearranged between them. `{i}` stands for a layer's number, `*` for `weight` and `bias`; a rule
whose parameters a model does not have (a bias, a q_norm) is passed over.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from internvl2.checkpoint.config_files import Layout
from internvl2.checkpoint.storage import (
    SAME,
    Batched,
    ByKeyValueHead,
    Joined,
    Split,
    Storage,
    Transposed,
)
from internvl2.config import DecoderConfig, InternVLConfig

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Rule:
    """Names in a file, names of ours, and how the one is stored as the other."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    storage: Storage = SAME
    linear: bool = False
    """A matrix that Paddle keeps as [in, out]."""

    def read(self, theirs: list[Tensor]) -> list[Tensor]:
        """Our parameters from a file's tensors."""
        return self.storage.read(theirs)

    def write(self, ours: list[Tensor]) -> list[Tensor]:
        """A file's tensors from our parameters."""
        return self.storage.write(ours)

    def their_shapes(self, shapes: Shapes) -> list[tuple[int, ...]]:
        """Shapes that the file's tensors must have, given those of our parameters."""
        ours = [torch.empty(shapes[name], device="meta") for name in self.ours]
        return [tuple(tensor.shape) for tensor in self.write(ours)]


def rules(layout: Layout, config: InternVLConfig, shapes: Shapes) -> list[Rule]:
    """Every rule that a model's parameters need in a layout, in the order of the parameters."""
    place = {name: i for i, name in enumerate(shapes)}
    layers = max(config.vision.num_layers, config.decoder.num_layers)
    found = [
        rule
        for template in _templates(layout, config)
        for rule in _filled(template, layers)
        if all(name in place for name in rule.ours)
    ]
    covered = [name for rule in found for name in rule.ours]
    assert sorted(covered) == sorted(shapes), set(covered) ^ set(shapes)
    return sorted(found, key=lambda rule: place[rule.ours[0]])


def canonical_name(name: str, layout: Layout, config: InternVLConfig) -> str:
    """A file's tensor name in the spelling of the rules: older releases used other prefixes."""
    if layout == "paddlemix":
        base = _paddle_base(config.decoder)
        return re.sub(r"^language_model\.(model|qwen2|llama)\.", f"{base}.", name)
    for pattern, replacement in _HF_ALIASES if layout == "hf" else ():
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    return name


def is_ignorable(name: str) -> bool:
    """Whether an extra tensor is a rotary table of an old release, which we compute ourselves."""
    return re.search(r"\.rotary_emb\.(inv_freq|cos_cached|sin_cached)$", name) is not None


def head_and_embedding(layout: Layout, config: InternVLConfig) -> tuple[str, str]:
    """Names of the output head and of the embedding that a tied checkpoint keeps instead."""
    templates = list(_templates(layout, config))
    named = {rule.ours[0]: rule.theirs[0] for rule in templates if len(rule.ours) == 1}
    return named["decoder.head.weight"], named["decoder.embedding.weight"]


_HF_ALIASES = (
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^language_model\.model\.", "model.language_model."),
    (r"^(vision_tower|multi_modal_projector|language_model)\.", r"model.\1."),
)

_VISION = (
    ("norm1.*", "norm1.*"),
    ("norm2.*", "norm2.*"),
    ("attn.qkv.*", "attention.qkv.*"),
    ("attn.proj.*", "attention.proj.*"),
    ("attn.q_norm.weight", "attention.q_norm.weight"),
    ("attn.k_norm.weight", "attention.k_norm.weight"),
    ("mlp.fc1.*", "mlp.fc1.*"),
    ("mlp.fc2.*", "mlp.fc2.*"),
    ("ls1", "scale1"),
    ("ls2", "scale2"),
)
_VISION_HF = (
    ("layernorm_before.*", "norm1.*"),
    ("layernorm_after.*", "norm2.*"),
    ("attention.projection_layer.*", "attention.proj.*"),
    ("attention.q_norm.weight", "attention.q_norm.weight"),
    ("attention.k_norm.weight", "attention.k_norm.weight"),
    ("mlp.fc1.*", "mlp.fc1.*"),
    ("mlp.fc2.*", "mlp.fc2.*"),
    ("lambda_1", "scale1"),
    ("lambda_2", "scale2"),
)
_LLAMA = (
    ("input_layernorm.weight", "attention_norm.weight"),
    ("self_attn.o_proj.weight", "attention.o.weight"),
    ("self_attn.q_norm.weight", "attention.q_norm.weight"),
    ("self_attn.k_norm.weight", "attention.k_norm.weight"),
    ("post_attention_layernorm.weight", "mlp_norm.weight"),
    ("mlp.down_proj.weight", "mlp.down.weight"),
)
_LLAMA_SEPARATE = (
    ("self_attn.q_proj.*", "attention.q.*"),
    ("self_attn.k_proj.*", "attention.k.*"),
    ("self_attn.v_proj.*", "attention.v.*"),
    ("mlp.gate_proj.weight", "mlp.gate.weight"),
    ("mlp.up_proj.weight", "mlp.up.weight"),
)
_INTERNLM2 = (
    ("attention_norm.weight", "attention_norm.weight"),
    ("attention.wo.weight", "attention.o.weight"),
    ("ffn_norm.weight", "mlp_norm.weight"),
    ("feed_forward.w1.weight", "mlp.gate.weight"),
    ("feed_forward.w3.weight", "mlp.up.weight"),
    ("feed_forward.w2.weight", "mlp.down.weight"),
)
_LINEARS = re.compile(r"\.(qkv|proj|fc1|fc2|linear1|linear2|q|k|v|o|gate|up|down|head)\.weight$")


def _templates(layout: Layout, config: InternVLConfig) -> Iterator[Rule]:
    """The rule table of a layout for a kind of decoder, its names not yet filled in."""
    if layout == "hf":
        everything = chain(_vision_hf(config), _projector_hf(), _decoder_hf(config.decoder))
    else:
        base = _paddle_base(config.decoder) if layout == "paddlemix" else "language_model.model"
        everything = chain(
            _vision_official(), _projector_official(), _decoder(config.decoder, base)
        )
    for rule in everything:
        yield _transposed(rule) if layout == "paddlemix" and rule.linear else rule


def _vision_official() -> Iterator[Rule]:
    base = "vision_model.embeddings"
    yield Rule((f"{base}.class_embedding",), ("vision.class_embedding",), Batched(2))
    yield Rule((f"{base}.position_embedding",), ("vision.position_embedding",), Batched(1))
    yield from _named(f"{base}.patch_embedding.*", "vision.patch_embedding.*")
    for theirs, ours in _VISION:
        yield from _named(
            f"vision_model.encoder.layers.{{i}}.{theirs}", f"vision.layers.{{i}}.{ours}"
        )


def _projector_official() -> Iterator[Rule]:
    for theirs, ours in (("0", "norm"), ("1", "linear1"), ("3", "linear2")):
        yield from _named(f"mlp1.{theirs}.*", f"projector.{ours}.*")


def _paddle_base(config: DecoderConfig) -> str:
    """PaddleNLP's Qwen2 and Llama have prefixes of their own where the others say `model`."""
    prefix = config.kind if config.kind in ("qwen2", "llama") else "model"
    return f"language_model.{prefix}"


def _decoder(config: DecoderConfig, base: str) -> Iterator[Rule]:
    layer = f"{base}.layers.{{i}}"
    if config.kind != "internlm2":
        yield from _decoder_llama(config, base, "language_model.lm_head")
        return
    yield from _named(f"{base}.tok_embeddings.weight", "decoder.embedding.weight")
    yield from _named(f"{base}.norm.weight", "decoder.norm.weight")
    yield from _named("language_model.output.weight", "decoder.head.weight")
    for theirs, ours in _INTERNLM2:
        yield from _named(f"{layer}.{theirs}", f"decoder.layers.{{i}}.{ours}")
    grouped = ByKeyValueHead(config.num_kv_heads, config.num_heads // config.num_kv_heads)
    yield Rule((f"{layer}.attention.wqkv.weight",), _qkv("weight"), grouped, linear=True)


def _decoder_llama(config: DecoderConfig, base: str, head: str) -> Iterator[Rule]:
    """Llama's names, which Qwen2, Qwen3 and (with fused matrices) Phi-3 share."""
    layer, mlp = f"{base}.layers.{{i}}", "decoder.layers.{i}.mlp"
    yield from _named(f"{base}.embed_tokens.weight", "decoder.embedding.weight")
    yield from _named(f"{base}.norm.weight", "decoder.norm.weight")
    yield from _named(f"{head}.weight", "decoder.head.weight")
    for theirs, ours in _LLAMA + (() if config.kind == "phi3" else _LLAMA_SEPARATE):
        yield from _named(f"{layer}.{theirs}", f"decoder.layers.{{i}}.{ours}")
    if config.kind == "phi3":
        heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        rows = tuple(n * config.head_dim for n in heads)
        gate_up = (f"{mlp}.gate.weight", f"{mlp}.up.weight")
        halves = (config.intermediate_size, config.intermediate_size)
        fused = f"{layer}.self_attn.qkv_proj.weight"
        yield Rule((fused,), _qkv("weight"), Joined(rows), linear=True)
        yield Rule((f"{layer}.mlp.gate_up_proj.weight",), gate_up, Joined(halves), linear=True)


def _vision_hf(config: InternVLConfig) -> Iterator[Rule]:
    base, layer = "model.vision_tower.embeddings", "model.vision_tower.encoder.layer.{i}"
    yield Rule((f"{base}.cls_token",), ("vision.class_embedding",), Batched(2))
    yield Rule((f"{base}.position_embeddings",), ("vision.position_embedding",), Batched(1))
    yield from _named(f"{base}.patch_embeddings.projection.*", "vision.patch_embedding.*")
    for theirs, ours in _VISION_HF:
        yield from _named(f"{layer}.{theirs}", f"vision.layers.{{i}}.{ours}")
    thirds = Split((config.vision.hidden_size,) * 3)
    for part in ("weight", "bias"):
        theirs = tuple(f"{layer}.attention.{name}_proj.{part}" for name in "qkv")
        yield Rule(theirs, (f"vision.layers.{{i}}.attention.qkv.{part}",), thirds)


def _projector_hf() -> Iterator[Rule]:
    pairs = (("layer_norm", "norm"), ("linear_1", "linear1"), ("linear_2", "linear2"))
    for theirs, ours in pairs:
        yield from _named(f"model.multi_modal_projector.{theirs}.*", f"projector.{ours}.*")


def _decoder_hf(config: DecoderConfig) -> Iterator[Rule]:
    yield from _decoder_llama(config, "model.language_model", "lm_head")


def _named(theirs: str, ours: str) -> Iterator[Rule]:
    """Rules for tensors that are stored as they are."""
    for part in ("weight", "bias") if theirs.endswith("*") else ("",):
        name = ours.removesuffix("*") + part
        linear = _LINEARS.search(name) is not None
        yield Rule((theirs.removesuffix("*") + part,), (name,), linear=linear)


def _qkv(part: str) -> tuple[str, ...]:
    return tuple(f"decoder.layers.{{i}}.attention.{name}.{part}" for name in "qkv")


def _transposed(rule: Rule) -> Rule:
    return Rule(rule.theirs, rule.ours, Transposed(rule.storage), linear=True)


def _filled(rule: Rule, layers: int) -> Iterator[Rule]:
    """A rule with the layer's number put in, once per layer."""
    if "{i}" not in rule.ours[0]:
        yield rule
        return
    for i in range(layers):
        theirs = tuple(name.replace("{i}", str(i)) for name in rule.theirs)
        ours = tuple(name.replace("{i}", str(i)) for name in rule.ours)
        yield Rule(theirs, ours, rule.storage, rule.linear)
