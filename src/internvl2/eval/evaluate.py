"""Asks a model questions with known answers and says how many it gets right."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from internvl2.engine.batch import Answered
from internvl2.engine.engine import Engine, EngineOptions
from internvl2.engine.sequence import SamplingParams
from internvl2.eval.questions import Asked, score_answer
from internvl2.eval.results import Given
from internvl2.eval.suites import Drawn
from internvl2.model.internvl import InternVL
from internvl2.processing.processor import EncodeOptions, Processor

BESIDE_TRAINING = EngineOptions(
    max_context=8192, cache_tokens=16384, max_sequences=8, vision_cache_bytes=0, vision_tiles=8
)
"""Small, for gradients and moments stay where they are."""


@dataclass(frozen=True, slots=True)
class Asking:
    """How questions are asked; the most probable token is taken each time."""

    max_tokens: int = 256
    """Most tokens of an answer."""
    encoding: EncodeOptions = field(default_factory=EncodeOptions)

    def params(self) -> SamplingParams:
        """The engine's form; the seed leaves Python's own random numbers alone."""
        return SamplingParams(max_tokens=self.max_tokens, seed=0)


@dataclass(frozen=True, slots=True)
class Row:
    """Mean scores of a data set or of one of its categories."""

    name: str
    questions: int
    answered: int
    """The scores are the means of these."""
    cut_off: int
    """Answers that were ended by max_tokens or the context."""
    scores: Mapping[str, float]


def ask(
    engine: Engine, questions: Sequence[Asked], asking: Asking | None = None
) -> Iterator[Answered]:
    """How each question ends, in the order in which they end; `index` is its place."""
    asking = asking or Asking()
    requests = (question.messages for question in questions)
    return engine.answers(requests, asking.params(), asking.encoding)


def summarise(
    questions: Sequence[Asked], given: Mapping[str, Given], metrics: Sequence[str]
) -> list[Row]:
    """A row per category, where there are any, and one for all, the last."""
    categories = dict.fromkeys(one.category for one in questions)
    rows = []
    if set(categories) != {None}:
        for category in categories:
            part = [one for one in questions if one.category == category]
            rows.append(_row("(none)" if category is None else category, part, given, metrics))
    return [*rows, _row("all", questions, given, metrics)]


def summarise_parts(questions: Sequence[Drawn], given: Mapping[str, Given]) -> list[Row]:
    """A row per part of a suite, by its own metrics, and one without scores for all, the last."""
    rows = [
        _row(part.name, [one for one in questions if one.part == part], given, part.metrics)
        for part in dict.fromkeys(one.part for one in questions)
    ]
    return [*rows, _row("all", questions, given, ())]


def score(
    model: Engine | InternVL,
    processor: Processor,
    questions: Sequence[Asked],
    metrics: Sequence[str],
    asking: Asking | None = None,
) -> dict[str, float]:
    """Mean scores over questions; the first that cannot be answered is an error.

    A model in training is left as it was, its modes and all random numbers included.
    """
    if not questions:
        raise ValueError("there is no question to score")
    given: dict[str, Given] = {}
    with _engine(model, processor) as engine:
        for answered in ask(engine, questions, asking):
            question = questions[answered.index]
            if answered.answer is None:
                raise ValueError(f"question {question.key}: {answered.error}")
            given[question.key] = Given(answered.answer.text, answered.answer.finish_reason)
    return dict(_row("all", questions, given, metrics).scores)


@dataclass(frozen=True, slots=True)
class Validation:
    """`score` with its questions, as a trainer calls it."""

    questions: Sequence[Asked]
    metrics: Sequence[str]
    asking: Asking = field(default_factory=Asking)

    def __call__(self, model: InternVL, processor: Processor, step: int) -> dict[str, float]:
        """Mean scores at a step."""
        return score(model, processor, self.questions, self.metrics, self.asking)


@contextmanager
def _engine(model: Engine | InternVL, processor: Processor) -> Iterator[Engine]:
    """An engine for a while; a model gets its modes back afterwards."""
    if isinstance(model, Engine):
        yield model
        return
    modes = [(module, module.training) for module in model.modules()]
    try:
        with Engine(model, processor, BESIDE_TRAINING) as engine:
            yield engine
    finally:
        for module, training in modes:
            module.training = training


def _row(
    name: str,
    questions: Sequence[Asked],
    given: Mapping[str, Given],
    metrics: Sequence[str],
) -> Row:
    pairs = [(one, given[one.key]) for one in questions if one.key in given]
    scored = [score_answer(question, answer.text, metrics) for question, answer in pairs]
    means = {name: sum(one[name] for one in scored) / len(scored) for name in metrics if scored}
    cut_off = sum(answer.finish_reason == "length" for _, answer in pairs)
    return Row(name, len(questions), len(pairs), cut_off, means)
