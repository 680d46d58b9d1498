"""Chance: the same for the same seed, and never the same words for both splits."""

import pytest

from internvl2.synthetic.draw import Draw
from internvl2.synthetic.words import belongs, english, listed

LISTS = (
    "first_name", "last_name", "city", "street", "product", "service", "business", "sign",
    "subject", "column", "field", "zh_sign", "zh_dish", "zh_item", "zh_shop", "zh_city",
    "zh_person", "zh_street", "zh_word", "zh_field",
)  # fmt: skip


def test_the_same_seed_gives_the_same_chances():
    first, second = (Draw(7, "train", "reading") for _ in range(2))
    assert [first.integer(0, 999) for _ in range(50)] == [second.integer(0, 999) for _ in range(50)]


def test_seeds_splits_and_purposes_give_other_chances():
    draws = (Draw(7), Draw(8), Draw(7, "test"), Draw(7, "train", "reading"))
    assert len({tuple(draw.integer(0, 999) for _ in range(20)) for draw in draws}) == 4


def test_what_is_drawn_stays_the_same_from_one_version_to_the_next():
    draw = Draw(2024, "train", "golden")
    assert [draw.integer(0, 99), draw.integer(0, 99), draw.choice("abcdef")] == GOLDEN


def test_whole_numbers_reach_both_ends():
    draw = Draw(1)
    assert {draw.integer(3, 5) for _ in range(200)} == {3, 4, 5}


def test_several_are_different_ones():
    draw = Draw(1)
    for _ in range(50):
        assert len(set(draw.several(range(9), 6))) == 6


def test_heavier_options_come_more_often():
    draw = Draw(1)
    drawn = [draw.weighted("ab", (9, 1)) for _ in range(1000)]
    assert 850 < drawn.count("a") < 950


def test_words_belong_to_one_split():
    assert not set(english("train")) & set(english("test"))
    assert len(english("train")) > 5000
    assert len(english("test")) > 1000


@pytest.mark.parametrize("name", LISTS)
def test_every_list_has_entries_for_both_splits(name: str):
    assert len(listed(name, "train")) > len(listed(name, "test")) >= 3
    assert not set(listed(name, "train")) & set(listed(name, "test"))


def test_an_unknown_list_is_refused_with_those_known():
    with pytest.raises(ValueError, match="unknown list 'planets'; known: business, "):
        listed("planets", "train")


@pytest.mark.parametrize("make", ["code", "date", "phone", "word"])
def test_figures_belong_to_one_split(make: str):
    train, test = ({getattr(Draw(i, split), make)() for i in range(800)} for split in SPLITS)
    assert not train & test


def test_about_a_sixth_is_held_out():
    held_out = sum(belongs(str(number), "test") for number in range(6000))
    assert 900 < held_out < 1100


SPLITS = ("train", "test")
GOLDEN = [72, 77, "e"]
