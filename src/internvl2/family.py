"""The family on one page: name -> vision tower x language model x template x hub id.

What a checkpoint's own config.json says always wins over this table, which serves `info NAME`,
short names, benchmarks and tests. Shapes, vocabularies and templates are those of the releases.
Not published in readable form, and so taken from the base model, are the rotary settings of 40B and
76B and those of InternVL3 beyond 1B.
"""

import difflib
import re
from dataclasses import dataclass, replace

from internvl2.config import DecoderConfig, DecoderKind, InternVLConfig, RotaryConfig, VisionConfig


@dataclass(frozen=True, slots=True)
class Tokens:
    """Ids of the tokens that a tokenizer got for pictures, and of those that end and begin text."""

    image_start: int
    image_end: int
    image: int
    end_of_turn: int
    bos: int | None = None


@dataclass(frozen=True, slots=True)
class Parameters:
    """How many numbers each part of a model has."""

    vision: int
    projector: int
    decoder: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.vision + self.projector + self.decoder


@dataclass(frozen=True, slots=True)
class Member:
    """One released model."""

    name: str
    """Short name: the hub id without its owner, in lower case."""
    hub_id: str
    vision_name: str
    language_name: str
    published_size: str
    """Parameters as published, in billions; its digits say how exactly."""
    tokens: Tokens
    config: InternVLConfig


def find(name: str) -> Member:
    """The member of that short name or hub id, in any case; else an error with what comes near."""
    key = name.lower().removeprefix("opengvlab/").replace(".", "_")
    for member in MEMBERS.values():
        if key in (member.name, member.name.replace("llama3-", "")):
            return member
    near = difflib.get_close_matches(key, MEMBERS, n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ValueError(f"unknown model {name!r}{hint} (known: {', '.join(MEMBERS)})")


def find_stage(repository: str) -> Member:
    """The member of which a hub id or folder holds any stage, in any layout.

    `InternVL3-8B-Instruct-hf` and `~/models/InternVL3-8B` have the shape of InternVL3-8B.
    """
    stage = repository.rstrip("/").rsplit("/", 1)[-1]
    return find(_STAGES.sub("", stage))


def parameters(config: InternVLConfig) -> Parameters:
    """Parameters of each part, by formula, without building anything."""
    vision, decoder = config.vision, config.decoder
    h, mlp, layers = vision.hidden_size, vision.intermediate_size, vision.num_layers
    norm = h * (2 if vision.norm == "layer_norm" else 1)
    attention = 4 * h * h + h + 3 * h * vision.qkv_bias + 2 * h * vision.qk_norm
    layer = 2 * norm + attention + 2 * h * mlp + mlp + h + 2 * h
    positions = 1 + vision.patches_per_side**2
    tower = layers * layer + h * (3 * vision.patch_size**2 + 1 + 1 + positions)
    wide, d = h * config.shuffle**2, decoder.hidden_size
    projector = 2 * wide + (wide + 1) * d + (d + 1) * d
    q, kv = decoder.num_heads * decoder.head_dim, decoder.num_kv_heads * decoder.head_dim
    block = 2 * d * (q + kv) + 3 * d * decoder.intermediate_size + 2 * d
    block += (q + 2 * kv) * decoder.qkv_bias + 2 * decoder.head_dim * decoder.qk_norm
    language = decoder.num_layers * block + d + 2 * decoder.vocab_size * d
    return Parameters(tower, projector, language)


_STAGES = re.compile(r"(-(hf|instruct|pretrained|mpo))+$", re.IGNORECASE)
_VISION = {
    "InternViT-300M": VisionConfig(1024, 24, 16, 4096),
    "InternViT-6B": VisionConfig(
        3200, 45, 25, 12800, norm="rms_norm", qkv_bias=False, qk_norm=True
    ),
}
_TOKENS = {
    "internlm2": Tokens(92544, 92545, 92546, 92542, bos=1),
    "internlm3": Tokens(128512, 128513, 128514, 128131, bos=1),
    "qwen2": Tokens(151646, 151647, 151648, 151645),
    "qwen2.5": Tokens(151665, 151666, 151667, 151645),
    "qwen3": Tokens(151669, 151670, 151671, 151645),
    "phi3": Tokens(32011, 32012, 32013, 32007, bos=1),
    "yi": Tokens(68, 70, 64000, 7),
    "llama3": Tokens(128256, 128257, 128258, 128003, bos=128000),
}


def _factors(*runs: tuple[float, int]) -> tuple[float, ...]:
    """A list given as (value, how often)."""
    return tuple(value for value, count in runs for _ in range(count))


def _dynamic(theta: float, factor: float, limit: int = 32768) -> RotaryConfig:
    return RotaryConfig(theta, "dynamic", limit, factor)


# Phi-3's 128k rotation ("su"), as its config.json gives it; the long list is in single precision.
_PHI3_SHORT = _factors(
    *((1.05, 3), (1.1, 3), (1.2500000000000002, 2), (1.4000000000000004, 1)),
    *((1.4500000000000004, 1), (1.5500000000000005, 1), (1.8500000000000008, 1)),
    *((1.9000000000000008, 1), (2.000000000000001, 19), (2.1000000000000005, 2), (2.2, 1)),
    *((2.3499999999999996, 4), (2.3999999999999995, 2), (2.6499999999999986, 1)),
    *((2.6999999999999984, 1), (2.8999999999999977, 1), (2.9499999999999975, 1)),
    (3.049999999999997, 3),
)
_PHI3_LONG = _factors(
    *((1.0299999713897705, 1), (1.0499999523162842, 2), (1.0799999237060547, 1)),
    *((1.2299998998641968, 2), (1.2999999523162842, 1), (1.4499999284744263, 1)),
    *((1.5999999046325684, 1), (1.6499998569488525, 1), (1.8999998569488525, 1)),
    *((2.859999895095825, 1), (3.68999981880188, 1), (5.419999599456787, 1)),
    *((5.489999771118164, 2), (9.09000015258789, 1), (11.579999923706055, 1)),
    *((15.65999984741211, 1), (15.769999504089355, 1), (15.789999961853027, 1)),
    *((18.360000610351562, 1), (21.989999771118164, 1), (23.079999923706055, 1)),
    *((30.009998321533203, 1), (32.35000228881836, 1), (32.590003967285156, 1)),
    *((35.56000518798828, 1), (39.95000457763672, 1), (53.840003967285156, 1)),
    *((56.20000457763672, 1), (57.95000457763672, 1), (59.29000473022461, 1)),
    *((59.77000427246094, 1), (59.920005798339844, 1), (61.190006256103516, 1)),
    *((61.96000671386719, 1), (62.50000762939453, 1), (63.3700065612793, 1)),
    *((63.48000717163086, 2), (63.66000747680664, 1), (63.850006103515625, 1)),
    *((64.08000946044922, 1), (64.760009765625, 1), (64.80001068115234, 1)),
    (64.81001281738281, 2),
)
_PHI3_ROPE = RotaryConfig(
    theta=10000.0,
    kind="long",
    limit=4096,
    short_factors=_PHI3_SHORT,
    long_factors=_PHI3_LONG,
    scale=(1 + 5 / 12) ** 0.5,  # sqrt(1 + ln(131072 / 4096) / ln(4096)), both powers of two
)


def _internlm2(*sizes: int, rotary: RotaryConfig, vocab: int = 92553) -> DecoderConfig:
    return _decoder("internlm2", vocab, sizes, 128, 32768, rotary, 1e-5)


def _qwen2(*sizes: int, vocab: int = 151674, rotary: RotaryConfig | None = None) -> DecoderConfig:
    head_dim = sizes[0] // sizes[2]
    rotary = rotary or RotaryConfig(1e6)
    return replace(_decoder("qwen2", vocab, sizes, head_dim, 32768, rotary, 1e-6), qkv_bias=True)


def _qwen3(*sizes: int) -> DecoderConfig:
    rotary = RotaryConfig(1e6)
    return replace(_decoder("qwen3", 151936, sizes, 128, 40960, rotary, 1e-6), qk_norm=True)


def _llama(*sizes: int, vocab: int, theta: float) -> DecoderConfig:
    return _decoder("llama", vocab, sizes, 128, 8192, _dynamic(theta, 2.0, 8192), 1e-5)


def _decoder(
    kind: DecoderKind,
    vocab: int,
    sizes: tuple[int, ...],
    head_dim: int,
    positions: int,
    rotary: RotaryConfig,
    eps: float,
) -> DecoderConfig:
    """`sizes`: hidden, layers, heads, key-value heads, intermediate."""
    hidden, layers, heads, kv_heads, intermediate = sizes
    return DecoderConfig(
        kind, vocab, hidden, layers, heads, kv_heads, head_dim, intermediate, positions, rotary, eps
    )


_V3 = _dynamic(1e6, 2.0)
# hidden, layers, heads, key-value heads, intermediate
_LANGUAGE = {
    "Qwen2-0.5B-Instruct": _qwen2(896, 24, 14, 2, 4864, vocab=151655),
    "internlm2-chat-1_8b": _internlm2(2048, 24, 16, 8, 8192, rotary=_dynamic(1e6, 2.0)),
    "Phi-3-mini-128k-instruct": _decoder(
        "phi3", 32020, (3072, 32, 32, 32, 8192), 96, 131072, _PHI3_ROPE, 1e-5
    ),
    "internlm2_5-7b-chat": _internlm2(4096, 32, 32, 8, 14336, rotary=_dynamic(1e6, 2.0)),
    "internlm2-chat-20b": _internlm2(6144, 48, 48, 8, 16384, rotary=_dynamic(1e6, 3.0)),
    "Nous-Hermes-2-Yi-34B": _llama(7168, 60, 56, 8, 20480, vocab=64007, theta=5e6),
    "Hermes-2-Theta-Llama-3-70B": _llama(8192, 80, 64, 8, 28672, vocab=128265, theta=5e5),
    "Qwen2.5-0.5B-Instruct": _qwen2(896, 24, 14, 2, 4864),
    "internlm2_5-1_8b-chat": _internlm2(2048, 24, 16, 8, 8192, rotary=_dynamic(1e6, 2.0)),
    "Qwen2.5-3B-Instruct": _qwen2(2048, 36, 16, 2, 11008),
    "internlm2_5-20b-chat": _internlm2(6144, 48, 48, 8, 16384, rotary=_dynamic(5e7, 2.5)),
    "Qwen2.5-32B-Instruct": _qwen2(5120, 64, 40, 8, 27648),
    "Qwen2.5-72B-Instruct": _qwen2(8192, 80, 64, 8, 29568),
    "Qwen2.5-0.5B": _qwen2(896, 24, 14, 2, 4864, rotary=_V3),
    "Qwen2.5-1.5B": _qwen2(1536, 28, 12, 2, 8960, rotary=_V3),
    "Qwen2.5-7B": _qwen2(3584, 28, 28, 4, 18944, rotary=_V3),
    "internlm3-8b-instruct": _internlm2(
        4096, 48, 32, 2, 10240, rotary=_dynamic(5e7, 6.0), vocab=128521
    ),
    "Qwen2.5-14B": _qwen2(5120, 48, 40, 8, 13824, rotary=_V3),
    "Qwen2.5-32B": _qwen2(5120, 64, 40, 8, 27648, rotary=_V3),
    "Qwen2.5-72B": _qwen2(8192, 80, 64, 8, 29568, rotary=_V3),
    "Qwen3-0.6B": _qwen3(1024, 28, 16, 8, 3072),
    "Qwen3-1.7B": _qwen3(2048, 28, 16, 8, 6144),
    "Qwen3-4B": _qwen3(2560, 36, 32, 8, 9728),
    "Qwen3-8B": _qwen3(4096, 36, 32, 8, 12288),
    "Qwen3-14B": _qwen3(5120, 40, 40, 8, 17408),
    "Qwen3-32B": _qwen3(5120, 64, 64, 8, 25600),
}

# hub name | vision tower | language model | tokenizer | template | published size, 10^9 parameters
_TABLE = """
InternVL2-1B         InternViT-300M  Qwen2-0.5B-Instruct         qwen2      Hermes-2        0.9382
InternVL2-2B         InternViT-300M  internlm2-chat-1_8b         internlm2  internlm2-chat  2.2058
InternVL2-4B         InternViT-300M  Phi-3-mini-128k-instruct    phi3       phi3-chat       4.1469
InternVL2-8B         InternViT-300M  internlm2_5-7b-chat         internlm2  internlm2-chat  8.0754
InternVL2-26B        InternViT-6B    internlm2-chat-20b          internlm2  internlm2-chat  25.51
InternVL2-40B        InternViT-6B    Nous-Hermes-2-Yi-34B        yi         Hermes-2        40.07
InternVL2-Llama3-76B InternViT-6B    Hermes-2-Theta-Llama-3-70B  llama3     internlm2-chat  76.26
InternVL2_5-1B       InternViT-300M  Qwen2.5-0.5B-Instruct       qwen2.5    internvl2_5     0.94
InternVL2_5-2B       InternViT-300M  internlm2_5-1_8b-chat       internlm2  internvl2_5     2.21
InternVL2_5-4B       InternViT-300M  Qwen2.5-3B-Instruct         qwen2.5    internvl2_5     3.71
InternVL2_5-8B       InternViT-300M  internlm2_5-7b-chat         internlm2  internvl2_5     8.08
InternVL2_5-26B      InternViT-6B    internlm2_5-20b-chat        internlm2  internvl2_5     25.5
InternVL2_5-38B      InternViT-6B    Qwen2.5-32B-Instruct        qwen2.5    internvl2_5     38.4
InternVL2_5-78B      InternViT-6B    Qwen2.5-72B-Instruct        qwen2.5    internvl2_5     78.4
InternVL3-1B         InternViT-300M  Qwen2.5-0.5B                qwen2.5    internvl2_5     0.94
InternVL3-2B         InternViT-300M  Qwen2.5-1.5B                qwen2.5    internvl2_5     2.09
InternVL3-8B         InternViT-300M  Qwen2.5-7B                  qwen2.5    internvl2_5     7.94
InternVL3-9B         InternViT-300M  internlm3-8b-instruct       internlm3  internvl2_5     9.14
InternVL3-14B        InternViT-300M  Qwen2.5-14B                 qwen2.5    internvl2_5     15.1
InternVL3-38B        InternViT-6B    Qwen2.5-32B                 qwen2.5    internvl2_5     38.4
InternVL3-78B        InternViT-6B    Qwen2.5-72B                 qwen2.5    internvl2_5     78.4
InternVL3_5-1B       InternViT-300M  Qwen3-0.6B                  qwen3      internvl2_5     1.061
InternVL3_5-2B       InternViT-300M  Qwen3-1.7B                  qwen3      internvl2_5     2.3
InternVL3_5-4B       InternViT-300M  Qwen3-4B                    qwen3      internvl2_5     4.7
InternVL3_5-8B       InternViT-300M  Qwen3-8B                    qwen3      internvl2_5     8.528
InternVL3_5-14B      InternViT-300M  Qwen3-14B                   qwen3      internvl2_5     15.1
InternVL3_5-38B      InternViT-6B    Qwen3-32B                   qwen3      internvl2_5     38.39
"""


def _member(row: str) -> Member:
    hub, vision, language, tokenizer, template, size = row.split()
    tokens = _TOKENS[tokenizer]
    config = InternVLConfig(
        vision=_VISION[vision],
        decoder=_LANGUAGE[language],
        template=template,
        image_token_id=tokens.image,
    )
    return Member(hub.lower(), f"OpenGVLab/{hub}", vision, language, size, tokens, config)


MEMBERS: dict[str, Member] = {
    member.name: member for member in map(_member, _TABLE.strip().splitlines())
}
