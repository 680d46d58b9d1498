"""A vocabulary from nothing is read by us and by transformers alike."""

from pathlib import Path

import pytest

from internvl2.checkpoint.config_files import read_config
from internvl2.checkpoint.hub import resolve
from internvl2.family import parameters
from internvl2.processing.processor import Processor
from internvl2.processing.tokenizer import Tokenizer
from internvl2.synthetic.catalogue import sample
from internvl2.synthetic.words import characters
from internvl2.train.vocabulary import SPECIAL, train_vocabulary, write_vocabulary

TEXTS = ["the cat sat on the mat", "the mat sat 12.50", "今天 the cat", "### the <box> cat"] * 3


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    write_vocabulary(train_vocabulary(TEXTS, "今天人", 256 + len(SPECIAL) + 16), folder)
    return folder


@pytest.fixture(scope="module")
def nano() -> Tokenizer:
    return Tokenizer.from_directory(resolve("nano"))


def test_characters_are_single_pieces_and_digits_stand_alone(small):
    tokenizer = Tokenizer.from_directory(small)
    assert [len(tokenizer.encode(text)) for text in ("今", "天", "人", "125", "今天")] == [
        *(1, 1, 1, 3, 2)
    ]
    assert len(tokenizer.encode(" the")) == 1
    assert len(tokenizer) == 256 + len(SPECIAL) + 16


def test_no_merge_looks_like_a_comment(small):
    lines = (small / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("#")] == ["#version: 0.2"]


def test_the_same_texts_give_the_same_vocabulary():
    assert train_vocabulary(TEXTS, "今", 285) == train_vocabulary(iter(TEXTS), "今", 285)


@pytest.mark.parametrize(("size", "fault"), [(270, "no room for 3"), (4000, "merges too few")])
def test_a_size_that_does_not_fit_is_an_error(size: int, fault: str):
    with pytest.raises(ValueError, match=fault):
        train_vocabulary(TEXTS, "今天人", size)


def test_each_trained_chinese_character_is_one_token_of_nano(nano):
    assert {len(nano.encode(character)) for character in characters()} == {1}


@pytest.mark.parametrize("task", ["reading", "documents", "chinese", "grounding", "talk"])
def test_what_nano_says_is_decoded_as_it_was(nano, task: str):
    answers = [turn.answer for number in range(10) for turn in sample(task, number, "test").turns]
    assert [nano.decode(nano.encode(answer)) for answer in answers] == answers


@pytest.mark.parity
def test_transformers_gives_the_same_ids(nano):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(resolve("nano"))
    texts = [
        turn.answer for number in range(20) for turn in sample("reading", number, "test").turns
    ]
    texts += [
        "<ref>a red circle</ref><box>[[12, 40, 300, 512]]</box>",
        "合计：￥12.50",
        "  a\n\n b ",
    ]
    for text in texts:
        assert nano.encode(text, allow_special=True) == theirs(text)["input_ids"]
    assert theirs.convert_tokens_to_ids(list(SPECIAL)) == [nano.id_of(text) for text in SPECIAL]


def test_nano_stays_under_30_megabytes():
    folder = resolve("nano")
    config = Processor.from_directory(folder, read_config(folder)).config
    others = (f for f in folder.iterdir() if f.suffix != ".safetensors")
    files = sum(file.stat().st_size for file in others)
    assert 2 * parameters(config).total + files < 30e6
    assert config.tokens_per_tile == 256
