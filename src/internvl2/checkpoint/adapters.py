"""Un-merged LoRA weights of the official fine-tuner, merged while they are read.

It saves a wrapped model as it is: `language_model.base_model.model.….base_layer.weight` with
`lora_A.default.weight` and `lora_B.default.weight` beside it, and only the rank in config.json. Its
alpha is always twice the rank (`wrap_llm_lora`), so the weight meant is base + 2 B A.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from internvl2.checkpoint.files import Stored, TensorSource

SCALE = 2.0
_WRAPPED = re.compile(r"^(language_model|vision_model)\.base_model\.model\.")
_ADAPTER = re.compile(r"\.lora_([AB])\.default\.weight$")


@dataclass(frozen=True, slots=True)
class Pair:
    """Names of the two factors of one adapter."""

    down: str
    up: str


@dataclass(frozen=True, slots=True)
class Merged:
    """Tensors under the names they had before adapters were added, the adapters merged in."""

    source: TensorSource
    originals: Mapping[str, str]
    """For every plain name the name in the file."""
    pairs: Mapping[str, Pair]
    stored: Mapping[str, Stored]

    def read(self, name: str) -> Tensor:
        """The merged weight, computed in fp32 and given in the stored type."""
        base = self.source.read(self.originals[name])
        if name not in self.pairs:
            return base
        pair = self.pairs[name]
        up, down = self.source.read(pair.up).float(), self.source.read(pair.down).float()
        return (base.float() + SCALE * (up @ down)).to(base.dtype)


def merged(source: TensorSource, vision_rank: int, decoder_rank: int) -> TensorSource:
    """`source` without adapters: itself if it has none, else merged as it is read."""
    if not any(_WRAPPED.match(name) for name in source.stored):
        return source
    originals: dict[str, str] = {}
    factors: dict[str, dict[str, str]] = {}
    for name in source.stored:
        plain = _WRAPPED.sub(r"\1.", name)
        part = _ADAPTER.search(plain)
        if part:
            factors.setdefault(_ADAPTER.sub(".weight", plain), {})[part[1]] = name
        else:
            originals[plain.replace(".base_layer.", ".")] = name
    pairs = {
        plain: _pair(source, plain, parts, vision_rank, decoder_rank)
        for plain, parts in factors.items()
    }
    for plain in pairs:
        if plain not in originals:
            raise ValueError(f"{source.stored[pairs[plain].up].file}: adapter without {plain}")
    stored = {plain: source.stored[name] for plain, name in originals.items()}
    return Merged(source, originals, pairs, stored)


def _pair(
    source: TensorSource, plain: str, parts: dict[str, str], vision_rank: int, decoder_rank: int
) -> Pair:
    """The factors of one adapter, of the rank that config.json gives."""
    if len(parts) != 2:
        raise ValueError(f"the adapter of {plain} has lora_{next(iter(parts))} only")
    down, up = source.stored[parts["A"]], source.stored[parts["B"]]
    rank = vision_rank if plain.startswith("vision_model.") else decoder_rank
    if down.shape[0] != up.shape[1] or rank not in (0, down.shape[0]):
        raise ValueError(
            f"{down.file}: the adapter of {plain} is {list(down.shape)} and {list(up.shape)}; "
            f"config.json gives rank {rank}"
        )
    return Pair(parts["A"], parts["B"])
