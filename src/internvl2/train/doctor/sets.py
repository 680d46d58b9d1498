"""The data sets of a recipe, each opened by itself, with every record once."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from internvl2.console import one_line
from internvl2.train.data.formats import DataSet, Joined, Named, Record, Source, join, named_sources
from internvl2.train.data.mixture import NO_DATA, drawn_source, source_options
from internvl2.train.recipe import DataSource, Recipe, Synthetic

DRAWN = 100
"""So many samples of a drawn set are looked at: they are made by this package, and endless."""

Use = Literal["training", "validation", "guard", "questions"]

ReadQuestions = Callable[[Recipe], Source]
"""Reads `validation.questions`, each with an answer that would be right."""


@dataclass(frozen=True)
class OpenedSet:
    """A data set to look at."""

    name: str
    use: Use
    source: Source
    """Every record once, whatever is wrong with its boxes and turns."""
    stored: int
    """How many records there are, also beyond the limit."""
    epoch: int
    """How many samples an epoch sees."""


@dataclass(frozen=True, slots=True)
class ClosedSet:
    """A data set that cannot be opened."""

    name: str
    use: Use
    reason: str


def open_sets(
    recipe: Recipe, template: str, limit: int | None, read_questions: ReadQuestions | None = None
) -> list[OpenedSet | ClosedSet]:
    """All sets that a recipe trains on and measures with, at most the first `limit` of each."""
    found: list[OpenedSet | ClosedSet] = []
    for source in recipe.data:
        found += _opened(source, "training", template, limit)
    for drawn in recipe.synthetic:
        found.append(_drawn(drawn, "training", limit))
    if not found:
        raise ValueError(NO_DATA)
    for source in recipe.validation.data:
        found += _opened(replace(source, augment=False), "validation", template, limit)
    for drawn in recipe.validation.synthetic:
        found.append(_drawn(drawn, "validation", limit))
    if recipe.validation.questions is not None:
        assert read_questions is not None
        found.append(_asked(recipe, recipe.validation.questions, limit, read_questions))
    for source in recipe.guard.data:
        found += _opened(replace(source, augment=False), "guard", template, limit)
    return found


def _opened(
    source: DataSource, use: Use, template: str, limit: int | None
) -> list[OpenedSet | ClosedSet]:
    try:
        named = named_sources(source.path, source_options(source, template))
    except (ValueError, OSError) as error:
        return [ClosedSet(source.path, use, one_line(error))]
    return [_one(each, use, limit) for each in named]


def _one(named: Named, use: Use, limit: int | None) -> OpenedSet | ClosedSet:
    try:
        source = named.open()
    except (ValueError, OSError) as error:
        return ClosedSet(named.name, use, one_line(error))
    once = _once(source)
    return OpenedSet(named.name, use, _first(once, limit), len(once), len(source))


def _drawn(drawn: Synthetic, use: Use, limit: int | None) -> OpenedSet | ClosedSet:
    name = f"drawn: {', '.join(drawn.tasks) or 'all tasks'}"
    try:
        source = drawn_source(drawn, "train" if use == "training" else "test")
    except ValueError as error:
        return ClosedSet(name, use, one_line(error))
    few = replace(source, samples=min(source.samples, DRAWN if limit is None else limit))
    return OpenedSet(name, use, few, source.samples, source.samples)


def _asked(
    recipe: Recipe, path: str, limit: int | None, read: ReadQuestions
) -> OpenedSet | ClosedSet:
    try:
        records = read(recipe)
    except (ValueError, OSError) as error:
        return ClosedSet(path, "questions", one_line(error))
    return OpenedSet(path, "questions", _first(records, limit), len(records), len(records))


def _once(source: Source) -> Source:
    """The same records, none of them repeated or refused."""
    if isinstance(source, Joined):
        return join([_once(part) for part in source.sources])
    assert isinstance(source, DataSet)
    repeat = min(1.0, source.options.repeat)
    return replace(source, checked=False, options=replace(source.options, repeat=repeat))


@dataclass(frozen=True)
class _First:
    """The first records of a source."""

    source: Source
    count: int

    def __len__(self) -> int:
        return min(self.count, len(self.source))

    def __getitem__(self, index: int) -> Record:
        return self.source[index]


def _first(source: Source, limit: int | None) -> Source:
    return source if limit is None or limit >= len(source) else _First(source, limit)
