"""How much arithmetic a step is, split in vision and decoder, so that MFU counts both."""

from collections.abc import Sequence
from dataclasses import dataclass

from internvl2.config import InternVLConfig
from internvl2.train.recipe import Freeze, Lora

NO_ADAPTERS = Lora()


@dataclass(frozen=True, slots=True)
class Flops:
    """Floating point operations of forward and backward; recomputed activations do not count."""

    vision: float = 0.0
    """Vision tower and projector."""
    decoder: float = 0.0

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.vision + other.vision, self.decoder + other.decoder)

    @property
    def total(self) -> float:
        """Both parts."""
        return self.vision + self.decoder


def pack_flops(
    config: InternVLConfig,
    freeze: Freeze,
    lengths: Sequence[int],
    tiles: int,
    labelled: int,
    lora: Lora = NO_ADAPTERS,
    known: int = 0,
) -> Flops:
    """What one pack costs: sequences of `lengths`, so many tiles, so many rows through the head.

    A product of n numbers counts 2n; the backward pass costs once more for the input's gradient and
    once more for the weight's, where they are needed: for a matrix with an adapter, never the
    weight's. `freeze` says which own weights stay (`Recipe.kept`). Row lengths (DoRA) and 4-bit
    weights made readable count nothing. Through the tower go all tiles but the `known` ones.
    """
    trained = _trained_vision(config, freeze, lora)
    fed = tiles > 0 and not (freeze.projector and not trained)
    return Flops(
        (tiles - known) * _tower(config, freeze, lora)
        + tiles * _projector(config, freeze, trained > 0),
        _decoder(config, freeze, lora, fed, lengths, labelled),
    )


def _trained_vision(config: InternVLConfig, freeze: Freeze, lora: Lora) -> int:
    """Layers of the tower that learn, in themselves or in adapters."""
    layers = config.used_vision_layers
    return min(freeze.vision_last, layers) if freeze.vision and not lora.vision_rank else layers


def _tower(config: InternVLConfig, freeze: Freeze, lora: Lora) -> float:
    """Of one tile."""
    vision, rank = config.vision, lora.vision_rank
    states = (config.tile_size // vision.patch_size) ** 2 + 1
    width, inner = vision.hidden_size, vision.intermediate_size
    linear = 2.0 * states * (4 * width**2 + 2 * width * inner)
    attention = 4.0 * states**2 * width
    embedding = 2.0 * (states - 1) * 3 * vision.patch_size**2 * width
    trained = _trained_vision(config, freeze, lora)
    forward = config.used_vision_layers * (linear + attention) + embedding
    if not rank:
        return forward + 2 * trained * (linear + attention) + (0 if freeze.vision else embedding)
    adapters = 2.0 * states * rank * (8 * width + 2 * inner)
    first = 2.0 * states * (3 * width**2 + rank * width)  # nothing below the first map learns
    return forward + trained * (linear + 2 * attention + 3 * adapters) - first


def _projector(config: InternVLConfig, freeze: Freeze, fed: bool) -> float:
    """Of one tile; `fed` when the tower learns, too."""
    wide, text = config.vision.hidden_size * config.shuffle**2, config.decoder.hidden_size
    first, second = (2.0 * config.tokens_per_tile * width * text for width in (wide, text))
    learned = not freeze.projector
    return first * (1 + learned + fed) + second * (1 + learned + (fed or learned))


def _decoder(
    config: InternVLConfig,
    freeze: Freeze,
    lora: Lora,
    fed: bool,
    lengths: Sequence[int],
    labelled: int,
) -> float:
    """`fed` when something that feeds the decoder learns, too."""
    decoder, rank, tokens = config.decoder, lora.decoder_rank, sum(lengths)
    width, heads = decoder.hidden_size, decoder.num_heads * decoder.head_dim
    kv, inner = decoder.num_kv_heads * decoder.head_dim, decoder.intermediate_size
    gradients = fed or rank > 0 or not freeze.decoder  # through the layers, not only the head
    linear = 2.0 * tokens * (2 * width * (heads + kv) + 3 * width * inner) * decoder.num_layers
    attention = 2.0 * sum(n * n for n in lengths) * heads * decoder.num_layers  # causal: half
    head = 2.0 * labelled * width * decoder.vocab_size
    ends = 2 * (width + heads) + 2 * (width + kv) + 3 * (width + inner)
    adapters = 2.0 * tokens * rank * ends * decoder.num_layers
    first = 2.0 * tokens * width * (heads + 2 * kv + 3 * rank)  # input's gradient, first maps
    return (
        linear * (1 + gradients + (not freeze.decoder))
        + attention * (3 if gradients else 1)
        + head * (1 + gradients + (not freeze.freezes_head))
        + adapters * 3
        - (first if rank and not fed else 0)
    )
