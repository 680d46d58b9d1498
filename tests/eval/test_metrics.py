"""Scores of single answers: cases worked out by hand, and references written another way."""

import math
import re
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl2.eval import metrics
from internvl2.eval.metrics import METRICS, answer_boxes, choice_letter
from internvl2.eval.vqa_words import normalise

SHORT = st.text("ab ABß%5.0", max_size=12)
TARGETS = st.lists(SHORT, min_size=1, max_size=10)
SIDE = st.sets(st.integers(0, 9), min_size=2, max_size=2).map(sorted)
BOX = st.builds(lambda x, y: (x[0], y[0], x[1], y[1]), SIDE, SIDE)


def edit_distance(a: str, b: str) -> int:
    """By the recursion in which Levenshtein's distance is defined."""

    @cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        if a[i - 1] == b[j - 1]:
            return distance(i - 1, j - 1)
        return 1 + min(distance(i - 1, j), distance(i, j - 1), distance(i - 1, j - 1))

    return distance(len(a), len(b))


def leave_one_out(answer: str, targets: list[str]) -> float:
    """VQA accuracy as it is defined: for each annotator, how many of the others agree."""
    words = [normalise(target) for target in targets]
    shares = []
    for left_out in range(len(words)):
        others = words[:left_out] + words[left_out + 1 :]
        shares.append(min(1, others.count(normalise(answer)) / 3))
    return sum(shares) / len(shares)


@given(SHORT, TARGETS)
def test_every_metric_lies_between_0_and_1_and_more_right_answers_never_lower_it(answer, targets):
    for name in METRICS.keys() - {"vqa_accuracy"}:
        few = METRICS[name](answer, targets)
        assert 0 <= few <= METRICS[name](answer, [*targets, "5"]) <= 1


@pytest.mark.parametrize("name", METRICS)
def test_a_right_answer_has_the_full_score(name: str):
    target = "B. <ref>a cat</ref><box>[[10, 20, 300, 400]]</box>"
    assert METRICS[name](target, [target]) == 1


def test_exact_match_forgives_case_and_outer_spaces_only():
    assert metrics.exact_match(" Paris\n", ["London", "paris"]) == 1
    assert metrics.exact_match("Paris.", ["Paris"]) == 0


@pytest.mark.parametrize(
    ("answer", "targets", "score"),
    [
        ("hello", ["hallo"], 0.8),
        ("Hello  World", ["hello world"], 1.0),
        ("abcd", ["abxy"], 0.5),
        ("abcd", ["axyz"], 0.0),
        ("", ["x"], 0.0),
        ("42", ["forty-two", "42"], 1.0),
        ("ab ", ["ac"], 1 - 1 / 3),
    ],
)
def test_anls_of_worked_cases(answer: str, targets: list[str], score: float):
    assert metrics.anls(answer, targets) == pytest.approx(score)


@given(SHORT, SHORT)
def test_anls_agrees_with_its_definition(answer: str, target: str):
    one, other = (" ".join(text.lower().split()) for text in (answer, target))
    length = max(len(answer.upper()), len(target.upper()))
    similarity = 1 - (edit_distance(one, other) / length if length else 0)
    expected = similarity if similarity >= 0.5 else 0
    assert metrics.anls(answer, [target]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "target", "score"),
    [
        ("95", "100", 1),
        ("105.1", "100", 0),
        ("94.9", "100", 0),
        ("-9.6", "-10", 1),
        ("50%", "0.5", 1),
        ("50", "50%", 0),
        ("0", "0", 1),
        ("0.0", "0", 0),
        ("YES", "yes", 1),
        ("1,000", "1000", 0),
        ("nan", "NaN", 1),
        ("inf", "5", 0),
    ],
)
def test_relaxed_accuracy_of_worked_cases(answer: str, target: str, score: float):
    assert metrics.relaxed_accuracy(answer, [target]) == score


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6).filter(bool))
def test_relaxed_accuracy_takes_five_percent_of_the_right_number(given_one: float, right: float):
    is_within = math.fabs(given_one - right) / math.fabs(right) <= 0.05
    assert metrics.relaxed_accuracy(repr(given_one), [repr(right)]) == is_within


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("The  two Dogs!", "2 dogs"),
        ("black-white", "black white"),
        ("x - y", "x y"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("$10,000.50", "$10000.50"),
        ("U.S.A.", "usa"),
        ("John's car", "john 's car"),
        ("none", "0"),
        ("an apple a day", "apple day"),
        ("left/right", "left right"),
    ],
)
def test_short_answers_take_the_normal_form_of_evalai(answer: str, words: str):
    assert normalise(answer) == words


@given(st.text("ab ,.?!-'s1\n", max_size=15))
def test_the_normal_form_has_single_spaces_and_no_marks(answer: str):
    words = normalise(answer)
    assert words == " ".join(words.split())
    assert not re.search(r"[,?!-]|\.(?!\d)", words)


@pytest.mark.parametrize(("matches", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1)])
def test_vqa_accuracy_by_how_many_of_ten_agree(matches: int, score: float):
    targets = ["a cat"] * matches + [f"dog {i}" for i in range(10 - matches)]
    assert metrics.vqa_accuracy("Cat", targets) == pytest.approx(score)


@given(SHORT, st.lists(SHORT, min_size=4, max_size=10))
def test_vqa_accuracy_agrees_with_its_definition(answer: str, targets: list[str]):
    targets[0] = answer
    expected = leave_one_out(answer, targets)
    assert metrics.vqa_accuracy(answer, targets) == pytest.approx(expected)


def test_vqa_accuracy_needs_one_match_where_few_answers_are_known():
    assert metrics.vqa_accuracy("The cat", ["cat"]) == 1
    assert metrics.vqa_accuracy("dog", ["cat", "mouse"]) == 0


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        (" b.", "B"),
        ("(C)", "C"),
        ("**D**", "D"),
        ("B. a cat", "B"),
        ("(B) a cat", "B"),
        ("The answer is B.", "B"),
        ("The correct option is (C), a dog", "C"),
        ("Answer: A. No: the answer is D", "D"),
        ("答案是B", "B"),
        ("I choose (A)", "A"),
        ("A cat sits there", None),
        ("the answer is a cat", None),
        ("(A) or maybe (B)", "A"),
        ("Either (A) or (B)", None),
        ("cat", None),
        ("", None),
    ],
)
def test_the_letter_of_an_answer(text: str, letter: str | None):
    assert choice_letter(text) == letter


def test_an_answer_without_letter_is_wrong():
    assert metrics.choice("a cat", ["A"]) == 0
    assert metrics.choice("B) a dog", ["B"]) == 1
    assert metrics.choice("B", ["A. a cat", "B. a dog"]) == 1


def test_containment_as_in_ocrbench():
    assert metrics.contains("It says\nSTOP here", ["says stop"]) == 1
    assert metrics.contains("S T O P", ["stop"]) == 0
    assert metrics.contains_formula("x ^ 2 + 1", ["x^2"]) == 1
    assert metrics.contains_formula("X^2", ["x^2"]) == 0


@given(st.text("ab", max_size=8), st.text("ab", min_size=1, max_size=8))
def test_character_similarity_agrees_with_its_definition(answer: str, target: str):
    expected = 1 - edit_distance(answer, target) / max(len(answer), len(target))
    assert metrics.character_similarity(f" {answer}\n", [target]) == pytest.approx(expected)


def boxes_text(*boxes: tuple[int, ...]) -> str:
    return f"<ref>x</ref><box>{[[100 * side for side in box] for box in boxes]}</box>"


@given(BOX, BOX)
def test_iou_agrees_with_counting_cells(one: tuple[int, ...], other: tuple[int, ...]):
    first, second = (
        {(x, y) for x in range(a, c) for y in range(b, d)} for a, b, c, d in (one, other)
    )
    expected = len(first & second) / len(first | second)
    assert metrics.iou(boxes_text(one), [boxes_text(other)]) == pytest.approx(expected)
    assert metrics.precision(boxes_text(one), [boxes_text(other)]) == (expected >= 0.5)


def test_several_boxes_are_paired_off_and_missing_ones_count_nothing():
    left, right = (0, 0, 4, 4), (5, 5, 9, 9)
    assert metrics.iou(boxes_text(right, left), [boxes_text(left, right)]) == 1
    assert metrics.iou(boxes_text(left), [boxes_text(left, right)]) == 0.5
    assert metrics.precision(boxes_text(left, right), [boxes_text(right)]) == 0.5
    assert metrics.iou("nowhere", [boxes_text(left)]) == 0


def test_boxes_may_come_without_tags_and_as_fractions():
    (bare,) = answer_boxes("It is at [100, 200, 300, 400].")
    (fractions,) = answer_boxes("[0.1, 0.2, 0.3, 0.4]")
    assert (bare.left, bare.bottom) == (100, 400)
    assert (fractions.left, fractions.bottom) == pytest.approx((100, 400))


def test_right_answers_that_a_metric_cannot_use_are_refused():
    with pytest.raises(ValueError, match="'cat' names no letter"):
        metrics.check_targets("choice", ["cat"])
    with pytest.raises(ValueError, match="'cat' has no box"):
        metrics.check_targets("iou", ["cat"])
    metrics.check_targets("anls", ["cat"])


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("a b\nc", 1.0),
        ("a  b \n c\n", 1.0),
        ("c", 0.5),
        ("A b\nc", 0.5),
        ("c\na b", 0.5),
        ("", 0.0),
    ],
)
def test_lines_count_where_all_of_them_is_right_and_in_order(answer: str, score: float):
    assert METRICS["lines_exact"](answer, ["a b\nc"]) == score
