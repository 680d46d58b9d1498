"""Suites: the same held-out questions each time, of the right kinds, with right answers."""

import pytest

from internvl2.eval.questions import score_answer
from internvl2.eval.suites import SUITES, draw_suite, find
from internvl2.processing.conversation import Picture, Video

COUNT = 4


def test_a_suite_is_the_same_each_time():
    assert draw_suite("nano", 2, 1.0, len_of) == draw_suite("nano", 2, 1.0, len_of)


def len_of(done: int) -> int:
    return done


def test_every_part_has_its_count_and_its_right_answers_score_1():
    suite = draw_suite("nano", COUNT, 1.0, len_of)
    assert len(suite.questions) == COUNT * len(SUITES["nano"])
    for one in suite.questions:
        scores = score_answer(one, one.answers[0], one.part.metrics)
        assert scores == dict.fromkeys(one.part.metrics, 1.0), one


def test_pictures_are_drawn_for_the_question():
    for one in draw_suite("nano", COUNT, 1.0, len_of).questions:
        media = [part for part in one.messages[0].content if isinstance(part, Picture | Video)]
        if one.part.task == "talk":
            assert not media
        else:
            assert media
        assert isinstance(media[0], Video) if one.part.task == "video" else True


def test_directions_and_texts_are_what_their_parts_hold():
    suite = draw_suite("nano", 12, 1.0, len_of).questions
    ways = {one.answers[0] for one in suite if one.category == "video direction"}
    assert {way.split()[-1] for way in ways} <= {"left", "right", "up", "down"}
    assert any("\n" in one.answers[0] for one in suite if one.category == "document text")


def test_an_unknown_suite_is_refused_with_those_known():
    with pytest.raises(ValueError, match="unknown suite 'giga'; known: nano"):
        find("giga")


def test_a_difficulty_without_questions_of_a_part_is_refused_by_name():
    with pytest.raises(ValueError, match=r"difficulty 0 have no question for 'chinese fields'"):
        draw_suite("nano", 1, 0.0, len_of)
