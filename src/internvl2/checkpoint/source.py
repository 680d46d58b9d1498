"""A checkpoint on disk: which layout it has, and whether it holds exactly what the model needs."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from internvl2.checkpoint.adapter_config import read_adapter_config
from internvl2.checkpoint.adapters import merged
from internvl2.checkpoint.awq import AwqWeights, open_awq
from internvl2.checkpoint.config_files import Layout, read_lora_ranks, tied_embeddings
from internvl2.checkpoint.files import Stored, TensorSource, open_weights
from internvl2.checkpoint.layouts import (
    Rule,
    Shapes,
    canonical_name,
    head_and_embedding,
    is_ignorable,
    rules,
)
from internvl2.checkpoint.lora_files import (
    Adapter,
    Misfit,
    fingerprint,
    read_adapter,
    read_fingerprint,
    with_adapter,
)
from internvl2.config import InternVLConfig
from internvl2.model.int4 import Groups
from internvl2.model.internvl import InternVL

SHOWN = 10
"""How many faulty tensors one message lists."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The weights of a model as they lie on disk."""

    directory: Path
    layout: Layout
    shapes: Shapes
    """Our parameters."""
    rules: list[Rule]
    source: TensorSource
    names: Mapping[str, str]
    """For every name in the rules the name in the files."""
    adapter: Adapter | None = None
    """What `parameters` merges into the weights."""

    def stored(self, name: str) -> Stored:
        """Shape, type and file of the tensor that the rules call `name`."""
        return self.source.stored[self.names[name]]

    def read(self, rule: Rule) -> list[Tensor]:
        """Our parameters of one rule, in the stored type, without the adapter."""
        return rule.read([self.source.read(self.names[name]) for name in rule.theirs])

    def parameters(self, device: torch.device | None = None) -> Iterator[tuple[str, Tensor]]:
        """Every parameter of ours with its name, one rule at a time.

        They have the stored type, or fp32 where an adapter is merged into them, which is done on
        `device`, the CPU unless given.
        """
        stored = chain.from_iterable(
            zip(rule.ours, self.read(rule), strict=True) for rule in self.rules
        )
        if self.adapter is None:
            return stored
        return with_adapter(stored, self.adapter, device or torch.device("cpu"))

    @property
    def packed(self) -> AwqWeights | None:
        """The source, where the language model's matrices are stored in four bits."""
        return self.source if isinstance(self.source, AwqWeights) else None

    @property
    def packed_rules(self) -> list[Rule]:
        """Rules of the decoder's layers whose tensors are all stored in four bits."""
        modules = self.packed.modules if self.packed else ()
        return [
            rule
            for rule in self.rules
            if all(self.names[name] in modules for name in rule.theirs)
            and all(name.startswith("decoder.layers.") for name in rule.ours)
        ]

    def read_groups(self, rule: Rule) -> list[Groups]:
        """Our parameters of one of those rules, in four bits.

        Rules move rows, which scales and offsets follow.
        """
        assert self.packed is not None, self.directory
        theirs = [self.packed.groups(self.names[name]) for name in rule.theirs]
        codes = rule.read([groups.codes for groups in theirs])
        scales = rule.read([groups.scales for groups in theirs])
        offsets = rule.read([groups.offsets for groups in theirs])
        return [Groups(*parts) for parts in zip(codes, scales, offsets, strict=True)]

    def fingerprint(self, config: InternVLConfig) -> str:
        """What the adapters of this model carry, to be refused by others."""
        if self.adapter is not None:
            raise ValueError(
                f"{self.adapter.directory} is an adapter already; make a model of both with "
                "`internvl2 convert` to train another on it"
            )
        rule_of = {name: rule for rule in self.rules for name in rule.ours}

        def parameter(name: str) -> Tensor:
            rule = rule_of[name]
            return self.read(rule)[rule.ours.index(name)]

        return fingerprint(parameter, config)

    def dtype(self) -> torch.dtype:
        """The type that most of the numbers are stored in."""
        sizes: dict[torch.dtype, int] = {}
        for stored in self.source.stored.values():
            numbers = torch.Size(stored.shape).numel()
            sizes[stored.dtype] = sizes.get(stored.dtype, 0) + numbers
        return max(sizes, key=lambda dtype: sizes[dtype])


def open_checkpoint(
    directory: Path, config: InternVLConfig, adapter: Path | None = None
) -> Checkpoint:
    """The checkpoint in a directory; a missing, extra or misshapen tensor is an error.

    So is an adapter that does not fit, or that was trained on other weights.
    """
    checkpoint = _open_base(directory, config)
    if adapter is None:
        return checkpoint
    base = read_adapter_config(adapter).base
    about = f"the adapter {adapter} was trained on {base or 'a model that it does not name'}"
    stamp = read_fingerprint(adapter)
    if stamp is not None and stamp != checkpoint.fingerprint(config):
        raise ValueError(f"{about}; the weights of {directory} are others")
    try:
        found = read_adapter(adapter, config, checkpoint.shapes)
    except Misfit as error:
        raise ValueError(f"{about} and does not fit {directory}: {error}") from None
    for key in found.config.passed_over:
        _logger.warning("the adapter %s has the key %r, which is passed over", adapter, key)
    if stamp is None and (base is None or Path(base).resolve() != directory.resolve()):
        _logger.warning("%s; whether %s is that model, only shapes can tell", about, directory)
    return replace(checkpoint, adapter=found)


def _open_base(directory: Path, config: InternVLConfig) -> Checkpoint:
    source = open_awq(open_weights(directory), directory)
    source = merged(source, *read_lora_ranks(directory))
    layout = find_layout(source, config, directory)
    if layout == "paddlemix" and isinstance(source, AwqWeights):
        raise ValueError(f"{directory}: four-bit weights in PaddleMIX's layout are not supported")
    shapes = parameter_shapes(config)
    table = rules(layout, config, shapes)
    names: dict[str, str] = {}
    for name in source.stored:
        first = names.setdefault(canonical_name(name, layout, config), name)
        if first != name:
            raise ValueError(f"{directory} holds the same parameter twice: {first} and {name}")
    head, embedding = head_and_embedding(layout, config)
    if head not in names and embedding in names and tied_embeddings(directory):
        names[head] = names[embedding]
    _check(directory, table, shapes, {name: source.stored[names[name]].shape for name in names})
    return Checkpoint(directory, layout, shapes, table, source, names)


def parameter_shapes(config: InternVLConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of a model, without making it."""
    with torch.device("meta"):
        state = InternVL(config).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def find_layout(source: TensorSource, config: InternVLConfig, directory: Path) -> Layout:
    """Which layout tensors are in, told by their names and, for Paddle, by one matrix's shape.

    Paddle keeps every matrix as [in, out]. Many are square, so the one that cannot be, the vision
    tower's `qkv`, decides for the whole checkpoint.
    """
    names = source.stored
    if any("vision_tower." in name for name in names):
        return "hf"
    if not any(name.startswith(("vision_model.", "mlp1.")) for name in names):
        some = ", ".join(list(names)[:3])
        raise ValueError(f"{directory}: tensors named as in no known layout: {some}")
    width = config.vision.hidden_size
    qkv = names.get("vision_model.encoder.layers.0.attn.qkv.weight")
    if qkv is not None and qkv.shape == (width, 3 * width):
        return "paddlemix"
    return "opengvlab"


def _check(
    directory: Path, table: list[Rule], shapes: Shapes, found: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise one error that names every fault, up to ten of each kind."""
    wanted = {
        name: shape
        for rule in table
        for name, shape in zip(rule.theirs, rule.their_shapes(shapes), strict=True)
    }
    missing = [f"{name} {list(wanted[name])}" for name in wanted if name not in found]
    extra = [
        f"{name} {list(found[name])}"
        for name in found
        if name not in wanted and not is_ignorable(name)
    ]
    misshapen = [
        f"{name} is {list(found[name])} instead of {list(wanted[name])}"
        for name in wanted
        if name in found and found[name] != wanted[name]
    ]
    faults = [
        f"{what}: {', '.join(listed[:SHOWN])}"
        + (f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else "")
        for what, listed in (("missing", missing), ("extra", extra), ("misshapen", misshapen))
        if listed
    ]
    if faults:
        raise ValueError(
            f"{directory} does not hold what its config.json says; " + "; ".join(faults)
        )
