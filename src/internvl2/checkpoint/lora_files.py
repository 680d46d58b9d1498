"""Adapters in PEFT's format: read, compared with the model they are for, merged while it is read.

An adapter keeps the names that it was made with, transformers' or the released checkpoints'. Our
parameters are turned into the tensors of those names, changed there, and turned back: a matrix that
one of the two sides has in one piece and the other in several needs nothing special.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from internvl2.checkpoint.adapter_config import AdapterConfig, read_adapter_config
from internvl2.checkpoint.config_files import Layout
from internvl2.checkpoint.files import TensorSource, open_file
from internvl2.checkpoint.layouts import Rule, Shapes, canonical_name, rules
from internvl2.config import InternVLConfig
from internvl2.model.lora import LoraSettings, merged_weight

FILES = ("adapter_model.safetensors", "adapter_model.bin")
FINGERPRINT = "base_fingerprint"
"""Key in the metadata of adapter_model.safetensors, where PEFT passes over it."""
ADAPTED_LAYOUTS: tuple[Layout, ...] = ("hf", "opengvlab")
SHOWN = 10
"""How many unknown tensors one message lists."""
_WRAPPED = (
    (r"^base_model\.model\.", ""),
    (r"^(language_model|vision_model)\.base_model\.model\.", r"\1."),
    (r"\.modules_to_save\.(?!weight$|bias$)\w+\.", "."),
    (r"\.modules_to_save\.", "."),
    (r"\.base_layer\.", "."),
)
"""What PEFT and the official fine-tuner put into names when they wrap a model or a part of one.

With an adapted head, PEFT stores the matrix below the adapter as well (`base_layer`).
"""
_FACTOR = re.compile(r"\.lora_(?P<kind>A|B|magnitude_vector)(\.(?!weight$)\w+)?(\.weight)?$")
"""A tensor of an adapter, with or without the name that PEFT gives it while it is in a model."""


class Misfit(ValueError):
    """An adapter's tensor that a model has no place for."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """The adapter of one matrix."""

    down: Tensor
    """[rank, inputs], PEFT's `lora_A`."""
    up: Tensor
    """[outputs, rank], PEFT's `lora_B`."""
    magnitude: Tensor | None
    """[outputs], DoRA's lengths of rows."""
    settings: LoraSettings

    def merge(self, base: Tensor) -> Tensor:
        """The matrix with its adapter, at least in fp32, on the matrix's device."""
        wide = base.to(torch.promote_types(base.dtype, torch.float32))
        down, up = self.down.to(base.device), self.up.to(base.device)
        magnitude = None if self.magnitude is None else self.magnitude.to(base.device)
        return merged_weight(wide, down, up, magnitude, self.settings)


@dataclass(frozen=True, slots=True)
class Contents:
    """What an adapter's file says that it holds, whatever model it is for."""

    ranks: Mapping[str, int]
    """By adapted module."""
    replaced: tuple[str, ...]
    """Tensors that were trained as a whole."""
    parameters: int


@dataclass(frozen=True, slots=True)
class Adapter:
    """What training changed in a model, by the names of the layout that it was made with."""

    directory: Path
    config: AdapterConfig
    rules: list[Rule]
    updates: Mapping[str, LowRank]
    replaced: Mapping[str, Tensor]
    """Tensors that were trained as a whole."""

    def changes(self, rule: Rule) -> bool:
        """Whether any of a rule's tensors is different from the base's."""
        return any(name in self.updates or name in self.replaced for name in rule.theirs)

    def merge(self, rule: Rule, ours: list[Tensor]) -> list[Tensor]:
        """Our parameters of a rule with the adapter in them; adapted matrices in fp32."""
        if not self.changes(rule):
            return ours
        theirs = zip(rule.theirs, rule.write(ours), strict=True)
        return rule.read([self._merged(name, tensor) for name, tensor in theirs])

    def _merged(self, name: str, tensor: Tensor) -> Tensor:
        tensor = self.replaced[name].to(tensor.device) if name in self.replaced else tensor
        return self.updates[name].merge(tensor) if name in self.updates else tensor


def with_adapter(
    parameters: Iterable[tuple[str, Tensor]], adapter: Adapter, device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """A model's parameters with an adapter merged in, which is computed on `device`.

    They come one by one; only those that one of the adapter's matrices is made of wait for each
    other.
    """
    rule_of = {name: rule for rule in adapter.rules for name in rule.ours}
    waiting: dict[str, Tensor] = {}
    for name, tensor in parameters:
        rule = rule_of[name]
        if not adapter.changes(rule):
            yield name, tensor
            continue
        waiting[name] = tensor.to(device)
        if all(other in waiting for other in rule.ours):
            ours = [waiting.pop(other) for other in rule.ours]
            yield from zip(rule.ours, adapter.merge(rule, ours), strict=True)
    assert not waiting, list(waiting)


def fingerprint(parameter: Callable[[str], Tensor], config: InternVLConfig) -> str:
    """A hash of some of a model's numbers, the same in every layout and nearly every format.

    They are rounded to bfloat16, and those that fp16 has too few bits for are taken as 0. Only fp32
    numbers that were rounded to fp16 before may be others: rounded twice, some end elsewhere.
    """
    state = sha256()
    for name in _sampled(config):
        matrix = parameter(name)
        rows = matrix[:: max(1, len(matrix) // 16)].to(torch.bfloat16)
        rows = torch.where(rows.abs() < torch.finfo(torch.float16).smallest_normal, 0, rows)
        state.update(name.encode())
        state.update(rows.contiguous().view(torch.int16).numpy().tobytes())
    return state.hexdigest()


def read_fingerprint(directory: Path) -> str | None:
    """The fingerprint of an adapter's base; adapters of other programs have none."""
    path = directory / FILES[0]
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get(FINGERPRINT)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or incomplete: {error}") from None


def read_adapter(directory: Path, config: InternVLConfig, shapes: Shapes) -> Adapter:
    """The adapter in a directory, for a model of these shapes; what does not fit is named."""
    described = read_adapter_config(directory)
    source = _open(directory)
    named = _find_places(directory, list(source.stored), config, shapes)
    wanted = {
        name: shape
        for rule in named.rules
        for name, shape in zip(rule.theirs, rule.their_shapes(shapes), strict=True)
    }
    updates = {
        place: _low_rank(source, parts, described, wanted[place])
        for place, parts in named.factors.items()
    }
    if not updates:
        raise ValueError(f"{directory} holds no low-rank adapters")
    replaced = {
        place: _whole(source, name, wanted[place]) for place, name in named.replaced.items()
    }
    return Adapter(directory, described, named.rules, updates, replaced)


def read_contents(directory: Path) -> Contents:
    """What an adapter's directory holds, its numbers not read."""
    stored = _open(directory).stored
    plain = {name: _plain(name) for name in stored}
    downs = {
        name: part for name in stored if (part := _FACTOR.search(name)) and part["kind"] == "A"
    }
    return Contents(
        {plain[name].removesuffix(".weight"): stored[name].shape[0] for name in downs},
        tuple(plain[name] for name in stored if not _FACTOR.search(name)),
        sum(torch.Size(tensor.shape).numel() for tensor in stored.values()),
    )


def _open(directory: Path) -> TensorSource:
    for name in FILES:
        if (directory / name).is_file():
            return open_file(directory / name)
    raise FileNotFoundError(f"{directory} holds no weights; looked for {', '.join(FILES)}")


def _sampled(config: InternVLConfig) -> list[str]:
    """Matrices of every part, from its beginning to its end.

    Tuning changes a decoder's `down` or, where it is confined to attention, `q` and `v`.
    """
    vision, decoder = config.vision.num_layers, config.decoder.num_layers
    kinds = ("attention.q", "attention.v", "mlp.down")
    return [
        *(f"vision.layers.{i}.mlp.fc2.weight" for i in sorted({0, vision // 2, vision - 1})),
        "projector.linear2.weight",
        *(
            f"decoder.layers.{i}.{kind}.weight"
            for i in sorted({0, decoder // 2, decoder - 1})
            for kind in kinds
        ),
    ]


@dataclass(frozen=True, slots=True)
class _Named:
    """An adapter's tensors by the names that their places have in a layout."""

    rules: list[Rule]
    factors: Mapping[str, Mapping[str, str]]
    """For an adapted matrix, by kind, the tensors of its adapter."""
    replaced: Mapping[str, str]


def _find_places(
    directory: Path, names: Sequence[str], config: InternVLConfig, shapes: Shapes
) -> _Named:
    """What each tensor belongs to, in the layout that knows them all."""
    unknown: list[str] = []
    for layout in ADAPTED_LAYOUTS:
        table = rules(layout, config, shapes)
        places = _places(names, layout, table, config)
        if len(places) == len(names):
            return _named(directory, table, places)
        missing = [name for name in names if name not in places]
        unknown = min(unknown, missing, key=len) if unknown else missing
    more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
    raise Misfit(f"there is no place for {', '.join(unknown[:SHOWN])}{more}")


def _places(
    names: Sequence[str], layout: Layout, table: list[Rule], config: InternVLConfig
) -> dict[str, str]:
    """Each tensor's place, for those that the layout knows.

    One part of the model may have been wrapped alone; its names then begin within that part.
    """
    known = {name for rule in table for name in rule.theirs}
    places: dict[str, str] = {}
    for name in names:
        for part in ("", "language_model.", "vision_model."):
            place = canonical_name(part + _plain(name), layout, config)
            if place in known:
                places.setdefault(name, place)
    return places


def _named(directory: Path, table: list[Rule], places: Mapping[str, str]) -> _Named:
    """The tensors sorted by what they are; two for one thing would make one count for nothing."""
    factors: dict[str, dict[str, str]] = {}
    replaced: dict[str, str] = {}
    for name, place in places.items():
        part = _FACTOR.search(name)
        found, key = (factors.setdefault(place, {}), part["kind"]) if part else (replaced, place)
        if key in found:
            raise ValueError(f"{directory}: {found[key]} and {name} are for one place")
        found[key] = name
    return _Named(table, factors, replaced)


def _plain(name: str) -> str:
    """The name that a tensor's place has in a model without adapters."""
    for pattern, replacement in _WRAPPED:
        name = re.sub(pattern, replacement, name)
    return _FACTOR.sub(".weight", name)


def _whole(source: TensorSource, name: str, shape: tuple[int, ...]) -> Tensor:
    stored = source.stored[name]
    if stored.shape != shape:
        raise Misfit(f"{name} is {list(stored.shape)}; the model has {list(shape)} there")
    return source.read(name)


def _low_rank(
    source: TensorSource, parts: Mapping[str, str], config: AdapterConfig, shape: tuple[int, ...]
) -> LowRank:
    """One matrix's adapter, complete and of the shape that adapter_config.json and model give."""
    some = next(iter(parts.values()))
    file = source.stored[some].file
    needed = {"A", "B"} | ({"magnitude_vector"} if config.dora else set())
    if parts.keys() != needed:
        kinds = ", ".join(f"lora_{kind}" for kind in sorted(needed ^ parts.keys()))
        are = "lacks" if needed - parts.keys() else "has, without use_dora,"
        raise ValueError(f"{file}: the adapter of {some} {are} {kinds}")
    module = re.sub(r"^(.*\.)?base_model\.model\.", "", _FACTOR.sub("", some))
    rank = config.rank_of(module)
    wanted = {"A": (rank, *shape[1:]), "B": (*shape[:1], rank), "magnitude_vector": shape[:1]}
    for kind, name in parts.items():
        found = source.stored[name].shape
        if found != wanted[kind]:
            raise Misfit(
                f"{name} is {list(found)}; rank {rank} for the model's {list(shape)} "
                f"needs {list(wanted[kind])}"
            )
    settings = LoraSettings(
        rank, config.alpha_of(module), config.dropout, config.dora, config.rslora
    )
    magnitude = source.read(parts["magnitude_vector"]) if config.dora else None
    return LowRank(source.read(parts["A"]), source.read(parts["B"]), magnitude, settings)
