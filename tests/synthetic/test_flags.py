"""Signal flags: patterns that nobody mixes up, hoists of one split, and nothing of it for nano."""

from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from internvl2.synthetic import signal_flags as flags
from internvl2.synthetic.catalogue import FURTHER, TASKS, sample
from internvl2.synthetic.draw import Draw
from internvl2.synthetic.signal_flags import CLOTHS, ORDER, PATTERNS, Wind, fly, tones
from internvl2.synthetic.tasks.flags import Hoist, choose
from internvl2.synthetic.words import Split
from internvl2.synthetic.writing import Request

CALM = Wind(height=0, waves=1, phase=0, degrees=0)
PURE = bytes(channel for cloth in CLOTHS for channel in cloth)


def flat(letter: str) -> np.ndarray:
    return np.asarray(fly(letter, 120, PURE, CALM))


def colour_at(letter: str, x: float, y: float) -> int:
    """Which cloth is there: x from the mast, y from the top."""
    flag = Image.fromarray(flat(letter))
    pixel = flag.getpixel((round(x * flag.width), round(y * flag.height)))
    assert isinstance(pixel, tuple)
    return CLOTHS.index(pixel[:3])


def hoists(split: Split) -> list[Hoist]:
    return [choose(Draw(i, split), 1.0) for i in range(1500)]


def test_every_letter_has_a_flag():
    assert sorted(ORDER) == sorted(PATTERNS) == [chr(code) for code in range(65, 91)]


def test_no_two_flags_look_alike():
    painted = {letter: flat(letter).astype(int) for letter in ORDER}
    for first, second in combinations(ORDER, 2):
        differs = np.abs(painted[first] - painted[second]).sum(-1) > 60
        assert differs.mean() > 0.08, (first, second)


@pytest.mark.parametrize(
    ("letter", "mast", "end"),
    [("K", flags.YELLOW, flags.BLUE), ("H", flags.WHITE, flags.RED), ("T", flags.RED, flags.BLUE)],
)
def test_flags_begin_at_the_mast(letter: str, mast: int, end: int):
    assert (colour_at(letter, 0.1, 0.5), colour_at(letter, 0.9, 0.5)) == (mast, end)


def test_a_swallowtail_is_cut_out_of_the_free_end():
    cloth = flat("B")[..., 3]
    middle = cloth.shape[0] // 2
    assert cloth[middle, 5] == 255
    assert cloth[middle, -5] == 0


def test_wind_bends_a_flag_and_keeps_its_cloth():
    bent = np.asarray(fly("E", 120, PURE, Wind(height=14, waves=1, phase=0.2, degrees=0)))
    tops = (bent[..., 3] > 0).argmax(axis=0)
    assert np.ptp(tops) >= 5
    assert abs((bent[..., 3] > 0).sum() - (flat("E")[..., 3] > 0).sum()) < 300


def test_one_ship_has_other_tones_than_the_next():
    assert tones(Draw(1), 0.2) != tones(Draw(2), 0.2)


def test_difficulty_brings_more_letters_and_more_flags():
    easy, hard = (
        [choose(Draw(i), difficulty).letters for i in range(300)] for difficulty in (0.0, 1.0)
    )
    assert {len(letters) for letters in easy} == {1}
    assert {letter for letters in easy for letter in letters} == set(ORDER[:12])
    assert {len(letters) for letters in hard} == {1, 2, 3}
    assert {letter for letters in hard for letter in letters} == set(ORDER)


def test_no_hoist_is_of_both_splits_and_no_letter_of_one_alone():
    train, test = hoists("train"), hoists("test")
    assert not {hoist.key for hoist in train} & {hoist.key for hoist in test}
    assert {letter for hoist in test for letter in hoist.letters} == set(ORDER)
    several = [
        {hoist.letters for hoist in split if len(hoist.letters) > 1} for split in (train, test)
    ]
    assert not several[0] & several[1]


def _of_several(drawn: list[Hoist]) -> set[tuple[str, ...]]:
    return {hoist.letters for hoist in drawn if len(hoist.letters) > 1}


def test_the_answer_names_the_flags_in_their_order():
    for number in range(5):
        (turn,) = sample("flags", number, "train").turns
        assert turn.answer == " ".join(choose(Draw(number, "train", "flags"), 1.0).letters)


def test_nano_learns_nothing_of_flags():
    assert "flags" in FURTHER
    assert "flags" not in TASKS
    drawn = {Request(400, ()).sample(i).task for i in range(60)}
    assert "flags" not in drawn


@pytest.mark.slow
def test_flags_join_other_tasks_where_they_are_asked_for():
    drawn = {Request(40, ("flags", "talk")).sample(i).task for i in range(40)}
    assert drawn == {"flags", "talk"}
