"""Files of weights: found in a directory, opened, and read one tensor at a time.

Safetensors and zipped torch files are mapped into memory, not read into it. Nothing is unpickled
but by torch's `weights_only`, and by `pdparams`, which makes nothing but array descriptions.
"""

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from internvl2.checkpoint.fields import read_json
from internvl2.checkpoint.pdparams import DAMAGE, read_arrays

SINGLE_FILES = ("model.safetensors", "model_state.pdparams", "pytorch_model.bin")
INDEX_SUFFIX = ".index.json"


@dataclass(frozen=True, slots=True)
class Stored:
    """What a file says about one of its tensors."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path


@runtime_checkable
class TensorSource(Protocol):
    """Named tensors, each read when it is asked for."""

    @property
    def stored(self) -> Mapping[str, Stored]:
        """Every tensor's shape, type and file."""
        ...

    def read(self, name: str) -> Tensor:
        """The tensor of that name, on the CPU; it may be a view of the file."""
        ...


def open_weights(directory: Path) -> TensorSource:
    """The weights in a directory, single file or shards, in any of the formats we know."""
    for name in SINGLE_FILES:
        if (directory / (name + INDEX_SUFFIX)).is_file():
            return _open_shards(directory / (name + INDEX_SUFFIX))
        if (directory / name).is_file():
            return open_file(directory / name)
    if any(directory.glob("model_state.tp*.pdparams")):
        raise ValueError(
            f"{directory} holds weights that are split for tensor parallelism "
            "(model_state.tp*.pdparams); merge them into model_state.pdparams first"
        )
    wanted = ", ".join(f"{name}[{INDEX_SUFFIX}]" for name in SINGLE_FILES)
    raise FileNotFoundError(f"{directory} holds no weights; looked for {wanted}")


def open_file(path: Path) -> TensorSource:
    """One file of weights, its format told by its name."""
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    if path.suffix == ".pdparams":
        return PaddleFile(path)
    return TorchFile(path)


class SafetensorsFile:
    """A safetensors file; 16-bit unsigned numbers in it are Paddle's way to write bfloat16."""

    def __init__(self, path: Path):
        self._path = path
        try:
            self._file = safe_open(path, framework="pt", device="cpu")
            self.stored = {name: self._describe(name) for name in self._file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or incomplete: {error}") from None

    def read(self, name: str) -> Tensor:
        """The tensor of that name, a view of the mapped file."""
        return _as_floats(self._file.get_tensor(name))

    def _describe(self, name: str) -> Stored:
        part = self._file.get_slice(name)
        kind = part.get_dtype()
        if kind not in _SAFETENSORS_TYPES:
            known = ", ".join(_SAFETENSORS_TYPES)
            raise ValueError(f"{self._path}: {name} has type {kind}; supported: {known}")
        return Stored(tuple(part.get_shape()), _SAFETENSORS_TYPES[kind], self._path)


class TorchFile:
    """A `pytorch_model.bin`: read with `weights_only`, mapped where it is the zipped kind."""

    def __init__(self, path: Path):
        zipped = zipfile.is_zipfile(path)
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        except (pickle.UnpicklingError, *DAMAGE) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else "it ends early"
            raise ValueError(f"{path} is damaged or holds more than tensors: {reason}") from None
        if not isinstance(tensors, dict):
            raise ValueError(f"{path} holds {type(tensors).__name__}; it must hold named tensors")
        for name, value in tensors.items():
            if not isinstance(value, Tensor):
                raise ValueError(f"{path}: {name!r} is {type(value).__name__}, not a tensor")
            if not isinstance(name, str):
                raise ValueError(f"{path}: a tensor is named {name!r}; it must be a string")
            if value.layout is not torch.strided or not value.is_floating_point():
                kind = f"{value.dtype}, {value.layout}".replace("torch.", "")
                raise ValueError(f"{path}: {name} is {kind}; it must be dense and floating-point")
        self._tensors = tensors
        self.stored = {k: Stored(tuple(x.shape), x.dtype, path) for k, x in tensors.items()}

    def read(self, name: str) -> Tensor:
        """The tensor of that name."""
        return self._tensors[name]


class PaddleFile:
    """A `.pdparams` file, its arrays mapped, bfloat16 kept in 16-bit unsigned numbers."""

    def __init__(self, path: Path):
        self._arrays = read_arrays(path)
        self.stored = {
            name: Stored(array.shape, _as_floats(torch.empty(0, dtype=array.dtype)).dtype, path)
            for name, array in self._arrays.items()
        }

    def read(self, name: str) -> Tensor:
        """The tensor of that name, a view of the mapped file where it is stored in one piece."""
        return _as_floats(self._arrays[name].read())


@dataclass(frozen=True, slots=True)
class Shards:
    """Several files that an index joins."""

    files: Mapping[str, TensorSource]
    """For every tensor the file that holds it."""
    stored: Mapping[str, Stored]

    def read(self, name: str) -> Tensor:
        """The tensor of that name."""
        return self.files[name].read(name)


def _open_shards(index: Path) -> Shards:
    """The shards that an index names; it and they must agree on every tensor."""
    listed = read_json(index).section("weight_map").values
    opened: dict[str, TensorSource] = {}
    for file in sorted({str(file) for file in listed.values()}):
        path = index.parent / file
        if Path(file).name != file:
            raise ValueError(f"{index} names {file!r}, which is not a file beside it")
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; {index.name} names it")
        opened[file] = open_file(path)
    for name, file in listed.items():
        if name not in opened[file].stored:
            raise ValueError(f"{index} says that {name} is in {file}, which does not hold it")
    for file, source in opened.items():
        for name in source.stored:
            if listed.get(name) != file:
                raise ValueError(
                    f"{index.parent / file} holds {name}; {index.name} does not say so"
                )
    files = {name: opened[file] for name, file in listed.items()}
    return Shards(files, {name: source.stored[name] for name, source in files.items()})


def _as_floats(tensor: Tensor) -> Tensor:
    return tensor.view(torch.bfloat16) if tensor.dtype is torch.uint16 else tensor


_SAFETENSORS_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U16": torch.bfloat16,
    "I32": torch.int32,
}
