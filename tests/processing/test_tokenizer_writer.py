"""Tokenizer files that we write: the same ids again, here and in transformers."""

import json
from dataclasses import dataclass
from itertools import chain
from typing import Any

import jinja2
import pytest

from internvl2.processing.piece_types import PieceType, piece_types
from internvl2.processing.template import find_template
from internvl2.processing.tokenizer import Tokenizer
from internvl2.processing.tokenizer_writer import template_prefix

CASES = ("A_internlm2", "B_qwen2", "C_phi3", "D_llama3_vit6b", "F_qwen3")
TEXTS = ("What is this?\n", "图中有 3 只🐼", "a  b\tc", "<ref>x</ref><box>[[1,2,3,4]]</box>")
NOT_EQUAL = {"phi3": [" leading and trailing "]}
"""A space before all: the library's Metaspace adds none to it."""


@dataclass(frozen=True)
class Vocabulary:
    name: str
    golden: dict
    ours: Tokenizer
    theirs: Any


@pytest.fixture(params=CASES)
def tokenizer(request, data) -> Tokenizer:
    return Tokenizer.from_directory(data("official", request.param, "checkpoint"))


@pytest.mark.parametrize("layout", ["opengvlab", "hf", "paddlemix"])
def test_a_saved_tokenizer_gives_the_same_ids(tokenizer, layout, tmp_path):
    tokenizer.save(tmp_path, layout, "a template")
    again = Tokenizer.from_directory(tmp_path)
    assert [again.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
    assert (again.special_ids, again.bos_id) == (tokenizer.special_ids, tokenizer.bos_id)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["chat_template"] == "a template"


def test_tokenizer_json_alone_gives_the_same_ids_in_a_prompt(tokenizer, tmp_path):
    tokenizer.save(tmp_path, "hf")
    for name in ("tokenizer.model", "vocab.json", "merges.txt"):
        (tmp_path / name).unlink(missing_ok=True)
    again = Tokenizer.from_directory(tmp_path)
    begin = next(iter(sorted(tokenizer.markup_ids)))
    for text in TEXTS:
        rendered = tokenizer.token_bytes(begin).decode() + text
        assert again.encode(rendered) == tokenizer.encode(rendered)


def read_by_transformers(directory):
    from transformers import AutoTokenizer  # takes seconds

    return AutoTokenizer.from_pretrained(directory)


@pytest.mark.slow
@pytest.mark.parity
def test_transformers_gives_the_same_ids_for_prompts(tokenizer, recording, tmp_path):
    case = recording(tokenizer.files.directory.parent.name)
    tokenizer.save(tmp_path, "hf")
    theirs = read_by_transformers(tmp_path)
    prefix = template_prefix(tokenizer)
    for prompt in case.expected["prompts"]:
        if "input_ids" in prompt and "query" in prompt:
            ids = theirs(prefix + prompt["query"], add_special_tokens=False).input_ids
            assert ids == prompt["input_ids"], prompt["name"]


@pytest.fixture(params=("internlm2", "qwen2.5", "phi3"), scope="module")
def vocabulary(request, data, tmp_path_factory) -> Vocabulary:
    """A real vocabulary as we write it, read by transformers."""
    golden = json.loads(data("tokenizers", "golden.json").read_text())[request.param]
    ours = Tokenizer.from_directory(data("tokenizers", request.param))
    directory = tmp_path_factory.mktemp(request.param)
    ours.save(directory, "hf")
    return Vocabulary(request.param, golden, ours, read_by_transformers(directory))


@pytest.mark.slow
@pytest.mark.parity
def test_transformers_gives_the_golden_ids_of_real_vocabularies(vocabulary):
    texts = vocabulary.golden["texts"]
    differing = [t["text"] for t in texts if vocabulary.theirs(t["text"]).input_ids != t["ids"]]
    assert differing == NOT_EQUAL.get(vocabulary.name, [])
    assert vocabulary.theirs.context_image_token == "<IMG_CONTEXT>"


@pytest.mark.slow
@pytest.mark.parity
def test_the_written_chat_template_gives_the_golden_prompts_in_transformers(vocabulary):
    prefix = template_prefix(vocabulary.ours)
    for prompt in vocabulary.golden["prompts"]:
        source = find_template(prompt["template"]).jinja(prefix=prefix)
        template = jinja2.Environment().from_string(source)
        text = template.render(messages=_messages(prompt["turns"]), add_generation_prompt=True)
        for tiles in prompt["tiles"]:
            text = text.replace("<image>", f"<img>{'<IMG_CONTEXT>' * 256 * tiles}</img>", 1)
        expected = list(chain.from_iterable([i] * count for i, count in prompt["ids_rle"]))
        assert vocabulary.theirs(text, add_special_tokens=False).input_ids == expected


def _messages(turns: list) -> list[dict]:
    messages = []
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
    return messages


def test_a_tokenizer_json_becomes_vocab_and_merges_for_the_official_class(data, tmp_path):
    original = Tokenizer.from_directory(data("official", "B_qwen2", "checkpoint"))
    original.save(tmp_path / "hf", "hf")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "hf" / name).unlink()
    Tokenizer.from_directory(tmp_path / "hf").save(tmp_path / "back", "opengvlab")
    again = Tokenizer.from_directory(tmp_path / "back")
    assert again.files.kind == "vocab_merges"
    assert [again.encode(text) for text in TEXTS] == [original.encode(text) for text in TEXTS]


def test_there_and_back_keeps_the_official_files(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "hf", "hf")
    Tokenizer.from_directory(tmp_path / "hf").save(tmp_path / "back", "opengvlab")
    again = Tokenizer.from_directory(tmp_path / "back")
    assert again.files.class_name == tokenizer.files.class_name
    assert again.added == tokenizer.added
    config = json.loads((tmp_path / "back" / "tokenizer_config.json").read_text())
    assert "extra_special_tokens" not in config


def test_the_kinds_of_pieces_are_read_from_the_model_file(data):
    model = data("official", "A_internlm2", "checkpoint", "tokenizer.model").read_bytes()
    types = piece_types(model)
    assert types[:3] == [PieceType.UNKNOWN, PieceType.CONTROL, PieceType.CONTROL]
    assert types[3:259] == [PieceType.BYTE] * 256
    assert types[905:911] == [PieceType.USER_DEFINED] * 6
