"""Weights written as a checkpoint of any layout, one tensor at a time.

Headers are written before the tensors they describe, so neither format needs more than one tensor
in memory: safetensors has its table of offsets first, and a `.pdparams` file is a pickle whose
opcodes are put down here by hand (protocol 4, the names that every numpy can load).
"""

import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from internvl2.checkpoint.config_files import Layout
from internvl2.checkpoint.fields import write_json
from internvl2.checkpoint.layouts import Rule, Shapes

MAX_SHARD_BYTES = 5_000_000_000

_SAFETENSORS_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
_NUMPY_NAMES = {
    torch.float64: "f8",
    torch.float32: "f4",
    torch.float16: "f2",
    torch.bfloat16: "u2",
}


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor that will be written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Bytes of its content."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Writing:
    """What will be written: a layout's rules, and the type of each of our parameters."""

    layout: Layout
    rules: Sequence[Rule]
    shapes: Shapes
    dtypes: Mapping[str, torch.dtype]

    def plan(self) -> list[Planned]:
        """Every tensor of the checkpoint, in the order of writing."""
        return [
            Planned(name, shape, self.dtype(rule))
            for rule in self.rules
            for name, shape in zip(rule.theirs, rule.their_shapes(self.shapes), strict=True)
        ]

    def dtype(self, rule: Rule) -> torch.dtype:
        """The type that a rule's tensors are written in: one that holds all its parameters."""
        return reduce(torch.promote_types, (self.dtypes[name] for name in rule.ours))

    def tensors(self, parameter: Callable[[str], Tensor]) -> Iterator[Tensor]:
        """The tensors of the plan, made from our parameters."""
        for rule in self.rules:
            written = rule.write([parameter(name) for name in rule.ours])
            while written:
                yield written.pop(0).to("cpu", self.dtype(rule)).contiguous()


def write_weights(
    writing: Writing, parameter: Callable[[str], Tensor], directory: Path, max_shard_bytes: int
) -> None:
    """Write the weights into a directory: one file, or shards and their index."""
    shards = _shards(writing.plan(), max_shard_bytes)
    tensors = writing.tensors(parameter)
    paddle = writing.layout == "paddlemix"
    stem, suffix = ("model_state", ".pdparams") if paddle else ("model", ".safetensors")
    names = [
        f"{stem}-{i:05d}-of-{len(shards):05d}{suffix}" if len(shards) > 1 else stem + suffix
        for i in range(1, len(shards) + 1)
    ]
    for name, shard in zip(names, shards, strict=True):
        with (directory / name).open("wb") as file:
            (_write_pdparams if paddle else _write_safetensors)(file, shard, tensors)
            file.flush()
            os.fsync(file.fileno())
    if len(shards) > 1:
        total = sum(planned.size for shard in shards for planned in shard)
        listed = {p.name: name for name, shard in zip(names, shards, strict=True) for p in shard}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(listed.items()))}
        write_json(directory / f"{stem}{suffix}.index.json", index)


def _shards(plan: list[Planned], max_bytes: int) -> list[list[Planned]]:
    """The plan cut into runs of at most `max_bytes`, or of one larger tensor."""
    shards: list[list[Planned]] = [[]]
    filled = 0
    for planned in plan:
        if shards[-1] and filled + planned.size > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(planned)
        filled += planned.size
    return shards


def _write_safetensors(file: BinaryIO, shard: list[Planned], tensors: Iterator[Tensor]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for planned in shard:
        header[planned.name] = {
            "dtype": _SAFETENSORS_NAMES[planned.dtype],
            "shape": list(planned.shape),
            "data_offsets": [start, start + planned.size],
        }
        start += planned.size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    file.write(struct.pack("<Q", len(encoded)) + encoded)
    for planned in shard:
        file.write(_content(planned, next(tensors)))


def _write_pdparams(file: BinaryIO, shard: list[Planned], tensors: Iterator[Tensor]) -> None:
    """A pickled dict of name -> numpy array, and Paddle's table of names (`paddle.save`)."""
    file.write(b"\x80\x04}")
    for planned in shard:
        code = _NUMPY_NAMES[planned.dtype]
        shape = b"(" + b"".join(struct.pack("<Bi", ord("J"), n) for n in planned.shape) + b"t"
        file.write(_text(planned.name))
        file.write(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R")
        file.write(b"(K\x01" + shape)
        file.write(b"cnumpy\ndtype\n" + _text(code) + b"\x89\x88\x87R")
        file.write(b"(K\x03" + _text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb")
        file.write(b"\x89\x8e" + struct.pack("<Q", planned.size))
        file.write(_content(planned, next(tensors)))
        file.write(b"tbs")
    file.write(_text("StructuredToParameterName@@") + b"}")
    for planned in shard:
        file.write(_text(planned.name) * 2 + b"s")
    file.write(b"s.")


def _text(text: str) -> bytes:
    """A pickled string."""
    encoded = text.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _content(planned: Planned, tensor: Tensor) -> memoryview:
    assert tuple(tensor.shape) == planned.shape, planned
    assert tensor.dtype is planned.dtype, planned
    return tensor.reshape(-1).view(torch.uint8).numpy().data
