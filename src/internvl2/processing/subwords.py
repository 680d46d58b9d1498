"""The vocabularies themselves: text without special tokens to ids, ids to bytes.

Two kinds: SentencePiece models (InternLM2, Yi, Phi-3), and byte-level BPE through the tokenizers
library (Qwen, Llama 3). Neither matches added tokens in text; that is the tokenizer's decision.
"""

import json
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from internvl2.processing.tokenizer_files import TokenizerFiles, read_json_object

SPACE = "\u2581"
"""SentencePiece writes a space like this."""

ERRORS_ONLY = 2
"""SentencePiece's log level: it warns of a harmless piece in InternLM2's released vocabulary."""

NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"
"""A protobuf field that, appended to a SentencePiece model, sets normalizer_spec.add_dummy_prefix
to false: messages that follow each other are merged."""

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2 cuts text before merging (`tokenization_qwen2.py`)."""


@runtime_checkable
class Subwords(Protocol):
    """A vocabulary that turns plain text into ids and back."""

    size: int
    """Number of tokens of the vocabulary itself, added tokens not counted."""

    def encode(self, text: str) -> list[int]:
        """The ids of a run of plain text."""
        ...

    def starts(self, text: str) -> list[int]:
        """For each id of `encode(text)`, the index of the character in which it begins."""
        ...

    def id_of(self, piece: str) -> int | None:
        """The id of a piece, or None where the vocabulary lacks it."""
        ...

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes of text for which a token stands; none for control tokens."""
        ...


class SentencePieceSubwords:
    """A tokenizer.model, read without the leading space that `dummy_prefix` says it writes."""

    def __init__(self, path: Path) -> None:
        from sentencepiece import SentencePieceProcessor, SetMinLogLevel

        SetMinLogLevel(ERRORS_ONLY)
        data = path.read_bytes()
        try:
            model = SentencePieceProcessor(model_proto=data)
            self._model = SentencePieceProcessor(model_proto=data + NO_DUMMY_PREFIX)
        except RuntimeError as error:
            raise ValueError(f"{path} is not a SentencePiece model ({error})") from None
        self.size: int = model.get_piece_size()
        self.unk_id: int = model.unk_id()
        self.bos_id: int = model.bos_id()
        self.dummy_prefix = "".join(model.encode("a", out_type=str)).startswith(SPACE)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": self._model.serialized_model_proto()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In another process, which must be told to keep quiet before it reads the model."""
        from sentencepiece import SentencePieceProcessor, SetMinLogLevel

        SetMinLogLevel(ERRORS_ONLY)
        self.__dict__.update(state, _model=SentencePieceProcessor(model_proto=state["_model"]))

    def encode(self, text: str) -> list[int]:
        """The ids of a run of plain text."""
        return self._model.encode(text)

    def starts(self, text: str) -> list[int]:
        """Where, in characters, each id of `encode(text)` begins."""
        starts, position = [], 0
        for token_id in self.encode(text):
            if self.is_byte(token_id):
                lead = not 0x80 <= self.bytes_of(token_id)[0] < 0xC0
                starts.append(position if lead else max(position - 1, 0))
                position += lead
            else:
                starts.append(position)
                position += 1 if token_id == self.unk_id else len(self.piece(token_id))
        return starts

    def id_of(self, piece: str) -> int | None:
        """The id of a piece, or None."""
        token_id = self._model.piece_to_id(piece)
        return token_id if self._model.id_to_piece(token_id) == piece else None

    def piece(self, token_id: int) -> str:
        """The text of a vocabulary entry, spaces as U+2581."""
        return self._model.id_to_piece(token_id)

    def score(self, token_id: int) -> float:
        """How early a piece is merged: the highest first."""
        return self._model.get_score(token_id)

    def is_byte(self, token_id: int) -> bool:
        """Whether a token stands for one byte of a character without a piece of its own."""
        return self._model.is_byte(token_id)

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes of text for which a token stands."""
        if self._model.is_control(token_id):
            return b""
        if self._model.is_unknown(token_id):
            return " \u2047 ".encode()
        piece = self._model.id_to_piece(token_id)
        if self._model.is_byte(token_id):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(SPACE, " ").encode()


class LibrarySubwords:
    """A BPE of the tokenizers library, without added tokens and post-processor of its own."""

    def __init__(self, definition: dict[str, Any], source: Path) -> None:
        from tokenizers import Tokenizer

        _check_bpe(definition, source)
        plain = definition | {
            "added_tokens": [],
            "post_processor": None,
            "truncation": None,
            "padding": None,
            "pre_tokenizer": _without_first_prefix(definition.get("pre_tokenizer")),
        }
        self._library = Tokenizer.from_str(json.dumps(plain))
        self._byte_of = {char: number for number, char in byte_alphabet().items()}
        parts = json.dumps([definition.get("decoder"), definition.get("pre_tokenizer")])
        self.byte_level = "ByteLevel" in parts
        self.size: int = self._library.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """The ids of a run of plain text."""
        return self._library.encode(text, add_special_tokens=False).ids

    def starts(self, text: str) -> list[int]:
        """Where, in characters, each id of `encode(text)` begins."""
        offsets = self._library.encode(text, add_special_tokens=False).offsets
        return [start for start, _ in offsets]

    def id_of(self, piece: str) -> int | None:
        """The id of a piece, or None."""
        return self._library.token_to_id(piece)

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes of text for which a token stands."""
        piece = self._library.id_to_token(token_id) or ""
        if self.byte_level:
            if all(char in self._byte_of for char in piece):
                return bytes(self._byte_of[char] for char in piece)
            return piece.encode()
        if len(piece) == 6 and piece.startswith("<0x"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(SPACE, " ").encode()


def byte_alphabet() -> dict[int, str]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [number for number in range(256) if number not in printable]
    alphabet = {number: chr(number) for number in printable}
    return alphabet | {number: chr(256 + index) for index, number in enumerate(others)}


def qwen2_definition(files: TokenizerFiles) -> dict[str, Any]:
    """The content of a tokenizer.json for a vocab.json and merges.txt as Qwen2 reads them."""
    vocabulary = read_json_object(files.directory / "vocab.json")
    comment = "#" if files.drops_hash_merges else "#version"
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": QWEN2_SPLIT},
                    "behavior": "Isolated",
                    "invert": False,
                },
                byte_level_part(),
            ],
        },
        "post_processor": None,
        "decoder": byte_level_part(),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": _read_merges(files.directory / "merges.txt", comment),
        },
    }


def byte_level_part() -> dict[str, Any]:
    """The byte-level step of a tokenizer.json, as pre-tokenizer and as decoder."""
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }


def _read_merges(path: Path, comment: str) -> list[list[str]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as fault:
        raise ValueError(f"{path} is not UTF-8 text: {fault}") from None
    return [line.split() for line in lines if line.strip() and not line.startswith(comment)]


def _check_bpe(definition: dict[str, Any], source: Path) -> None:
    model = definition.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else model
        raise ValueError(f"{source} holds a {kind!r} model; the family uses BPE")
    vocabulary, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocabulary, dict) or not isinstance(merges, list):
        raise ValueError(f"{source} lacks a vocabulary or merges")
    if not all(isinstance(number, int) for number in vocabulary.values()):
        raise ValueError(f"{source}: the vocabulary maps a token to something that is not an id")
    for number, merge in enumerate(merges, start=1):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if len(pair) != 2 or not (pair[0] in vocabulary and pair[1] in vocabulary):
            raise ValueError(f"{source}: merge {number}, {merge!r}, does not fit the vocabulary")
        if "".join(pair) not in vocabulary:
            raise ValueError(f"{source}: merge {number}, {merge!r}, gives no token")


def _without_first_prefix(pre_tokenizer: Any) -> Any:
    """Metaspace without a space before the text's first run: our runs always follow a token."""
    if isinstance(pre_tokenizer, dict) and pre_tokenizer.get("prepend_scheme") == "first":
        return pre_tokenizer | {"prepend_scheme": "never"}
    return pre_tokenizer
