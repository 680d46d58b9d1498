"""How right an answer is: pure functions of the answer and the answers that count as right.

Each gives 0 to 1 for one question, the best over the right answers, as the benchmarks' own programs
do; the mean over a data set is the published figure. Sources are named at each function.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from types import MappingProxyType

from rapidfuzz.distance import LCSseq, Levenshtein

from internvl2.eval.vqa_words import normalise
from internvl2.processing.grounding import SCALE, Box, find_boxes

Metric = Callable[[str, Sequence[str]], float]

ANLS_THRESHOLD = 0.5
RELAXED_CHANGE = 0.05
PRECISION_IOU = 0.5

_ALONE = re.compile(r"[\s(\[*]*([A-Za-z])[\s)\].:,*。]*")
_LEADING = re.compile(r"[\s(\[*]*([A-Z])\**[.:)\]、:]")
_ANNOUNCED = re.compile(
    r"(?i:answer|option|choice)\W*(?:(?i:is|are|would be)\b)?[\s:(\[*]*([A-Z])(?![A-Za-z'’])"
    r"|(?:答案|选项|选)[是为]?[\s:(\[*]*([A-Z])(?![A-Za-z])"
)
_BRACKETED = re.compile(r"\(([A-Z])\)")


def exact_match(answer: str, targets: Sequence[str]) -> float:
    """Equal but for case and outer whitespace: `accuracy` of the official eval/vqa."""
    return float(any(answer.strip().lower() == target.strip().lower() for target in targets))


def anls(answer: str, targets: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity of DocVQA (arXiv:1905.13648), cut off below 0.5.

    Like the benchmark's program, the distance is between collapsed lower-case texts, and divided by
    the length of the longer text as it was written.
    """
    similarity = max(_document_similarity(answer, target) for target in targets)
    return similarity if similarity >= ANLS_THRESHOLD else 0.0


def relaxed_accuracy(answer: str, targets: Sequence[str]) -> float:
    """ChartQA (arXiv:2203.10244, 5.1): numbers within 5 % of the right one, other texts equal.

    A trailing `%` divides by 100; a right answer of 0 is compared as a text (pix2struct's
    metrics.py). The official eval/vqa hands the two texts over in the other order, which measures
    the 5 % from the model's answer; here they are measured from the right one, as published.
    """
    return float(any(_is_relaxed_match(answer.strip(), target.strip()) for target in targets))


def vqa_accuracy(answer: str, targets: Sequence[str]) -> float:
    """VQAv2 (arXiv:1505.00468): min(matches / 3, 1), averaged over leaving out each annotator.

    Texts are normalised as EvalAI does. Below four right answers three annotators cannot agree once
    one is left out; then one match is enough, as for ST-VQA in the official textvqa_eval.py.
    """
    given = normalise(answer)
    matches = sum(normalise(target) == given for target in targets)
    if len(targets) < 4:
        return float(matches > 0)
    left = matches * min(1.0, (matches - 1) / 3)
    others = (len(targets) - matches) * min(1.0, matches / 3)
    return (left + others) / len(targets)


def choice(answer: str, targets: Sequence[str]) -> float:
    """Whether the answer names the letter of the right option; see `choice_letter`."""
    letter = choice_letter(answer)
    return float(letter is not None and letter in map(choice_letter, targets))


def contains(answer: str, targets: Sequence[str]) -> float:
    """OCRBench (arXiv:2305.07895): a right answer stands in the answer, whatever the case."""
    text = _on_one_line(answer.lower())
    return float(any(_on_one_line(target.lower()) in text for target in targets))


def contains_formula(answer: str, targets: Sequence[str]) -> float:
    """OCRBench for handwritten formulas (HME100K): spaces do not count, the case does."""
    text = _on_one_line(answer).replace(" ", "")
    return float(any(_on_one_line(target).replace(" ", "") in text for target in targets))


def character_similarity(answer: str, targets: Sequence[str]) -> float:
    """1 - edit distance / length of the longer text, for transcriptions; case counts."""
    text = " ".join(answer.split())
    return max(
        Levenshtein.normalized_similarity(text, " ".join(target.split())) for target in targets
    )


def lines_exact(answer: str, targets: Sequence[str]) -> float:
    """Share of the lines that are exactly right and in order, for transcriptions; case counts."""
    lines = _lines(answer)
    return max(LCSseq.normalized_similarity(lines, _lines(target)) for target in targets)


def iou(answer: str, targets: Sequence[str]) -> float:
    """Intersection over union of boxes; of several, paired off best first, unpaired ones 0."""
    boxes = answer_boxes(answer)
    return max(_mean(_paired_ious(boxes, answer_boxes(target))) for target in targets)


def precision(answer: str, targets: Sequence[str]) -> float:
    """RefCOCO's precision@1 (official eval/refcoco): the box overlaps with IoU of 0.5 or more."""
    boxes = answer_boxes(answer)
    return max(
        _mean([float(one >= PRECISION_IOU) for one in _paired_ious(boxes, answer_boxes(target))])
        for target in targets
    )


METRICS: MappingProxyType[str, Metric] = MappingProxyType(
    {
        "exact_match": exact_match,
        "anls": anls,
        "relaxed_accuracy": relaxed_accuracy,
        "vqa_accuracy": vqa_accuracy,
        "choice": choice,
        "contains": contains,
        "contains_formula": contains_formula,
        "character_similarity": character_similarity,
        "lines_exact": lines_exact,
        "iou": iou,
        "precision@0.5": precision,
    }
)
"""What `--metric` knows."""


def choice_letter(text: str) -> str | None:
    """The letter that an answer chooses: alone, leading ("B. a cat"), announced, or in brackets.

    Of several announcements the last counts. None where no letter, or more than one, is named;
    nothing is guessed, unlike MMMU's own program.
    """
    if alone := _ALONE.fullmatch(text):
        return alone[1].upper()
    if leading := _LEADING.match(text):
        return leading[1]
    announced = [one[1] or one[2] for one in _ANNOUNCED.finditer(text)]
    if announced:
        return announced[-1]
    bracketed = set(_BRACKETED.findall(text))
    return bracketed.pop() if len(bracketed) == 1 else None


def answer_boxes(text: str) -> tuple[Box, ...]:
    """The boxes of an answer, within `<box>` or, where that is missing, bare in brackets.

    As in the official eval/refcoco, four numbers that add up to less than 4 are fractions of the
    picture rather than thousandths.
    """
    boxes = find_boxes(text) or find_boxes(f"<box>{text.replace('<', ' ')}</box>")
    return tuple(_in_thousandths(box) for box in boxes)


def check_targets(metric: str, targets: Iterable[str]) -> None:
    """Refuses right answers that a metric cannot use."""
    for target in targets:
        if metric == "choice" and choice_letter(target) is None:
            raise ValueError(f"the answer {target!r} names no letter, which {metric} needs")
        if metric in ("iou", "precision@0.5") and not answer_boxes(target):
            raise ValueError(f"the answer {target!r} has no box, which {metric} needs")


def _document_similarity(answer: str, target: str) -> float:
    distance = Levenshtein.distance(_collapsed(answer), _collapsed(target))
    length = max(len(answer.upper()), len(target.upper()))
    return 1 - distance / length if length else 1.0


def _collapsed(text: str) -> str:
    return " ".join(text.strip().lower().split())


def _is_relaxed_match(answer: str, target: str) -> bool:
    given, right = _number(answer), _number(target)
    if given is None or not right:
        return answer.lower() == target.lower()
    return abs(given - right) / abs(right) <= RELAXED_CHANGE


def _number(text: str) -> float | None:
    try:
        number = float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.strip().splitlines()]


def _on_one_line(text: str) -> str:
    return text.strip().replace("\n", " ")


def _paired_ious(boxes: Sequence[Box], targets: Sequence[Box]) -> list[float]:
    """One figure per pair, best pairs first; a box without partner counts 0."""
    overlaps = sorted(
        ((_overlap(a, b), i, j) for i, a in enumerate(boxes) for j, b in enumerate(targets)),
        key=lambda entry: -entry[0],
    )
    paired: list[float] = []
    rows, columns = set(range(len(boxes))), set(range(len(targets)))
    for overlap, row, column in overlaps:
        if row in rows and column in columns:
            rows.remove(row)
            columns.remove(column)
            paired.append(overlap)
    return paired + [0.0] * (len(rows) + len(columns))


def _overlap(a: Box, b: Box) -> float:
    width = min(a.right, b.right) - max(a.left, b.left)
    height = min(a.bottom, b.bottom) - max(a.top, b.top)
    shared = max(0.0, width) * max(0.0, height)
    union = _area(a) + _area(b) - shared
    return shared / union if union else 0.0


def _area(box: Box) -> float:
    return (box.right - box.left) * (box.bottom - box.top)


def _in_thousandths(box: Box) -> Box:
    sides = (box.left, box.top, box.right, box.bottom)
    if sum(sides) >= 4:
        return box
    return Box(box.label, *(min(side * SCALE, SCALE) for side in sides))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
