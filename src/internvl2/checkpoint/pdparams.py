"""Paddle's `.pdparams` files, read without unpickling anything but descriptions of numpy arrays.

A `.pdparams` file is a pickled dict of arrays. Its opcodes are run by the interpreter in Python's
own `pickle.py`, where the numpy names that an array needs stand for small records of ours, and
every other name is refused: no code from outside this module is ever called. An array's bytes are
not read but noted by their place in the file, and mapped when they are wanted.
"""

import math
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch
from torch import Tensor

_NAME_TABLE = "StructuredToParameterName@@"
_SLICES = "UnpackBigParamInfor@@"
_TYPES = {
    "f8": torch.float64,
    "f4": torch.float32,
    "f2": torch.float16,
    "u2": torch.uint16,
}

DAMAGE = (
    *(EOFError, LookupError, TypeError, AttributeError, ValueError, OverflowError),
    *(AssertionError, RuntimeError, struct.error),
)
"""What the interpreter of a damaged pickle raises, besides what it means to."""


@dataclass(frozen=True, slots=True)
class StoredArray:
    """An array in a file, or several pieces that are one array."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: tuple[Callable[[], np.ndarray], ...]

    def read(self) -> Tensor:
        """The array: a view of the file where it is one piece."""
        arrays = [piece() for piece in self.pieces]
        whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        return torch.from_numpy(whole.reshape(self.shape))


def read_arrays(path: Path) -> dict[str, StoredArray]:
    """Every array that a `.pdparams` file names; anything else in it is an error."""
    with path.open("rb") as file:
        try:
            content = _ArrayUnpickler(file, path).load()
        except pickle.UnpicklingError as error:
            raise ValueError(f"{path}: {error}") from None
        except DAMAGE as error:
            reason = str(error) or "it ends early"
            raise ValueError(f"{path} is damaged or incomplete: {reason}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}; it must hold named arrays")
    content.pop(_NAME_TABLE, None)
    sliced = content.pop(_SLICES, {})
    arrays = {str(name): _described(path, str(name), value) for name, value in content.items()}
    try:
        return _joined(arrays, sliced)
    except (LookupError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__} {error}"
        raise ValueError(f"{path} is damaged: its table of slices is wrong ({reason})") from None


def _joined(arrays: dict[str, StoredArray], sliced: dict[str, Any]) -> dict[str, StoredArray]:
    """The arrays, those that were written in slices (`name@@.0`, ...) whole again."""
    for name, record in sliced.items():
        parts = [arrays.pop(part) for part in record["slices"]]
        pieces = tuple(piece for part in parts for piece in part.pieces)
        shape = tuple(record["OriginShape"])
        if math.prod(shape) != sum(math.prod(part.shape) for part in parts):
            raise TypeError(f"the slices of {name} do not make {list(shape)}")
        arrays[name] = StoredArray(shape, parts[0].dtype, pieces)
    return arrays


def _described(path: Path, name: str, value: object) -> StoredArray:
    if not isinstance(value, _Array) or value.kind is None:
        raise ValueError(f"{path}: {name!r} is {type(value).__name__}, not an array")
    code = value.kind.code
    if code not in _TYPES:
        raise ValueError(f"{path}: {name} has numpy type {code!r}; supported: {', '.join(_TYPES)}")
    wanted = int(np.prod(value.shape, dtype=np.int64)) * int(code[1:])
    if value.content is None or value.content.length != wanted:
        found = 0 if value.content is None else value.content.length
        raise ValueError(f"{path} is damaged: {name} has {found} bytes instead of {wanted}")
    return StoredArray(value.shape, _TYPES[code], (value.load,))


@dataclass(frozen=True, slots=True)
class _Bytes:
    """A run of bytes: kept, or to be mapped at its place in the file."""

    length: int
    path: Path
    offset: int = -1
    kept: bytes = b""

    def array(self, kind: np.dtype) -> np.ndarray:
        if self.offset < 0 or not self.length:
            return np.frombuffer(bytearray(self.kept), kind)
        shape = (self.length // kind.itemsize,)
        return np.memmap(self.path, kind, mode="c", offset=self.offset, shape=shape)


@dataclass(slots=True)
class _Kind:
    """What stands for a `numpy.dtype` while a file is read."""

    code: str
    order: str = "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1] if state[1] in ("<", ">") else "<"


@dataclass(slots=True)
class _Array:
    """What stands for a `numpy.ndarray` while a file is read."""

    shape: tuple[int, ...] = ()
    kind: _Kind | None = None
    order: str = "C"
    content: _Bytes | None = None
    path: Path = field(default_factory=Path)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, self.kind, by_columns, content = state
        self.shape = tuple(int(n) for n in shape)
        self.order = "F" if by_columns else "C"
        if isinstance(content, bytes):
            content = _Bytes(len(content), self.path, kept=content)
        self.content = content

    def load(self) -> np.ndarray:
        if self.kind is None or self.content is None:
            raise pickle.UnpicklingError("an array without content")
        array = self.content.array(np.dtype(self.kind.order + self.kind.code))
        return array.astype(array.dtype.newbyteorder("="), copy=False).reshape(
            self.shape, order="F" if self.order == "F" else "C"
        )


class _ArrayUnpickler(pickle._Unpickler):
    """The Python interpreter of pickles, without any name but those an array needs."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    append: Callable[[object], None]
    read: Callable[[int], bytes]
    stack: list[Any]
    _unframer: Any

    def __init__(self, file: BinaryIO, path: Path):
        super().__init__(file)
        self._file, self._path = file, path

    def find_class(self, module: str, name: str) -> Any:
        """The record of ours that a name stands for."""
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return self._new_array
        if (module, name) == ("numpy", "ndarray"):
            return _Array
        if (module, name) == ("numpy", "dtype"):
            return _new_kind
        if (module, name) == ("_codecs", "encode"):
            return _encode
        raise pickle.UnpicklingError(
            f"the file names {module}.{name}; only numpy arrays are read from .pdparams files"
        )

    def persistent_load(self, pid: object) -> Any:
        """Refuse references to outside the file."""
        raise pickle.UnpicklingError(f"the file refers to something outside it: {pid!r}")

    def _new_array(self, *_: object) -> _Array:
        return _Array(path=self._path)

    def _note_bytes(self, length: int) -> None:
        """Push a run of bytes: by its place where it lies in the open file, not in a frame."""
        framed = self._unframer.current_frame is not None
        if framed or length < 4096:
            self.append(self.read(length))
            return
        offset = self._file.tell()
        end = self._file.seek(0, 2)
        if offset + length > end:
            raise EOFError(f"it ends {offset + length - end} bytes early")
        self._file.seek(offset + length)
        self.append(_Bytes(length, self._path, offset))

    def _load_binbytes(self) -> None:
        self._note_bytes(int.from_bytes(self.read(4), "little"))

    def _load_binbytes8(self) -> None:
        self._note_bytes(int.from_bytes(self.read(8), "little"))

    def _load_build(self) -> None:
        """Give a record of ours its state, and nothing else."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _Array | _Kind):
            raise pickle.UnpicklingError("the file gives state to something that is no array")
        self.stack[-1].__setstate__(state)

    dispatch[pickle.BUILD[0]] = _load_build
    dispatch[pickle.BINBYTES[0]] = _load_binbytes
    dispatch[pickle.BINBYTES8[0]] = _load_binbytes8


def _new_kind(code: str, *_: object) -> _Kind:
    return _Kind(code)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """How protocol 2 writes bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes written as {encoding!r}")
    return text.encode("latin1")
