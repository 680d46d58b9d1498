"""A small vocabulary for a model from nothing: byte-level BPE in the files of the Qwen2 members.

Each character is one piece, so that a sign in a picture always means the same token, and a word
that was never seen is read as surely as another: letter by letter.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internvl2.processing.subwords import byte_alphabet

END_OF_TEXT, END_OF_TURN = "<|endoftext|>", "<|im_end|>"
SPECIAL = (
    *(END_OF_TEXT, "<|im_start|>", END_OF_TURN, "<img>", "</img>", "<IMG_CONTEXT>"),
    *("<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"),
)
"""The family's control tokens and grounding tags, in the order of the Qwen2 members."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A byte-level BPE: bytes first, then what each merge gives, then control tokens."""

    merges: tuple[tuple[str, str], ...]

    @property
    def pieces(self) -> tuple[str, ...]:
        """The pieces by their id, control tokens not among them."""
        return *sorted(byte_alphabet().values()), *(left + right for left, right in self.merges)

    @property
    def special(self) -> dict[str, int]:
        """The ids of the control tokens."""
        return {text: len(self.pieces) + number for number, text in enumerate(SPECIAL)}


def character_vocabulary(characters: str) -> Vocabulary:
    """A vocabulary in which each character is a piece of its own, and nothing longer is."""
    return Vocabulary(tuple(dict.fromkeys(_character_merges(characters))))


def write_vocabulary(vocabulary: Vocabulary, directory: Path) -> None:
    """The tokenizer files of a model directory, as those of the Qwen2 members are."""
    ids = {piece: number for number, piece in enumerate(vocabulary.pieces)}
    merges = "".join(f"{left} {right}\n" for left, right in vocabulary.merges)
    (directory / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    _write(directory / "vocab.json", ids, None)
    _write(directory / "added_tokens.json", vocabulary.special, 2)
    named = {"eos_token": END_OF_TURN, "pad_token": END_OF_TEXT}
    listed = {"additional_special_tokens": list(SPECIAL[1:])}
    _write(directory / "special_tokens_map.json", named | listed, 2)
    whole = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    config = {
        "added_tokens_decoder": {
            str(number): {"content": text, **whole, "special": True}
            for text, number in vocabulary.special.items()
        },
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "model_max_length": 8192,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    _write(directory / "tokenizer_config.json", config | named | listed, 2)


def _character_merges(characters: str) -> Iterator[tuple[str, str]]:
    """Merges that make one piece of each character's bytes, from the left."""
    alphabet = byte_alphabet()
    for character in characters:
        first, *others = (alphabet[byte] for byte in character.encode())
        for other in others:
            yield first, other
            first += other


def _write(path: Path, content: dict[str, Any], indent: int | None) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=indent) + "\n", encoding="utf-8")
