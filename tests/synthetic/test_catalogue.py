"""Every task: the same sample each time, questions with answers, and splits that share nothing."""

import hashlib

import pytest

from internvl2.eval.metrics import METRICS
from internvl2.synthetic.catalogue import FURTHER, TASKS, find, mixture, sample
from internvl2.synthetic.sample import Sample

LEVELS = (0.0, 0.5, 1.0)
EVERY = (*TASKS, *FURTHER)


def fingerprint(made: Sample) -> tuple[object, ...]:
    pixels = [hashlib.sha256(image.tobytes()).hexdigest() for image in made.images]
    return (made.task, made.turns, made.is_video, *pixels)


@pytest.mark.parametrize("task", EVERY)
def test_a_sample_is_the_same_each_time(task: str):
    for number in range(5):
        assert fingerprint(sample(task, number, "train")) == fingerprint(
            sample(task, number, "train")
        )


@pytest.mark.parametrize("task", EVERY)
@pytest.mark.parametrize("difficulty", LEVELS)
def test_samples_are_pictures_with_questions_and_answers(task: str, difficulty: float):
    for number in range(12):
        made = sample(task, number, "train", difficulty)
        assert made.task == task
        assert made.turns
        assert all(turn.question.strip() and turn.answer.strip() for turn in made.turns)
        assert len({turn.question for turn in made.turns}) == len(made.turns)
        for image in made.images:
            assert image.mode == "RGB"
            assert 100 <= min(image.size) <= max(image.size) <= 1300


@pytest.mark.slow
@pytest.mark.parametrize("task", [task for task in EVERY if task not in ("talk", "unreadable")])
def test_the_splits_share_no_sample_but_who_it_is_and_that_it_sees_nothing(task: str):
    train, test = (
        {str(fingerprint(sample(task, number, split))[1:]) for number in range(30)}
        for split in ("train", "test")
    )
    assert not train & test


@pytest.mark.parametrize("task", EVERY)
def test_the_metric_of_a_task_is_known(task: str):
    assert find(task).name == task
    assert find(task).metric in METRICS


@pytest.mark.slow
def test_a_mixture_has_every_task():
    drawn = {mixture(number, "train").task for number in range(600)}
    assert drawn == set(TASKS)


def test_a_mixture_follows_its_weights():
    drawn = [mixture(i, "train", {"talk": 3, "unreadable": 1}).task for i in range(400)]
    assert 260 < drawn.count("talk") < 340


def test_an_unknown_task_is_refused_with_those_known():
    with pytest.raises(ValueError, match="unknown task 'poems'; known: reading, "):
        find("poems")
