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
from internvl2.train.vocabulary import SPECIAL, character_vocabulary, write_vocabulary


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    write_vocabulary(character_vocabulary("今天人é天"), folder)
    return folder


@pytest.fixture(scope="module")
def nano() -> Tokenizer:
    return Tokenizer.from_directory(resolve("nano"))


def test_each_character_is_one_piece_and_none_is_longer(small):
    tokenizer = Tokenizer.from_directory(small)
    for text in ("今天", "天人é", "the mat", "12.50", "### <box", "今 the\n"):
        assert len(tokenizer.encode(text)) == len(text)
    assert len(tokenizer.encode("外")) > 1
    assert tokenizer.decode(tokenizer.encode("外人 ### x")) == "外人 ### x"


def test_a_vocabulary_holds_bytes_its_characters_and_control_tokens(small):
    vocabulary = character_vocabulary("今天人é天")
    assert len(vocabulary.merges) == len(set(vocabulary.merges)) <= 2 * 3 + 1
    assert len(Tokenizer.from_directory(small)) == 256 + len(vocabulary.merges) + len(SPECIAL)


def test_each_trained_chinese_character_is_one_token_of_nano(nano):
    assert {len(nano.encode(character)) for character in characters()} == {1}


@pytest.mark.parametrize("task", ["reading", "documents", "chinese", "grounding", "talk"])
def test_what_nano_says_is_decoded_as_it_was(nano, task: str):
    answers = [turn.answer for number in range(10) for turn in sample(task, number, "test").turns]
    assert [nano.decode(nano.encode(answer)) for answer in answers] == answers


@pytest.mark.slow
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
