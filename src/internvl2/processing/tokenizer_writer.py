"""A complete set of tokenizer files for a directory that we write.

Our own layouts get the source's files as they are. The `hf` layout gets a tokenizer.json as well,
from which `transformers` gives the same ids, so a SentencePiece model is written down as a BPE.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from internvl2.processing.piece_types import PieceType, piece_types
from internvl2.processing.subwords import (
    SPACE,
    SentencePieceSubwords,
    byte_level_part,
    qwen2_definition,
)
from internvl2.processing.tokenizer import Tokenizer
from internvl2.processing.tokenizer_files import (
    SIDE_FILES,
    SLOW_CLASS,
    VOCABULARY_FILES,
    AddedToken,
    DirectoryLayout,
    read_json_object,
)

QWEN2 = "Qwen2Tokenizer"

HF_IMAGE_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
"""Names under which transformers' InternVL processor asks its tokenizer for tokens."""


def save_tokenizer(
    tokenizer: Tokenizer,
    directory: str | Path,
    layout: DirectoryLayout,
    chat_template: str | None = None,
) -> None:
    """Writes every tokenizer file that a directory of this layout needs."""
    source, target = tokenizer.files.directory, Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    for name in (*VOCABULARY_FILES, *SIDE_FILES):
        if (source / name).is_file() and source.resolve() != target.resolve():
            shutil.copyfile(source / name, target / name)
    config = read_json_object(source / "tokenizer_config.json", optional=True)
    if layout == "hf":
        _write_json(target / "tokenizer.json", tokenizer_json(tokenizer), indent=None)
        config = _hf_config(tokenizer, config)
    else:
        config = _official_config(config)
        if tokenizer.files.kind == "tokenizer_json" and config.get("tokenizer_class") == QWEN2:
            _write_vocab_merges(source / "tokenizer.json", target)
    if chat_template is not None:
        config["chat_template"] = chat_template
        if layout == "hf":
            (target / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    if config:
        _write_json(target / "tokenizer_config.json", config)


def template_prefix(tokenizer: Tokenizer) -> str:
    """The text of what the tokenizer writes before a prompt, for a chat template."""
    if tokenizer.bos_id is None:
        return ""
    bos = tokenizer.token_bytes(tokenizer.bos_id).decode()
    return f"{bos} " if tokenizer.is_llama and not tokenizer.files.legacy else bos


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of a tokenizer.json that gives the ids of this tokenizer."""
    kind, source = tokenizer.files.kind, tokenizer.files.directory
    if kind == "tokenizer_json":
        return read_json_object(source / "tokenizer.json")
    if kind == "vocab_merges":
        definition = qwen2_definition(tokenizer.files) | {"post_processor": byte_level_part()}
    else:
        assert isinstance(tokenizer.subwords, SentencePieceSubwords)
        definition = _sentencepiece_definition(tokenizer, tokenizer.subwords)
    added = [*definition["added_tokens"], *_added_tokens(tokenizer)]
    return definition | {"added_tokens": sorted(added, key=lambda token: token["id"])}


def _added_tokens(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    ordered = sorted(tokenizer.added.values(), key=lambda token: token.id)
    return [asdict(token) | {"single_word": False, "normalized": False} for token in ordered]


def _sentencepiece_definition(
    tokenizer: Tokenizer, subwords: SentencePieceSubwords
) -> dict[str, Any]:
    types = piece_types((tokenizer.files.directory / "tokenizer.model").read_bytes())
    texts = {token.id: token.content for token in tokenizer.added.values()}
    fixed = [i for i, kind in enumerate(types) if kind is PieceType.USER_DEFINED and i not in texts]
    vocabulary = {texts.get(i, subwords.piece(i)): i for i in range(subwords.size)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_fixed_text(subwords.piece(i), i) for i in fixed],
        "normalizer": _sentencepiece_normalizer(tokenizer),
        "pre_tokenizer": _sentencepiece_pre_tokenizer(tokenizer),
        "post_processor": _bos_post_processor(tokenizer),
        "decoder": _sentencepiece_decoder(tokenizer),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": texts.get(subwords.unk_id, subwords.piece(subwords.unk_id)),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": _merges(subwords, types),
        },
    }


def _fixed_text(piece: str, token_id: int) -> dict[str, Any]:
    """A piece that is matched as it stands and never merged."""
    token = AddedToken(piece.replace(SPACE, " "), token_id, special=False)
    return asdict(token) | {"single_word": False, "normalized": False}


def _merges(subwords: SentencePieceSubwords, types: list[PieceType]) -> list[list[str]]:
    """Every pair of pieces that makes a piece, the likeliest piece first."""
    normal = {subwords.piece(i): i for i, kind in enumerate(types) if kind is PieceType.NORMAL}
    found = []
    for piece, token_id in normal.items():
        splits = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        known = [(left, right) for left, right in splits if left in normal and right in normal]
        known.sort(key=lambda pair: (normal[pair[0]], normal[pair[1]]))
        found += [(-subwords.score(token_id), list(pair)) for pair in known]
    return [pair for _, pair in sorted(found, key=lambda entry: entry[0])]


def _sentencepiece_normalizer(tokenizer: Tokenizer) -> dict[str, Any]:
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if not tokenizer.spaces_every_run:
        return spaces
    return {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, spaces]}


def _sentencepiece_pre_tokenizer(tokenizer: Tokenizer) -> dict[str, Any] | None:
    """Newer Llama tokenizers put a space before the very first run only."""
    if not tokenizer.is_llama or tokenizer.files.legacy:
        return None
    return {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": False}


def _sentencepiece_decoder(tokenizer: Tokenizer) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if tokenizer.is_llama or tokenizer.spaces_every_run:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _bos_post_processor(tokenizer: Tokenizer) -> dict[str, Any] | None:
    if tokenizer.bos_id is None:
        return None
    bos = tokenizer.token_bytes(tokenizer.bos_id).decode()
    special = {"SpecialToken": {"id": bos, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [special, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            special,
            {"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 0}},
        ],
        "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos_id], "tokens": [bos]}},
    }


def _hf_config(tokenizer: Tokenizer, config: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json of a directory whose tokenizer.json says everything."""
    dropped = ("auto_map", "additional_special_tokens", "sp_model_kwargs")
    kept = {key: value for key, value in config.items() if key not in dropped}
    decoder = {str(entry.pop("id")): entry for entry in _added_tokens(tokenizer)}
    return kept | {
        "added_tokens_decoder": decoder,
        "additional_special_tokens": list(tokenizer.files.additional_special),
        "clean_up_tokenization_spaces": tokenizer.files.clean_up_spaces,
        "extra_special_tokens": HF_IMAGE_TOKENS,
        SLOW_CLASS: tokenizer.files.class_name,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "InternVLProcessor",
        **HF_IMAGE_TOKENS,
    }


def _official_config(config: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json without what only newer transformers asks for."""
    dropped = (SLOW_CLASS, "extra_special_tokens", "processor_class", *HF_IMAGE_TOKENS)
    kept = {key: value for key, value in config.items() if key not in dropped}
    slow_class = config.get(SLOW_CLASS)
    return kept | ({"tokenizer_class": slow_class} if slow_class else {})


def _write_vocab_merges(source: Path, target: Path) -> None:
    """The two files that the official slow class reads, out of a tokenizer.json."""
    model = read_json_object(source)["model"]
    _write_json(target / "vocab.json", model["vocab"], indent=None)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    text = "\n".join(["#version: 0.2", *merges, ""])
    (target / "merges.txt").write_text(text, encoding="utf-8")


def _write_json(path: Path, content: dict[str, Any], indent: int | None = 2) -> None:
    """Vocabularies go without indentation: with it the writing takes seconds."""
    text = json.dumps(content, ensure_ascii=False, indent=indent)
    path.write_text(text + "\n", encoding="utf-8")
