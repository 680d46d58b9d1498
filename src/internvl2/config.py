"""What a model is: the shapes of the vision tower, of the decoder, and of what joins them.

Frozen and validated, with no torch and no files: `checkpoint` reads these from a config.json in any
layout, `family` writes them down for every released member, `model` builds modules from them.
"""

from dataclasses import dataclass
from typing import Literal

DecoderKind = Literal["internlm2", "qwen2", "qwen3", "llama", "phi3"]
"""Which released language model a decoder's weights come from; it decides how they are stored."""

DTypeName = Literal["bfloat16", "float16", "float32"]

Quantization = Literal["fp8", "int8", "int4"]
"""How few bits the decoder's matrices are held in while it answers."""


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """InternViT, 300M or 6B (`configuration_intern_vit.py` of the official code)."""

    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    image_size: int = 448
    """Side, in pixels, of the tile that the position embedding was made for."""
    patch_size: int = 14
    norm: Literal["layer_norm", "rms_norm"] = "layer_norm"
    norm_eps: float = 1e-6
    qkv_bias: bool = True
    qk_norm: bool = False
    """RMS norm of queries and keys over all heads together, as in the 6B tower."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last layer while training; earlier layers have less."""

    def __post_init__(self) -> None:
        _require_positive(
            self, "hidden_size", "num_layers", "num_heads", "intermediate_size", "patch_size"
        )
        _require_multiple("vision hidden_size", self.hidden_size, "num_heads", self.num_heads)
        _require_multiple("vision image_size", self.image_size, "patch_size", self.patch_size)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def patches_per_side(self) -> int:
        """Patches along each side of a tile of `image_size`."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, slots=True)
class RotaryConfig:
    """How positions turn queries and keys, and what changes in long sequences.

    Up to `limit` tokens every kind is fixed. Beyond it `dynamic` enlarges the base with the
    length of the sequence (dynamic NTK: InternLM2, Llama), and `long` switches to the second
    list of per-frequency factors (Phi-3's "su", also called long rope).
    """

    theta: float
    kind: Literal["plain", "dynamic", "long"] = "plain"
    limit: int = 0
    """Longest sequence, in tokens, with the ordinary rotation; unused by `plain`."""
    factor: float = 1.0
    """Strength of `dynamic`."""
    short_factors: tuple[float, ...] = ()
    """Divisors of the frequencies up to `limit`; one per pair of head dimensions."""
    long_factors: tuple[float, ...] = ()
    scale: float = 1.0
    """What cosines and sines are multiplied with (`long` only)."""

    def state(self, length: int) -> int:
        """What, beside its position, decides a token's rotation in a sequence of `length` tokens.

        Tokens of equal position and state have equal keys, so a cache may share them.
        """
        if self.kind == "plain" or length <= self.limit:
            return 0
        return length if self.kind == "dynamic" else 1


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """One causal decoder for InternLM2, Qwen2, Qwen3, Llama and Phi-3."""

    kind: DecoderKind
    vocab_size: int
    """Rows of the embedding, which may be more than the tokenizer has tokens."""
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_positions: int
    """Longest sequence, in tokens, that the model was made for."""
    rotary: RotaryConfig
    norm_eps: float = 1e-6
    qkv_bias: bool = False
    qk_norm: bool = False
    """RMS norm of each head's queries and keys, as in Qwen3."""

    def __post_init__(self) -> None:
        _require_positive(
            self,
            "vocab_size",
            "hidden_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "intermediate_size",
            "max_positions",
        )
        _require_multiple("decoder num_heads", self.num_heads, "num_kv_heads", self.num_kv_heads)
        _require_multiple("decoder head_dim", self.head_dim, "the pair size", 2)
        for name in ("short_factors", "long_factors"):
            factors = getattr(self.rotary, name)
            if self.rotary.kind == "long" and len(factors) != self.head_dim // 2:
                raise ValueError(
                    f"rotary {name} has {len(factors)} values; "
                    f"head_dim {self.head_dim} needs {self.head_dim // 2}"
                )


@dataclass(frozen=True, slots=True)
class InternVLConfig:
    """A whole member: vision tower, pixel shuffle, projector, decoder, and how pictures are cut."""

    vision: VisionConfig
    decoder: DecoderConfig
    template: str
    """Name of the chat template (`processing.template.TEMPLATES`)."""
    tile_size: int = 448
    """Side of a tile in pixels (`force_image_size` in the official config)."""
    downsample_ratio: float = 0.5
    """Pixel shuffle keeps this share of the patches of each side."""
    select_layer: int = -1
    """Which hidden state of the vision tower is used; -1 is the last layer's output."""
    ps_version: Literal["v1", "v2"] = "v2"
    """v1 leaves rows and columns of visual tokens swapped, as InternVL 1.x was trained."""
    dynamic_tiles: bool = True
    """False: every picture is one tile."""
    min_tiles: int = 1
    max_tiles: int = 12
    use_thumbnail: bool = True
    pad2square: bool = False
    system_message: str | None = None
    """Replaces the template's default system text where it is given."""
    image_token_id: int | None = None
    """Id of `<IMG_CONTEXT>`; the tokenizer's files know it where config.json does not."""
    dtype: DTypeName = "bfloat16"
    """In which type the checkpoint's weights are stored."""

    def __post_init__(self) -> None:
        _require_positive(self, "tile_size", "min_tiles", "max_tiles")
        _require_multiple("tile_size", self.tile_size, "patch_size", self.vision.patch_size)
        if self.min_tiles > self.max_tiles:
            raise ValueError(f"min_tiles {self.min_tiles} is above max_tiles {self.max_tiles}")
        if self.ps_version not in ("v1", "v2"):
            raise ValueError(f"unknown ps_version {self.ps_version!r}; known: v1, v2")
        if not 0 < self.downsample_ratio <= 1 or (1 / self.downsample_ratio) % 1:
            raise ValueError(
                f"downsample_ratio {self.downsample_ratio} is not one over a whole number"
            )
        _require_multiple(
            "patches per tile side",
            self.tile_size // self.vision.patch_size,
            "1/downsample_ratio",
            self.shuffle,
        )
        if not -self.vision.num_layers - 1 <= self.select_layer <= self.vision.num_layers:
            raise ValueError(
                f"select_layer {self.select_layer} does not exist in "
                f"{self.vision.num_layers} vision layers"
            )

    @property
    def shuffle(self) -> int:
        """How many patches of each side pixel shuffle joins into one visual token."""
        return round(1 / self.downsample_ratio)

    @property
    def used_vision_layers(self) -> int:
        """How many layers of the tower are run: some members read an earlier state."""
        last = self.select_layer
        return last if last >= 0 else self.vision.num_layers + 1 + last

    @property
    def peak_values_per_tile(self) -> int:
        """Most numbers that the vision tower holds at once for a tile, estimated from above."""
        vision = self.vision
        patches = (self.tile_size // vision.patch_size) ** 2 + 1
        return patches * (8 * vision.hidden_size + 2 * vision.intermediate_size)

    @property
    def tokens_per_tile(self) -> int:
        """Visual tokens that one tile becomes."""
        return (self.tile_size // self.vision.patch_size // self.shuffle) ** 2


def _require_positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(
                f"{type(config).__name__}.{name} is {value!r}; it must be a whole number above 0"
            )


def _require_multiple(what: str, value: int, of_what: str, divisor: int) -> None:
    if value % divisor:
        raise ValueError(f"{what} {value} is not a multiple of {of_what} {divisor}")
