"""What cannot be read: the answer says so, and the colours it names are there."""

import math
from collections import Counter

import pytest

from internvl2.synthetic.catalogue import sample
from internvl2.synthetic.draw import Draw
from internvl2.synthetic.photos import photo
from internvl2.synthetic.tasks.unreadable import NAMES

pytestmark = pytest.mark.slow


def test_the_same_question_about_a_picture_has_one_answer():
    answers: dict[str, set[str]] = {}
    for number in range(600):
        for turn in sample("unreadable", number, "train").turns:
            answers.setdefault(turn.question, set()).add(turn.answer.split(".")[0])
    assert answers["Read the text."] <= {"I see no text", "I can't read this"}


def test_both_colours_of_a_photo_cover_a_third_of_it():
    for number in range(40):
        first, second = (205, 30, 35), (40, 80, 205)
        image = photo(Draw(number, "train", "test"), (96, 96), first, second)
        pixels = list(image.convert("RGB").get_flattened_data())
        nearer = Counter(math.dist(one, first) < math.dist(one, second) for one in pixels)
        assert min(nearer[True], nearer[False]) > 0.33 * len(pixels)


def test_the_colours_named_are_those_of_the_list():
    known = {name for name, _ in NAMES}
    for number in range(300):
        for turn in sample("unreadable", number, "test").turns:
            if " in " in turn.answer:
                words = turn.answer.split(" in ")[1].rstrip(".").split(" and ")
                assert set(words) <= known
