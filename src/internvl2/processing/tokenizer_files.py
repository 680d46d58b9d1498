"""What a directory's tokenizer files say: which vocabulary, which added tokens, which flags.

The files are those that transformers writes: tokenizer.model, or vocab.json with merges.txt, or
tokenizer.json; beside them tokenizer_config.json, added_tokens.json and special_tokens_map.json.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

VocabularyKind = Literal["sentencepiece", "vocab_merges", "tokenizer_json"]

DirectoryLayout = Literal["opengvlab", "hf", "paddlemix"]

NAMED_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
VOCABULARY_FILES = ("tokenizer.model", "vocab.json", "merges.txt", "tokenizer.json")
SLOW_CLASS = "slow_tokenizer_class"
"""Where a directory for newer transformers keeps the name of the official class."""

SIDE_FILES = ("tokenizer_config.json", "added_tokens.json", "special_tokens_map.json")


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is matched in text as a whole, outside the vocabulary's own merging."""

    content: str
    id: int
    special: bool = True
    lstrip: bool = False
    """Swallows the whitespace before it."""
    rstrip: bool = False
    """Swallows the whitespace after it."""


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """The parsed side files of one tokenizer."""

    directory: Path
    kind: VocabularyKind
    class_name: str
    """The official tokenizer class, without a trailing "Fast"; empty where the files don't say."""
    added: tuple[AddedToken, ...]
    named: dict[str, str]
    """Which text is the bos, eos, unk or pad token."""
    additional_special: tuple[str, ...]
    legacy: bool
    """Llama only: whether every run of text begins with a space of its own."""
    add_bos: bool | None
    clean_up_spaces: bool
    """Whether the official decoder removes the space before punctuation."""

    @property
    def drops_hash_merges(self) -> bool:
        """Whether the official class reads merges that begin with # (as in ##) as comments.

        Transformers 4.37.2 does (`tokenization_qwen2.py`), with which the family was trained;
        Qwen3, told by its thinking marks, came with a release that does not.
        """
        return all(token.content != "<think>" for token in self.added)


def read_tokenizer_files(directory: str | Path) -> TokenizerFiles:
    """What the tokenizer files of a directory say; an error names the missing or broken file."""
    directory = Path(directory)
    kind = _kind(directory)
    config = read_json_object(directory / "tokenizer_config.json", optional=True)
    names = read_json_object(directory / "special_tokens_map.json", optional=True) | {
        key: value for key, value in config.items() if value is not None
    }
    class_name = str(config.get(SLOW_CLASS) or config.get("tokenizer_class") or "")
    class_name = class_name.removesuffix("Fast")
    add_bos = config.get("add_bos_token")
    return TokenizerFiles(
        directory=directory,
        kind=kind,
        class_name=class_name,
        added=_added_tokens(directory, kind, config),
        named={key: _content(names[key]) for key in NAMED_TOKENS if names.get(key)},
        additional_special=_additional_special(directory, names),
        legacy=config.get("legacy") is not False,
        add_bos=None if add_bos is None else bool(add_bos),
        clean_up_spaces=bool(
            config.get("clean_up_tokenization_spaces", class_name == "PreTrainedTokenizer")
        ),
    )


def read_json_object(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """The object in a JSON file; a missing optional file is an empty object."""
    if optional and not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as fault:
        raise ValueError(f"{path} is not valid JSON: {fault}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; an object was expected")
    return content


def _kind(directory: Path) -> VocabularyKind:
    if not directory.is_dir():
        raise FileNotFoundError(f"tokenizer directory {directory} does not exist")
    if (directory / "tokenizer.model").is_file():
        return "sentencepiece"
    present = [name for name in ("vocab.json", "merges.txt") if (directory / name).is_file()]
    if len(present) == 2:
        return "vocab_merges"
    if (directory / "tokenizer.json").is_file():
        return "tokenizer_json"
    half = f" ({present[0]} is there without its partner)" if present else ""
    raise FileNotFoundError(
        f"no tokenizer in {directory}: expected tokenizer.model, or vocab.json with merges.txt,"
        f" or tokenizer.json{half}"
    )


def _added_tokens(
    directory: Path, kind: VocabularyKind, config: dict[str, Any]
) -> tuple[AddedToken, ...]:
    found: dict[str, AddedToken] = {}
    if kind == "tokenizer_json":
        path = directory / "tokenizer.json"
        for entry in read_json_object(path).get("added_tokens") or []:
            _collect(found, path, entry.get("id"), entry)
    path = directory / "tokenizer_config.json"
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise ValueError(f"{path}: added_tokens_decoder is {decoder!r}; it must be an object")
    for number, entry in decoder.items():
        _collect(found, path, number, entry)
    path = directory / "added_tokens.json"
    for content, number in read_json_object(path, optional=True).items():
        _collect(found, path, number, {"content": content})
    return tuple(found.values())


def _collect(found: dict[str, AddedToken], path: Path, number: Any, entry: Any) -> None:
    try:
        token = AddedToken(
            content=str(entry["content"]),
            id=int(number),
            special=bool(entry.get("special", True)),
            lstrip=bool(entry.get("lstrip")),
            rstrip=bool(entry.get("rstrip")),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise ValueError(f"{path}: added token {number!r}: {entry!r} is not understood") from None
    if token.content:
        found.setdefault(token.content, token)


def _content(token: Any) -> str:
    return str(token.get("content", "") if isinstance(token, dict) else token)


def _additional_special(directory: Path, names: dict[str, Any]) -> tuple[str, ...]:
    listed = names.get("additional_special_tokens") or names.get("extra_special_tokens") or []
    if isinstance(listed, dict):
        listed = list(listed.values())
    if not isinstance(listed, list):
        raise ValueError(f"{directory}: additional_special_tokens is {listed!r}; it must be a list")
    return tuple(text for text in map(_content, listed) if text)
