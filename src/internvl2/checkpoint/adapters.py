"""Un-merged LoRA weights of the official fine-tuner, merged while they are read.

It saves a wrapped model as it is: `language_model.base_model.model.….base_layer.weight` with
`lora_A.default.weight` and `lora_B.default.weight` beside it, and only the rank in config.json. Its
alpha is always twice the rank (`wrap_llm_lora`), so the weight meant is base + 2 B A. PEFT may also
leave `default` out, or have another adapter's name there.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from internvl2.checkpoint.files import Stored, TensorSource

SCALE = 2.0
_WRAPPED = re.compile(r"^(language_model|vision_model)\.base_model\.model\.")
_ADAPTER = re.compile(r"\.lora_([AB])(\.\w+)?\.weight$")


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
            _add(source, factors.setdefault(_ADAPTER.sub(".weight", plain), {}), part[1], name)
        else:
            _add(source, originals, plain.replace(".base_layer.", "."), name)
    stored = {plain: source.stored[name] for plain, name in originals.items()}
    pairs = {}
    for plain, parts in factors.items():
        if plain not in stored:
            raise ValueError(
                f"{source.stored[next(iter(parts.values()))].file}: adapter without {plain}"
            )
        rank = vision_rank if plain.startswith("vision_model.") else decoder_rank
        pairs[plain] = _pair(source, plain, parts, stored[plain].shape, rank)
    return Merged(source, originals, pairs, stored)


def _add(source: TensorSource, found: dict[str, str], key: str, name: str) -> None:
    """Note a tensor's name; two for the same place would make one of them count for nothing."""
    if key in found:
        raise ValueError(f"{source.stored[name].file}: {found[key]} and {name} are for one place")
    found[key] = name


def _pair(
    source: TensorSource, plain: str, parts: dict[str, str], shape: tuple[int, ...], rank: int
) -> Pair:
    """The factors of one adapter of a matrix, of the rank that config.json gives (0: any)."""
    if len(parts) != 2:
        raise ValueError(f"the adapter of {plain} has lora_{next(iter(parts))} only")
    down, up = source.stored[parts["A"]], source.stored[parts["B"]]
    found = rank or next(iter(down.shape), 0)
    wanted = [(found, *shape[1:]), (*shape[:1], found)]
    if [down.shape, up.shape] != wanted:
        raise ValueError(
            f"{down.file}: the adapter of {plain} {list(shape)} is {list(down.shape)} and "
            f"{list(up.shape)}; config.json gives rank {rank}"
        )
    return Pair(parts["A"], parts["B"])
