"""Video: what moves moves the way that is answered, and frames are as many as promised."""

import re

import numpy as np
import pytest

from internvl2.synthetic.draw import Draw
from internvl2.synthetic.sample import Sample
from internvl2.synthetic.tasks import video
from internvl2.synthetic.tasks.video import DIAGONAL, STRAIGHT

pytestmark = pytest.mark.slow

WAYS = STRAIGHT | DIAGONAL


def samples(split: str = "train", difficulty: float = 1.0, count: int = 250) -> list[Sample]:
    return [video.make(Draw(seed, split, "video"), difficulty) for seed in range(count)]


def shift(sample: Sample) -> tuple[int, int]:
    """Where to what changes between the first and the last frame has gone, as signs."""
    first, last = (np.asarray(sample.images[i]).astype(int) for i in (0, -1))
    ground = np.asarray(sample.images[0])[1, 1].astype(int)
    changed = np.abs(first - last).sum(2) > 60
    was = changed & (np.abs(first - ground).sum(2) > 40)
    came = changed & (np.abs(last - ground).sum(2) > 40)
    steps = [np.argwhere(came).mean(0)[i] - np.argwhere(was).mean(0)[i] for i in (1, 0)]
    longest = max(abs(step) for step in steps)
    return tuple(int(np.sign(step)) if abs(step) > 0.3 * longest else 0 for step in steps)


def moving(split: str) -> list[Sample]:
    return [s for s in samples(split) if s.turns[0].answer in WAYS]


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_form_moves_the_way_that_is_answered(split: str):
    found = moving(split)
    assert {sample.turns[0].answer for sample in found} == set(WAYS)
    for sample in found:
        assert shift(sample) == WAYS[sample.turns[0].answer]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_video_has_four_to_eight_frames_of_one_size(split: str):
    for sample in samples(split):
        assert sample.is_video
        assert 4 <= len(sample.images) <= 8
        assert len({image.size for image in sample.images}) == 1
        assert min(sample.images[0].size) >= 179


def test_easy_videos_know_four_directions():
    answers = {turn.answer for sample in samples(difficulty=0.0) for turn in sample.turns}
    assert set(STRAIGHT) <= answers
    assert not set(DIAGONAL) & answers


def test_the_frame_of_a_change_is_the_first_that_differs():
    checked = 0
    for sample in samples(count=500):
        for turn in sample.turns:
            if turn.question == "In which frame does the colour change?":
                pictures = [image.tobytes() for image in sample.images]
                assert next(i for i, p in enumerate(pictures) if p != pictures[0]) + 1 == int(
                    turn.answer
                )
                checked += 1
    assert checked > 3


def test_numbers_in_order_are_as_many_as_frames():
    for sample in samples():
        for turn in sample.turns:
            if re.match("In which order do the (numbers|letters|words)", turn.question):
                assert len(turn.answer.split(", ")) == len(sample.images)


def test_a_seed_gives_the_same_frames_again():
    first, again = (video.make(Draw(3, "test", "video"), 1.0) for _ in range(2))
    assert first.turns == again.turns
    assert [i.tobytes() for i in first.images] == [i.tobytes() for i in again.images]
