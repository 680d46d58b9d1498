"""Checkpoints whose language model has four-bit weights, in the files of AutoAWQ and lmdeploy.

Each matrix [outputs, inputs] is stored as three tensors, transposed: `qweight`, eight codes in an
int32, [inputs, outputs / 8]; `scales` [groups, outputs]; `qzeros`, the codes that stand for 0,
packed alike, [groups, outputs / 8]. A weight is (code - zero) * scale. From its lowest four bits
on, an int32 holds the outputs 0, 2, 4, 6, 1, 3, 5, 7 of eight.

Everywhere but in `groups` they look like plain weights, which are dequantised as they are read.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange, repeat
from jaxtyping import Int32, UInt8
from torch import Tensor

from internvl2.checkpoint.fields import Section, read_json
from internvl2.checkpoint.files import Stored, TensorSource
from internvl2.model.int4 import MIDDLE, Groups

ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Which four bits of an int32 each of eight outputs is in."""
PARTS = ("qweight", "qzeros", "scales")


@dataclass(frozen=True, slots=True)
class AwqFormat:
    """What config.json says of the four-bit weights."""

    group: int
    """Inputs that share a scale."""


@dataclass(frozen=True, slots=True)
class AwqWeights:
    """Tensors of a checkpoint, its packed matrices under the names that plain ones would have."""

    source: TensorSource
    stored: Mapping[str, Stored]
    modules: Mapping[str, str]
    """For every packed weight the beginning of its tensors' names."""
    format: AwqFormat

    def read(self, name: str) -> Tensor:
        """The tensor of that name, dequantised where it is packed."""
        if name not in self.modules:
            return self.source.read(name)
        groups = self.groups(name)
        scales, offsets = (
            repeat(x, "o groups -> o (groups group)", group=self.format.group)
            for x in (groups.scales, groups.offsets)
        )
        weight = (groups.codes.float() - MIDDLE) * scales + offsets
        return weight.to(self.stored[name].dtype)

    def groups(self, name: str) -> Groups:
        """A packed weight as it is, its scales and offsets in fp32."""
        weight, zeros, scales = (self.source.read(f"{self.modules[name]}{p}") for p in PARTS)
        wide = scales.float().T
        return Groups(unpack(weight).T, wide, (MIDDLE - unpack(zeros).T.float()) * wide)


def open_awq(source: TensorSource, directory: Path) -> TensorSource:
    """`source` as it is where nothing in it is packed, else as plain weights."""
    described = read_awq(directory)
    packed = [name for name in source.stored if name.endswith(".qweight")]
    if described is None:
        _refuse_integers(source, source.stored)
        return source
    if not packed:
        raise ValueError(
            f"{directory}: config.json has a quantization_config, but no weight is packed"
        )
    beginnings = [name.removesuffix("qweight") for name in packed]
    modules = {f"{beginning}weight": beginning for beginning in beginnings}
    names = {f"{module}{part}" for module in modules.values() for part in PARTS}
    plain = {name: stored for name, stored in source.stored.items() if name not in names}
    _refuse_integers(source, plain)
    weights = {name: _describe(source, module, described) for name, module in modules.items()}
    return AwqWeights(source, plain | weights, modules, described)


def read_awq(directory: Path) -> AwqFormat | None:
    """How a checkpoint's config.json says that weights are packed; None where they are plain."""
    config = read_json(directory / "config.json")
    sections = [config]
    sections += [config.section(k) for k in ("llm_config", "text_config") if k in config.values]
    for section in sections:
        # PaddleNLP writes one without a method where nothing is quantised.
        described = section.values.get("quantization_config")
        if isinstance(described, dict) and described.get("quant_method") is not None:
            return _read_format(section.section("quantization_config"))
    return None


def unpack(packed: Int32[Tensor, "rows words"]) -> UInt8[Tensor, "rows columns"]:
    """The four-bit numbers in int32, in their order."""
    shifts = torch.tensor([4 * place for place in ORDER], dtype=torch.int32)
    return rearrange((packed[..., None] >> shifts & 15).to(torch.uint8), "r words n -> r (words n)")


def _read_format(section: Section) -> AwqFormat:
    section.require("quant_method", "awq")
    section.require("version", "gemm", "GEMM", default="gemm")
    section.require("bits", 4)
    section.require("zero_point", True, default=True)
    return AwqFormat(section.count("group_size"))


def _describe(source: TensorSource, module: str, described: AwqFormat) -> Stored:
    """The plain weight that three tensors stand for, if they fit together."""
    weight = source.stored[f"{module}qweight"]
    inputs, words = weight.shape
    groups, rest = divmod(inputs, described.group)
    if rest:
        raise ValueError(f"{module}qweight has {inputs} inputs, not groups of {described.group}")
    shapes = ((inputs, words), (groups, words), (groups, 8 * words))
    for part, shape in zip(PARTS, shapes, strict=True):
        stored = source.stored.get(f"{module}{part}")
        if stored is None:
            raise ValueError(f"{weight.file} holds {module}qweight, but no {module}{part} is here")
        fits = stored.dtype.is_floating_point if part == "scales" else stored.dtype is torch.int32
        if stored.shape != shape or not fits:
            found = f"{str(stored.dtype).removeprefix('torch.')} {[*stored.shape]}"
            wanted = f"{'float16' if part == 'scales' else 'int32'} {[*shape]}"
            raise ValueError(f"{stored.file}: {module}{part} is {found} instead of {wanted}")
    scales = source.stored[f"{module}scales"]
    return Stored((8 * words, inputs), scales.dtype, weight.file)


def _refuse_integers(source: TensorSource, names: Iterable[str]) -> None:
    """Raise where numbers are stored that no plain weight has."""
    for name in names:
        stored = source.stored[name]
        if not stored.dtype.is_floating_point:
            kind = str(stored.dtype).removeprefix("torch.")
            raise ValueError(
                f"{stored.file}: {name} has type {kind}; supported: floating-point numbers, and "
                "int32 where config.json has a quantization_config of AWQ"
            )
