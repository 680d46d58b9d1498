"""The kinds of pieces in a SentencePiece model file, which its library does not tell.

The file is a protobuf message: fields of a number and a wire type. Pieces are field 1; in each,
field 3 is the kind, and NORMAL where it is missing (`sentencepiece_model.proto`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5


class PieceType(IntEnum):
    """What a piece is for."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class _Field:
    number: int
    value: int
    content: bytes = b""


def piece_types(model: bytes) -> list[PieceType]:
    """The kind of every piece, by its id."""
    types = []
    for field in _fields(model):
        if field.number == 1:
            kinds = [inner.value for inner in _fields(field.content) if inner.number == 3]
            types.append(PieceType(kinds[-1] if kinds else PieceType.NORMAL))
    return types


def _fields(message: bytes) -> Iterator[_Field]:
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, position = _varint(message, position)
            yield _Field(number, value)
            continue
        size = {FIXED64: 8, FIXED32: 4}.get(wire)
        if size is None:
            size, position = _varint(message, position)
        yield _Field(number, 0, message[position : position + size])
        position += size


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """A number of seven bits per byte, and where it ends."""
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
