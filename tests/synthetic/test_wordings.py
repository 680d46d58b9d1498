"""How questions are asked: varied, never alike, and never about something else."""

import pytest

from internvl2.synthetic.catalogue import sample
from internvl2.synthetic.draw import Draw
from internvl2.synthetic.sample import Turn
from internvl2.synthetic.wordings import READ, READ_CHINESE, spoken, vary

pytestmark = pytest.mark.slow


def forms(question: str) -> set[str]:
    return {vary(Draw(number, "train", "test"), question) for number in range(300)}


def test_a_question_is_asked_without_capital_or_mark_short_polite_and_with_slips():
    found = forms("What is the total?")
    assert {"what is the total", "total?", "total", "Hi! What is the total?"} <= found
    assert any("total" not in form for form in found)


def test_an_order_is_asked_politely():
    found = forms("Read the text.")
    assert {"Please read the text", "Could you read the text?", "read the text"} <= found


def test_a_name_at_the_start_keeps_its_capital():
    assert all("Bread" in form for form in forms("Bread?"))


def test_chinese_questions_stay_chinese():
    found = forms("图中写了什么？")
    assert {"图中写了什么", "请问，图中写了什么"} <= found


def test_what_a_question_quotes_is_left_alone():
    asked = 'Where is the word "Which"?'
    assert all('"Which"' in form for form in forms(asked))


def test_no_two_questions_become_alike():
    turns = [Turn("Read this.", "a"), Turn("Read this", "b"), Turn("read this", "c")]
    for number in range(200):
        made = spoken(Draw(number, "train", "test"), turns)
        assert len({turn.question for turn in made}) == 3
        assert [turn.answer for turn in made] == ["a", "b", "c"]


@pytest.mark.parametrize("task", ["reading", "documents", "scene"])
def test_the_usual_questions_occur_in_both_splits(task: str):
    for split in ("train", "test"):
        asked = {sample(task, number, split).turns[0].question for number in range(500)}
        assert {"OCR", "Read the text.", "What does it say?"} <= asked & {*READ, *asked}


def test_chinese_pictures_are_asked_in_chinese():
    asked = [sample("chinese", number, "train").turns[0].question for number in range(300)]
    assert sum(not one.isascii() for one in asked) > 200
    assert len(set(asked) & set(READ_CHINESE)) > 12
