"""EvalAI's normal form of short English answers, for VQA accuracy.

The rules, their order and their oddities are those of `EvalAIAnswerProcessor` in the official
eval/vqa/textvqa_eval.py (from facebookresearch/mmf, pythia/tasks/processors.py), for published
scores depend on them.
"""

import re
from types import MappingProxyType

_PUNCTUATION = ';/[]"{}()=+\\_-><@`!'
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32
"""The official code hands the flag re.UNICODE, 32, over as the number of replacements."""
_ARTICLES = frozenset(("a", "an", "the"))
_DIGITS = "zero one two three four five six seven eight nine ten"
_NUMBERS = MappingProxyType(
    {word: str(value) for value, word in enumerate(_DIGITS.split())} | {"none": "0"}
)
_SHORT_FORMS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's they'd
they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def normalise(answer: str) -> str:
    """The answer without case, articles and most punctuation, small numbers as digits."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    words = (_NUMBERS.get(word, word) for word in _without_punctuation(text).split())
    return " ".join(_MENDED.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    """A mark at the edge of a word vanishes, one inside a word becomes a space."""
    cleaned = text
    for mark in _PUNCTUATION:
        at_edge = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if at_edge else " ")
    return _PERIOD.sub("", cleaned, count=_MOST_PERIODS)


def _with_one_apostrophe_missing(form: str) -> list[str]:
    return [form[:i] + form[i + 1 :] for i, letter in enumerate(form) if letter == "'"]


_MENDED = MappingProxyType(
    {wrong: form for form in _SHORT_FORMS.split() for wrong in _with_one_apostrophe_missing(form)}
    | {"somebody'd": "somebodyd"}
)
"""Short forms written without one of their apostrophes, and one oddity of the original."""
