"""Token ids and decoded text against what the official slow tokenizers gave."""

import json

import pytest

from internvl2.processing.official_text import official_text
from internvl2.processing.tokenizer import Piece

pytestmark = pytest.mark.parity

CASES = (
    "A_internlm2",
    "B_qwen2",
    "C_phi3",
    "D_llama3_vit6b",
    "E_qwen25_internvl2_5",
    "E2_internlm2_internvl2_5",
    "F_qwen3",
    "F2_qwen3_moe",
)
VOCABULARIES = ("internlm2", "qwen2", "qwen2.5", "phi3")


@pytest.fixture(params=CASES)
def case(request, recording):
    return recording(request.param)


@pytest.fixture(params=VOCABULARIES)
def vocabulary(request, data, tokenizer_of):
    tokenizer = tokenizer_of(data("tokenizers", request.param))
    return tokenizer, json.loads(data("tokenizers", "golden.json").read_text())[request.param]


def test_ids_of_every_text_equal_the_official_slow_tokenizer(tokenizer_of, case):
    tokenizer = tokenizer_of(case.checkpoint)
    for text in case.expected["tokenizer"]:
        ids = tokenizer.encode(text["text"], allow_special=True, add_bos=True)
        assert ids == text["ids"], text["text"]
        if "ids_no_special" in text:
            assert tokenizer.encode(text["text"], allow_special=True) == text["ids_no_special"]


def test_official_decoding_is_reproduced_with_and_without_special_tokens(tokenizer_of, case):
    tokenizer = tokenizer_of(case.checkpoint)
    skipped = set(case.expected["special_ids"]["all_special_ids"])
    if tokenizer.files.kind == "tokenizer_json":
        skipped = tokenizer.special_ids
    for text in case.expected["tokenizer"]:
        if "decode_keep" in text:
            assert official_text(tokenizer, text["ids"]) == text["decode_keep"]
            assert official_text(tokenizer, text["ids"], skipped) == text["decode_skip"]


def test_special_ids_and_length_equal_the_recorded_ones(tokenizer_of, case):
    tokenizer = tokenizer_of(case.checkpoint)
    recorded = case.expected["special_ids"]
    assert len(tokenizer) == case.expected["meta"]["tokenizer_len"]
    for token, token_id in recorded.items():
        if token.startswith("<") and token_id != recorded.get("unk"):
            assert tokenizer.id_of(token) == token_id


def test_raw_text_of_every_run_is_reproduced(tokenizer_of, case):
    tokenizer = tokenizer_of(case.checkpoint)
    for run in case.expected["runs"]:
        if "raw_text" in run and "new_ids" in run:
            assert official_text(tokenizer, run["new_ids"]) == run["raw_text"], run["name"]


def test_prompts_as_text_give_the_recorded_ids(tokenizer_of, case, expand):
    tokenizer = tokenizer_of(case.checkpoint)
    for prompt in case.expected["prompts"]:
        query = _expanded(prompt["query_short"])
        expected = prompt.get("input_ids") or expand(prompt["input_ids_rle"])
        assert tokenizer.encode(query, allow_special=True, add_bos=True) == expected, prompt["name"]


def test_golden_strings_give_the_same_ids_and_text(vocabulary):
    tokenizer, golden = vocabulary
    assert len(tokenizer) == golden["size"]
    for text in golden["texts"]:
        assert tokenizer.encode(text["text"], allow_special=True, add_bos=True) == text["ids"]
        assert official_text(tokenizer, text["ids"], tokenizer.special_ids) == text["decode"]


def test_hashes_are_not_merged_as_in_the_release_the_family_was_trained_with(tokenizer_of, data):
    for name in ("qwen2", "qwen2.5"):
        tokenizer = tokenizer_of(data("tokenizers", name))
        assert tokenizer.encode("## Title") == [2, 2, 10869]
        assert tokenizer.encode("#pragma") == [2, 6015]


def test_golden_special_tokens_have_the_published_ids(vocabulary):
    tokenizer, golden = vocabulary
    assert {text: tokenizer.id_of(text) for text in golden["special"]} == golden["special"]
    assert tokenizer.bos_id == (
        golden["bos"] if golden["texts"][0]["ids"][0] == golden["bos"] else None
    )


def test_streaming_equals_decoding_at_once_on_every_recorded_answer(tokenizer_of, case):
    tokenizer = tokenizer_of(case.checkpoint)
    for run in case.expected["runs"]:
        stream = tokenizer.stream()
        deltas = [stream.add(token_id) for token_id in run.get("new_ids", [])]
        assert "".join(deltas) + stream.finish() == tokenizer.decode(run.get("new_ids", []))


def test_text_pieces_are_merged_across_their_border(vocabulary):
    tokenizer, _ = vocabulary
    pieces = [Piece("user\n"), Piece("\n\nWhat is"), Piece("n't this?")]
    joined = tokenizer.encode("user\n\n\nWhat isn't this?")
    assert tokenizer.encode_pieces(pieces, add_bos=False).token_ids == joined


def _expanded(query_short: str) -> str:
    """`<IMG_CONTEXT*16>` written out."""
    head, *rest = query_short.split("<IMG_CONTEXT*")
    for part in rest:
        count, _, after = part.partition(">")
        head += "<IMG_CONTEXT>" * int(count) + after
    return head
