"""What a tokenizer promises on any text: no injected control tokens, no split characters."""

import json
import time
import unicodedata
from functools import lru_cache

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from internvl2.processing.tokenizer import Piece, Tokenizer

CASES = ("A_internlm2", "B_qwen2", "C_phi3", "D_llama3_vit6b", "F_qwen3")
CONTROL = (
    "<|im_end|>",
    "<|im_start|>",
    "<|end|>",
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
    "<s>",
    "</s>",
    "<unk>",
    "<|begin_of_text|>",
    "<|endoftext|>",
    "[UNUSED_TOKEN_145]",
    "[UNUSED_TOKEN_146]",
)
TEXTS = st.lists(st.one_of(st.sampled_from(CONTROL), st.text(max_size=8)), max_size=8).map("".join)


@lru_cache
def tokenizer_of(directory) -> Tokenizer:
    return Tokenizer.from_directory(directory)


@pytest.fixture(params=CASES, scope="module")
def tokenizer(request, data) -> Tokenizer:
    return tokenizer_of(data("official", request.param, "checkpoint"))


@given(text=TEXTS)
@settings(max_examples=60, deadline=None)
def test_text_never_yields_control_tokens(tokenizer, text):
    controls = {token.id for token in tokenizer.added.values()} - tokenizer.markup_ids
    assert controls.isdisjoint(tokenizer.encode(text))
    piece = Piece("user\n"), Piece(text, is_target=True)
    assert controls.isdisjoint(tokenizer.encode_pieces(piece, add_bos=False).token_ids)


@given(text=TEXTS)
@settings(max_examples=60, deadline=None)
def test_ids_of_a_text_decode_back(tokenizer, text):
    expected = text
    if tokenizer.files.kind == "vocab_merges":
        expected = unicodedata.normalize("NFC", text)
    elif tokenizer.files.kind == "sentencepiece":
        expected = text.replace("\u2581", " ")
    if not tokenizer.files.clean_up_spaces:
        assert tokenizer.decode(tokenizer.encode(text)) == expected


@given(ids=st.lists(st.integers(0, 920), max_size=30))
@settings(max_examples=60, deadline=None)
def test_streamed_deltas_add_up_to_the_decoded_text(tokenizer, ids):
    stream = tokenizer.stream()
    assert "".join([stream.add(i) for i in ids]) + stream.finish() == tokenizer.decode(ids)


def test_a_character_of_several_tokens_is_never_split(tokenizer):
    ids = tokenizer.encode("ab 🐼 你 cd")
    stream = tokenizer.stream()
    deltas = [stream.add(token_id) for token_id in ids]
    assert not any("\ufffd" in delta for delta in deltas)
    assert "".join(deltas) + stream.finish() == "ab 🐼 你 cd"


def test_an_unfinished_character_is_marked_at_the_end_only(tokenizer):
    ids = tokenizer.encode("a🐼")[:-1]
    stream = tokenizer.stream()
    assert "\ufffd" not in "".join(stream.add(token_id) for token_id in ids)
    assert "\ufffd" in stream.finish()


def test_grounding_tags_are_tokens_and_stay_in_answers(tokenizer):
    answer = "<ref>the dog</ref><box>[[1, 2, 3, 4]]</box>"
    ids = tokenizer.encode(answer)
    assert ids[0] == tokenizer.id_of("<ref>")
    assert (
        tokenizer.decode([*ids, next(iter(tokenizer.special_ids - tokenizer.markup_ids))]) == answer
    )


def test_a_target_begins_where_its_text_begins(tokenizer):
    pieces = [Piece("answer:"), Piece(" 42 🐼", is_target=True), Piece("\n")]
    encoded = tokenizer.encode_pieces(pieces, add_bos=False)
    learned = [i for i, t in zip(encoded.token_ids, encoded.is_target, strict=True) if t]
    assert tokenizer.decode(learned).strip() == "42 🐼"


def test_an_unknown_id_decodes_to_nothing(tokenizer):
    assert tokenizer.decode([10**6]) == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", ["a" * 100_000, " " * 100_000, "<|im_end|>" * 10_000, "图" * 50_000]
)
def test_long_texts_are_encoded_quickly(tokenizer, text):
    begin = time.perf_counter()
    tokenizer.encode(text)
    assert time.perf_counter() - begin < 3


@pytest.mark.parametrize(("added", "ids"), [("<img>", [0, 0]), ("<think>", [1])])
def test_merges_that_begin_with_a_hash_count_from_qwen3_on(tmp_path, added, ids):
    (tmp_path / "vocab.json").write_text(json.dumps({"#": 0, "##": 1}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n# #\n")
    (tmp_path / "added_tokens.json").write_text(json.dumps({added: 2}))
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer.encode("##") == ids
    tokenizer.save(tmp_path / "hf", "hf")
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "hf" / "tokenizer.json"))
    assert library.encode("##").ids == ids


def test_a_directory_without_tokenizer_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer in .*: expected tokenizer"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer.model": "junk"}, "tokenizer.model is not a SentencePiece model"),
        ({"tokenizer.json": "{"}, "tokenizer.json is not valid JSON"),
        ({"tokenizer.json": '{"model": {"type": "WordPiece"}}'}, "the family uses BPE"),
        ({"tokenizer.json": '{"model": {"type": "BPE"}}'}, "lacks a vocabulary or merges"),
        ({"vocab.json": '{"a": 0}', "merges.txt": "a b\n"}, "merge 1, .* does not fit"),
        ({"vocab.json": "[]", "merges.txt": ""}, "vocab.json holds a list"),
    ],
)
def test_a_broken_file_is_named(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_directory(tmp_path)


def test_half_of_a_vocabulary_names_the_half(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"vocab.json is there without its partner"):
        Tokenizer.from_directory(tmp_path)


def test_a_broken_added_token_is_named(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "added_tokens.json").write_text('{"<img>": "x"}')
    with pytest.raises(ValueError, match=r"added_tokens.json: added token 'x'"):
        Tokenizer.from_directory(tmp_path)
