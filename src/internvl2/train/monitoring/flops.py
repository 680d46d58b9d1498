"""How much arithmetic a step is, split in vision and decoder, so that MFU counts both."""

from collections.abc import Sequence
from dataclasses import dataclass

from internvl2.config import InternVLConfig
from internvl2.train.recipe import Freeze


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
    config: InternVLConfig, freeze: Freeze, lengths: Sequence[int], tiles: int, labelled: int
) -> Flops:
    """What one pack costs: sequences of `lengths`, so many tiles, so many rows through the head.

    A product of n numbers counts 2n; the backward pass costs once more for the input's gradient and
    once more for the weight's, where they are needed.
    """
    fed = tiles > 0 and not (freeze.vision and freeze.projector and not freeze.vision_last)
    gradients = fed or not freeze.decoder  # go through the layers, not only through the head
    return Flops(
        _vision(config, freeze, tiles), _decoder(config, freeze, gradients, lengths, labelled)
    )


def _vision(config: InternVLConfig, freeze: Freeze, tiles: int) -> float:
    vision = config.vision
    states = (config.tile_size // vision.patch_size) ** 2 + 1
    width, inner = vision.hidden_size, vision.intermediate_size
    layer = 2.0 * states * (4 * width**2 + 2 * width * inner) + 4.0 * states**2 * width
    embedding = 2.0 * (states - 1) * 3 * vision.patch_size**2 * width
    trained = min(freeze.vision_last, vision.num_layers) if freeze.vision else vision.num_layers
    tower = layer * (vision.num_layers + 2 * trained) + embedding * (1 if freeze.vision else 2)
    wide, text = width * config.shuffle**2, config.decoder.hidden_size
    first, second = (2.0 * config.tokens_per_tile * width * text for width in (wide, text))
    learned = not freeze.projector
    projector = first * (1 + learned + (trained > 0))
    projector += second * (1 + learned + (trained > 0 or learned))
    return tiles * (tower + projector)


def _decoder(
    config: InternVLConfig, freeze: Freeze, gradients: bool, lengths: Sequence[int], labelled: int
) -> float:
    decoder = config.decoder
    width, heads = decoder.hidden_size, decoder.num_heads * decoder.head_dim
    kv = decoder.num_kv_heads * decoder.head_dim
    matrices = 2 * width * heads + 2 * width * kv + 3 * width * decoder.intermediate_size
    linear = 2.0 * sum(lengths) * matrices * decoder.num_layers
    attention = 2.0 * sum(n * n for n in lengths) * heads * decoder.num_layers  # causal: half
    head = 2.0 * labelled * width * decoder.vocab_size
    return (
        linear * (1 + gradients + (not freeze.decoder))
        + attention * (3 if gradients else 1)
        + head * (1 + gradients + (not freeze.freezes_head))
    )
