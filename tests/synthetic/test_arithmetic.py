"""Arithmetic: values are right, tables are for all, other sums belong to one split."""

import re

import pytest

from internvl2.synthetic.draw import Draw
from internvl2.synthetic.tasks import arithmetic
from internvl2.synthetic.tasks.arithmetic import Sum, choose_sum, is_table

SIGNS = {"×": "*", "x": "*", "÷": "//", "/": "//"}


@pytest.mark.parametrize("difficulty", [0.0, 0.5, 1.0])
def test_the_value_of_every_sum_is_right(difficulty: float):
    for seed in range(300):
        chosen = choose_sum(Draw(seed), difficulty)
        text = "".join(SIGNS.get(letter, letter) for letter in chosen.text)
        assert re.fullmatch(r"[\d+*/() -]+", text)
        assert eval(text) == chosen.value
        assert chosen.value >= 0


def test_no_sum_of_larger_numbers_belongs_to_both_splits():
    train, test = (
        {
            chosen.text
            for seed in range(1500)
            if not is_table(chosen := choose_sum(Draw(seed, split), 1.0))
        }
        for split in ("train", "test")
    )
    assert len(test) > 100
    assert not train & test


def test_tables_are_facts_for_both_splits():
    assert is_table(Sum("7 × 8", 56, (7, "*", 8)))
    assert is_table(Sum("3 + 4", 7, (3, "+", 4)))
    assert not is_table(Sum("13 + 4", 17, (13, "+", 4)))
    assert not is_table(Sum("1 + 2 + 3", 6))


def test_a_check_says_whether_the_written_result_is_right():
    answers = set()
    for seed in range(200):
        sample = arithmetic.make(Draw(seed, "train", "arithmetic"), 0.5)
        answers |= {turn.answer for turn in sample.turns if "correct" in turn.question}
    assert answers == {"Yes", "No"}


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_writing_lies_within_the_picture(split: str):
    for seed in range(120):
        (image,) = arithmetic.make(Draw(seed, split, "arithmetic"), 1.0).images
        ruled = image.getpixel((0, 0)) != image.getpixel((3, 5)) or len(image.getcolors(9999)) > 600
        edge = [image.getpixel((x, y)) for x in range(image.width) for y in (1, image.height - 2)]
        assert ruled or len(set(edge)) <= 2


def test_a_seed_gives_the_same_picture_again():
    first, again = (arithmetic.make(Draw(5, "test", "arithmetic"), 1.0) for _ in range(2))
    assert first.turns == again.turns
    assert first.images[0].tobytes() == again.images[0].tobytes()
