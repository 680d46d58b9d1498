"""What one begins with: few and large things, short answers; nothing of it from 0.4 on."""

import pytest

from internvl2.synthetic.catalogue import sample
from internvl2.synthetic.draw import Draw
from internvl2.synthetic.page import easiness, is_easy
from internvl2.synthetic.tasks import arithmetic, charts

EASED = ("documents", "scene", "chinese", "charts", "arithmetic", "shapes", "several", "video")


def test_easy_pictures_are_all_at_first_and_none_from_two_fifths_on():
    assert [easiness(level) for level in (0.0, 0.1, 0.4, 1.0)] == [1, 1, 0, 0]
    assert 0.6 < sum(is_easy(Draw(seed), 0.2) for seed in range(400)) / 400 < 0.74


def test_a_picture_that_is_never_easy_takes_nothing_from_chance():
    asked, untouched = Draw(3), Draw(3)
    assert not is_easy(asked, 0.4)
    assert asked.number(0, 1) == untouched.number(0, 1)


@pytest.mark.parametrize("task", EASED)
def test_answers_about_easy_pictures_are_short(task: str):
    for number in range(60):
        made = sample(task, number, "train", 0.0)
        assert all(len(turn.answer) <= 90 for turn in made.turns)


def test_easy_charts_have_few_categories_and_written_values():
    for seed in range(60):
        for turn in charts.make(Draw(seed, "train", "charts"), 0.0).turns:
            if turn.question.startswith(("How many bars", "How many slices")):
                assert turn.answer in ("2", "3")


def test_easy_sums_are_of_single_figures():
    signs = set()
    for seed in range(80):
        made = arithmetic.make(Draw(seed, "train", "arithmetic"), 0.0)
        for turn in made.turns:
            if turn.question in arithmetic.READ:
                first, sign, second = turn.answer.split()[:3]
                assert max(int(first), int(second)) < 10
                signs.add(sign)
            else:
                assert 0 <= int(turn.answer) <= 18
    assert signs == {"+", "-"}


@pytest.mark.parametrize("task", [*EASED, "grounding"])
def test_easy_pictures_of_the_splits_differ(task: str):
    def pictures(split: str) -> set[bytes]:
        made = [sample(task, number, split, 0.0) for number in range(60)]
        return {b"".join(image.tobytes() for image in one.images) for one in made}

    assert not pictures("train") & pictures("test")
