"""Scenes, Chinese, talk, and pictures that cannot be read."""

import re

import pytest
from PIL import Image

from internvl2.synthetic import camera
from internvl2.synthetic.catalogue import sample
from internvl2.synthetic.draw import Draw
from internvl2.synthetic.tasks import chinese, scene, talk, unreadable
from internvl2.synthetic.words import Split, characters

pytestmark = pytest.mark.slow


def answers(task: str, split: Split, questions: tuple[str, ...], count: int = 400) -> set[str]:
    turns = [turn for i in range(count) for turn in sample(task, i, split).turns]
    return {turn.answer for turn in turns if turn.question in questions}


@pytest.mark.parametrize(
    ("task", "questions"), [("scene", scene.READ_ALL), ("chinese", chinese.READ_ALL)]
)
def test_no_text_is_drawn_for_both_splits(task: str, questions: tuple[str, ...]):
    train, test = (answers(task, split, questions) for split in ("train", "test"))
    assert len(test) > 80
    assert not train & test


def test_signs_of_the_splits_have_other_pairs_of_colours():
    pairs: dict[str, set[str]] = {}
    for split in ("train", "test"):
        turns = [turn for i in range(300) for turn in sample("scene", i, split).turns]
        found = (re.match(r"An? (\w+ sign with \w+) letters", turn.answer) for turn in turns)
        pairs[split] = {match[1] for match in found if match}
    assert min(map(len, pairs.values())) > 1
    assert not pairs["train"] & pairs["test"]


def test_a_panel_fills_the_four_corners_it_was_given():
    ground = Image.new("RGB", (100, 100))
    white = camera.Panel(Image.new("L", (30, 20)), (255, 255, 255), (0, 0, 0))
    camera.place(ground, white, ((20, 10), (80, 20), (70, 80), (25, 70)))
    assert ground.getpixel((50, 45)) == (255, 255, 255)
    assert ground.getpixel((10, 50)) == (0, 0, 0)
    left, top, right, bottom = ground.getbbox() or (0, 0, 0, 0)
    assert (left, top) >= (20, 10)
    assert (right, bottom) <= (81, 81)
    assert right - left > 55


def test_a_panel_in_perspective_is_not_mirrored():
    mask = Image.new("L", (40, 20))
    mask.paste(255, (0, 0, 20, 20))
    panel = camera.Panel(mask, (255, 255, 255), (255, 0, 0))
    ground = Image.new("RGB", (100, 100))
    camera.place(ground, panel, ((10, 10), (90, 10), (90, 60), (10, 60)))
    assert ground.getpixel((25, 35)) == (255, 0, 0)
    assert ground.getpixel((75, 35)) == (255, 255, 255)


def test_grain_keeps_the_size_and_stays_near_the_colour():
    image = camera.noise(Draw(1), Image.new("RGB", (900, 1300), (120, 120, 120)), 10)
    assert image.size == (900, 1300)
    assert all(105 <= level <= 135 for extreme in image.getextrema() for level in extreme)


def test_only_known_characters_are_written():
    known = set(characters())
    for number in range(300):
        for turn in sample("chinese", number, "train").turns:
            written = {letter for letter in turn.answer if "\u4e00" <= letter <= "\u9fff"}
            assert written <= known


def test_talk_has_no_pictures_and_no_two_answers_to_a_question():
    known: dict[str, str] = {}
    for number in range(2000):
        made = sample("talk", number, "train")
        assert made.images == ()
        for turn in made.turns:
            assert known.setdefault(turn.question, turn.answer) == turn.answer


def test_small_sums_of_a_talk_are_right_and_of_one_split():
    sums: dict[str, set[str]] = {"train": set(), "test": set()}
    for split, found in sums.items():
        for number in range(1500):
            for turn in talk.make(Draw(number, split), 1.0).turns:
                if match := re.search(r"\d+ [-+] \d+", turn.question):
                    assert eval(match[0]) == int(turn.answer)
                    found.add(match[0])
    assert not sums["train"] & sums["test"]


def test_nothing_is_read_where_nothing_can_be_read():
    for number in range(200):
        for turn in sample("unreadable", number, "train").turns:
            if turn.question in unreadable.READ:
                assert turn.answer in (unreadable.CANNOT_READ, unreadable.NO_TEXT)


def test_blurred_text_has_no_sharp_edge():
    for seed in range(20):
        (image,) = unreadable._blurred(Draw(seed), (448, 448)).images
        levels = image.convert("L")
        steps = [abs(levels.getpixel((x, 200)) - levels.getpixel((x + 1, 200))) for x in range(446)]
        assert max(steps) < 40
