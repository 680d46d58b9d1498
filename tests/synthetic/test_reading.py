"""Reading: what is asked for is what is written, within the picture, unknown to the other split."""

import re

import pytest

from internvl2.synthetic.catalogue import sample
from internvl2.synthetic.draw import Draw
from internvl2.synthetic.lines import fact, line, paragraph
from internvl2.synthetic.page import choose_paper, contrast
from internvl2.synthetic.tasks.reading import READ_ALL
from internvl2.synthetic.words import Split, english


def lines_of(split: Split, count: int = 400) -> set[str]:
    turns = [turn for i in range(count) for turn in sample("reading", i, split).turns]
    return {text for turn in turns if turn.question in READ_ALL for text in turn.answer.split("\n")}


@pytest.mark.slow
def test_no_line_is_drawn_for_both_splits():
    train, test = lines_of("train"), lines_of("test")
    assert len(test) > 500
    assert not train & test


def test_words_of_the_other_split_are_never_written():
    other = set(english("train"))
    for seed in range(100):
        draw = Draw(seed, "test")
        words = " ".join(paragraph(draw, 4, lambda text: len(text) < 40)).lower()
        assert not set(re.findall(r"[a-z]+", words)) & other


@pytest.mark.parametrize("difficulty", [0.0, 1.0])
def test_lines_fit(difficulty: float):
    for seed in range(400):
        text = line(Draw(seed), difficulty, lambda text: len(text) <= 14)
        assert 0 < len(text) <= 14
        assert text == text.strip()


def test_easy_lines_are_words_and_facts():
    rate = sum(
        bool(re.fullmatch(r"[A-Za-z .]+", line(Draw(i), 0.0, lambda text: len(text) < 60)))
        for i in range(300)
    )
    assert rate > 180


def test_facts_belong_to_one_split():
    train, test = ({fact(Draw(i, split)) for i in range(800)} for split in ("train", "test"))
    assert not train & test


@pytest.mark.parametrize("difficulty", [0.0, 1.0])
def test_ink_always_stands_out_from_its_ground(difficulty: float):
    for seed in range(300):
        paper = choose_paper(Draw(seed), difficulty)
        assert contrast(paper.ground, paper.ink) >= 3.9


def test_the_answer_about_a_line_is_that_line():
    checked = 0
    for number in range(400):
        turns = sample("reading", number, "train").turns
        text = next((turn.answer for turn in turns if turn.kind == "read"), None)
        for turn in turns:
            if text and (found := re.search(r"line (\d+)", turn.question)):
                assert turn.answer == text.split("\n")[int(found[1]) - 1]
                checked += 1
    assert checked > 3


def test_nothing_is_written_at_the_very_edge():
    for number in range(150):
        (image,) = sample("reading", number, "train", 0.0).images
        columns = [image.crop((x, 0, x + 1, image.height)) for x in (0, image.width - 1)]
        assert all(len(column.getcolors() or ()) == 1 for column in columns)
