"""Adapters written for PEFT, by the names of transformers' layout, from what a run has trained.

Nothing needs merging. Where transformers has one of our matrices in several pieces, each takes
`down` and its rows of `up`; where it has several of ours in one piece, that takes their `down` one
below the other, and `up` with zeros where a row belongs to another's `down`: the same products, of
a larger rank.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from internvl2.checkpoint.adapter_config import AdapterConfig, write_adapter_config
from internvl2.checkpoint.convert import building
from internvl2.checkpoint.layouts import Rule, rules
from internvl2.checkpoint.lora_files import FILES, FINGERPRINT
from internvl2.checkpoint.source import parameter_shapes
from internvl2.config import InternVLConfig
from internvl2.model.lora import LoraSettings, is_adapter

PREFIX = "base_model.model."
"""What PEFT puts before every name of the model that it wraps."""


@dataclass(frozen=True, slots=True)
class Base:
    """The model that an adapter belongs to."""

    name: str
    """A directory, a hub id or a short name."""
    fingerprint: str
    """Of its weights, `Checkpoint.fingerprint`."""


@dataclass(frozen=True, slots=True)
class Parts:
    """How the adapters of each part are shaped; None for a part without."""

    decoder: LoraSettings | None = None
    vision: LoraSettings | None = None

    @property
    def adapted(self) -> list[LoraSettings]:
        """Those that there are."""
        return [settings for settings in (self.decoder, self.vision) if settings is not None]

    def of(self, name: str) -> LoraSettings:
        """The settings of the part that a parameter belongs to."""
        found = self.vision if name.startswith("vision.") else self.decoder
        assert found is not None, name
        return found


@dataclass(frozen=True, slots=True)
class _Written:
    """The adapter of one matrix of theirs."""

    module: str
    down: Tensor
    up: Tensor
    magnitude: Tensor | None
    scale: float

    @property
    def rank(self) -> int:
        """Rows of `down`."""
        return len(self.down)

    def alpha(self, rslora: bool) -> float:
        """What gives the scale at this rank."""
        return round(self.scale * (self.rank**0.5 if rslora else self.rank), 12)

    def tensors(self) -> dict[str, Tensor]:
        """By PEFT's names."""
        stem = f"{PREFIX}{self.module}"
        found = {f"{stem}.lora_A.weight": self.down, f"{stem}.lora_B.weight": self.up}
        if self.magnitude is not None:
            found[f"{stem}.lora_magnitude_vector"] = self.magnitude
        return found


def write_adapter(
    trained: Mapping[str, Tensor],
    config: InternVLConfig,
    parts: Parts,
    base: Base,
    directory: Path,
) -> None:
    """Write what was trained as an adapter directory; it must not exist, or be empty.

    `trained` has our names: `….attention.q.down`, `.up` and `.magnitude` of adapters, and
    parameters that were trained as a whole.
    """
    shapes = parameter_shapes(config)
    table = rules("hf", config, shapes)
    foreign = [name for name in trained if _adapted(name) not in shapes]
    assert not foreign, foreign
    adapters = [written for rule in table for written in _adapters(rule, trained, parts)]
    tensors = {name: x for written in adapters for name, x in written.tensors().items()}
    whole = {name: x for name, x in trained.items() if not is_adapter(name)}
    replaced = {name: x for rule in table for name, x in _replaced(rule, whole)}
    tensors |= {PREFIX + name: tensor for name, tensor in replaced.items()}
    everything = [name for rule in table for name in rule.theirs]
    described = _describe(adapters, parts, _modules(everything, replaced), config, base)
    metadata = {"format": "pt", FINGERPRINT: base.fingerprint}
    with building(directory) as partial:
        ready = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
        save_file(ready, partial / FILES[0], metadata)
        write_adapter_config(described, partial)


def _adapted(name: str) -> str:
    """The parameter that a trained tensor changes."""
    return f"{name.rpartition('.')[0]}.weight" if is_adapter(name) else name


def _adapters(rule: Rule, trained: Mapping[str, Tensor], parts: Parts) -> list[_Written]:
    """The adapters of a rule's tensors, made of those of our parameters."""
    stems = [name.removesuffix(".weight") for name in rule.ours]
    if not any(f"{stem}.up" in trained for stem in stems):
        return []
    assert all(f"{stem}.up" in trained for stem in stems), rule.ours
    settings = parts.of(rule.ours[0])
    downs = [trained[f"{stem}.down"] for stem in stems]
    ups = rule.write(_beside_each_other([trained[f"{stem}.up"] for stem in stems]))
    magnitudes: Sequence[Tensor | None] = [None] * len(ups)
    if settings.dora:
        columns = [trained[f"{stem}.magnitude"][:, None] for stem in stems]
        magnitudes = [column[:, 0].clone() for column in rule.write(columns)]
    down = torch.cat(downs)
    return [
        _Written(name.removesuffix(".weight"), down.clone(), up.clone(), magnitude, settings.scale)
        for name, up, magnitude in zip(rule.theirs, ups, magnitudes, strict=True)
    ]


def _beside_each_other(ups: Sequence[Tensor]) -> list[Tensor]:
    """Each with columns of zeros where the others have theirs."""
    wide = torch.block_diag(*ups)
    return list(wide.split([len(up) for up in ups]))


def _replaced(rule: Rule, whole: Mapping[str, Tensor]) -> Iterable[tuple[str, Tensor]]:
    if not any(name in whole for name in rule.ours):
        return ()
    assert all(name in whole for name in rule.ours), rule.ours
    return zip(rule.theirs, rule.write([whole[name] for name in rule.ours]), strict=True)


def _modules(everything: Sequence[str], replaced: Iterable[str]) -> tuple[str, ...]:
    """The fewest modules that hold exactly the replaced tensors."""
    waiting, found = set(replaced), list[str]()
    for name in everything:
        path = name.split(".")
        for length in range(1, len(path) if name in waiting else 0):
            module = ".".join(path[:length])
            inside = {other for other in everything if other.startswith(f"{module}.")}
            if inside <= waiting:
                found.append(module)
                waiting -= inside
                break
    if waiting:
        raise ValueError(
            f"PEFT replaces whole modules; {', '.join(sorted(waiting))} are parts of such that "
            "were not trained; train the whole part, or nothing of it"
        )
    return tuple(found)


def _describe(
    adapters: Sequence[_Written],
    parts: Parts,
    whole: tuple[str, ...],
    config: InternVLConfig,
    base: Base,
) -> AdapterConfig:
    """adapter_config.json: the first part's rank and alpha, and patterns for the others."""
    kinds = {(settings.dropout, settings.dora, settings.rslora) for settings in parts.adapted}
    assert len(kinds) == 1, kinds
    ((dropout, dora, rslora),) = kinds
    rank, alpha = parts.adapted[0].rank, parts.adapted[0].alpha
    patterns = _patterns([written.module for written in adapters], config)
    ranks, alphas = dict[str, int](), dict[str, float]()
    for written in adapters:
        if written.rank != rank:
            ranks[patterns[written.module]] = written.rank
        if written.alpha(rslora) != alpha:
            alphas[patterns[written.module]] = written.alpha(rslora)
    targets = "|".join(dict.fromkeys(patterns.values()))
    return AdapterConfig(
        rank, alpha, dropout, dora, rslora, ranks, alphas, targets, whole, base.name
    )


def _patterns(modules: Sequence[str], config: InternVLConfig) -> dict[str, str]:
    """For every module a regular expression that it shares with those of the other layers."""
    numbers: dict[str, list[int]] = {}
    for module in modules:
        kind, number = _kind(module)
        numbers.setdefault(kind, []).append(number)
    counts = {"vision_tower": config.vision.num_layers, "language_model": config.decoder.num_layers}
    layers = {
        kind: r"\d+"
        if len(found) == counts[kind.split(".")[1]]
        else f"({'|'.join(map(str, sorted(found)))})"
        for kind, found in numbers.items()
    }
    kinds = {module: _kind(module)[0] for module in modules}
    return {
        module: re.escape(kind).replace(r"\{i\}", layers[kind]) for module, kind in kinds.items()
    }


def _kind(module: str) -> tuple[str, int]:
    """A module's name without its layer's number, and that number."""
    number = re.search(r"\.(\d+)\.", module)
    assert number is not None, module
    return module.replace(number[0], ".{i}.", 1), int(number[1])
