"""Several pictures: whether they differ and which one is meant agrees with their pixels."""

import re

import pytest

from internvl2.synthetic.draw import Draw
from internvl2.synthetic.sample import Sample
from internvl2.synthetic.tasks import several

pytestmark = pytest.mark.slow


def samples(split: str = "train", difficulty: float = 1.0, count: int = 200) -> list[Sample]:
    return [several.make(Draw(seed, split, "several"), difficulty) for seed in range(count)]


def test_pictures_are_called_the_same_only_if_every_pixel_is():
    answers = []
    for sample in samples():
        if re.search("same|identical", sample.turns[0].question):
            first, second = (image.tobytes() for image in sample.images)
            assert sample.turns[0].answer == ("Yes" if first == second else "No")
            answers.append(sample.turns[0].answer)
    assert 0.3 < answers.count("Yes") / len(answers) < 0.7


@pytest.mark.parametrize("split", ["train", "test"])
def test_there_are_two_to_four_pictures_of_one_size(split: str):
    for sample in samples(split):
        assert 2 <= len(sample.images) <= 4
        assert len({image.size for image in sample.images}) == 1


def test_a_picture_that_is_named_exists():
    for sample in samples():
        named = re.findall(
            r"Image-(\d)", " ".join(f"{t.question} {t.answer}" for t in sample.turns)
        )
        assert all(1 <= int(number) <= len(sample.images) for number in named)


def test_every_picture_is_the_answer_at_times():
    answers = {turn.answer for sample in samples() for turn in sample.turns}
    assert {"Image-1", "Image-2", "Image-3", "Image-4"} <= answers


def test_a_seed_gives_the_same_pictures_again():
    first, again = (several.make(Draw(3, "test", "several"), 1.0) for _ in range(2))
    assert first.turns == again.turns
    assert [i.tobytes() for i in first.images] == [i.tobytes() for i in again.images]


@pytest.mark.parametrize("difficulty", [0.0, 0.5])
def test_easier_pictures_are_drawn_too(difficulty: float):
    assert all(sample.turns for sample in samples("test", difficulty, 40))
