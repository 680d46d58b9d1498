"""All samples of a recipe looked at by worker processes, and what comes of it."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import accumulate
from math import ceil

import numpy as np

from internvl2.processing.processor import Processor
from internvl2.train.data.dataset import Dataset
from internvl2.train.data.filling import Costs, Limits, Waiting, plan_in_order, plan_packs
from internvl2.train.data.formats import SampleError, join
from internvl2.train.data.order import sample_at
from internvl2.train.data.workers import Workers
from internvl2.train.doctor.findings import Finding, control_tokens
from internvl2.train.doctor.inspection import Inspect, Inspected, Size, open_sample
from internvl2.train.doctor.page import Card
from internvl2.train.doctor.report import Packed, Report, SetReport, Shown
from internvl2.train.doctor.sets import ClosedSet, OpenedSet
from internvl2.train.doctor.tally import Tally
from internvl2.train.doctor.view import stretches
from internvl2.train.recipe import Recipe

logger = logging.getLogger(__name__)

CHUNK = 16
"""Samples that a worker looks at at a time."""
FEW = 64
"""So many samples are looked at sooner than processes start."""
MEASURED = ("validation", "questions")
"""Sets that say little of a model which has learned them."""
PLANNED = 2000
"""So many samples are packed to estimate how many packs all fill, as a run does."""


class Examination:
    """The sets of a recipe under examination; those that cannot be opened are told as they are."""

    def __init__(
        self, recipe: Recipe, processor: Processor, sets: Sequence[OpenedSet | ClosedSet]
    ) -> None:
        self.recipe, self.processor, self.sets = recipe, processor, sets
        opened = [each for each in sets if isinstance(each, OpenedSet)]
        starts = accumulate((len(each.source) for each in opened), initial=0)
        self.tallies = [Tally(each, start) for each, start in zip(opened, starts, strict=False)]
        self.samples = sum(len(each.source) for each in opened)
        """Of all sets that are open."""
        self.controls = control_tokens(processor.tokenizer)
        self.is_partial = False
        """Whether it was interrupted."""

    @property
    def dataset(self) -> Dataset:
        """All samples, each at its number."""
        packing = self.recipe.packing
        source = join([tally.set.source for tally in self.tallies])
        limits = Limits(packing.tokens, packing.tiles, packing.window)
        return Dataset(source, self.processor, limits, self.recipe.max_tiles, shuffle=False)

    def run(self, workers: int, advance: Callable[[int], object]) -> None:
        """Look at every sample; `advance` is told how many more are done.

        An interrupt ends it early, and what was found until then stays.
        """
        if not self.samples:
            return
        try:
            waiting = deque(self.tallies)
            for sample in self._inspected(workers if self.samples > FEW else 0):
                while waiting[0].inspected == len(waiting[0].set.source):
                    waiting.popleft()
                waiting[0].add(sample)
                advance(1)
        except KeyboardInterrupt:
            self.is_partial = True
        self._note_duplicates()

    def report(self, name: str, show: int) -> Report:
        """What was found, with so many samples of each set as the model reads them."""
        tallies = iter(self.tallies)
        sets = tuple(
            _closed(each) if isinstance(each, ClosedSet) else self._of_set(next(tallies), show)
            for each in self.sets
        )
        training = [tally for tally in self.tallies if tally.set.use == "training"]
        recipe, epoch = self.recipe, self._packed(training, 1.0)
        return Report(
            recipe=name,
            model=recipe.model,
            pack_tokens=recipe.packing.tokens,
            pack_tiles=recipe.packing.tiles,
            sets=sets,
            epoch=epoch,
            packs_per_step=recipe.packs_per_step,
            steps=self._steps(training),
            is_partial=self.is_partial,
        )

    def examples(self, count: int) -> list[list[Card]]:
        """At most so many samples of each set for the preview, those with findings first."""
        tallies = iter(self.tallies)
        return [
            [] if isinstance(each, ClosedSet) else self._examples(next(tallies), count)
            for each in self.sets
        ]

    def _examples(self, tally: Tally, count: int) -> list[Card]:
        flagged = list(dict.fromkeys(tally.flagged()))
        usable = [number for number in tally.spread_out(count) if number not in flagged]
        flagged = flagged[: max(count // 2, count - len(usable))]
        return list(self._cards(tally, [*flagged, *usable[: count - len(flagged)]]))

    def _cards(self, tally: Tally, numbers: Sequence[int]) -> Iterator[Card]:
        """Samples once more, but for those whose media are gone since they were looked at."""
        for number in numbers:
            opened = open_sample(self.dataset, tally.start + number, self.controls)
            findings = tuple(filter(tally.concerns, opened.findings))
            if opened.prompt is None:
                reason = findings[0].reason
                logger.warning("%s: not shown, it has changed: %s", opened.where, reason)
                continue
            shown = stretches(opened.prompt, self.processor.tokenizer)
            yield Card(replace(opened, findings=findings), shown)

    def _inspected(self, workers: int) -> Iterator[Inspected]:
        """Every sample in its order, looked at ahead where there are processes for it."""
        chunk = CHUNK if workers else 1
        with closing(Workers(self.dataset, workers)) as pool:
            tasks = (
                Inspect(start, min(start + chunk, self.samples), self.controls)
                for start in range(0, self.samples, chunk)
            )
            running: deque[Callable[[], tuple[Inspected, ...]]] = deque()
            for task in tasks:
                running.append(pool.submit(task))
                if len(running) > 2 * workers:
                    yield from running.popleft()()
            while running:
                yield from running.popleft()()

    def _note_duplicates(self) -> None:
        """Samples that are the same as an earlier one, those of training sets being the earlier."""
        ordered = sorted(self.tallies, key=lambda tally: tally.set.use != "training")
        digests = np.concatenate([np.asarray(tally.digests, np.uint64) for tally in ordered])
        ends = list(accumulate(tally.inspected for tally in ordered))
        order = np.argsort(digests, kind="stable")
        first = np.empty(len(order), np.int64)
        begins = np.flatnonzero(np.diff(digests[order], prepend=np.uint64(0)) != 0)
        lengths = np.diff(np.append(begins, len(order)))
        first[order[len(order) - lengths.sum() :]] = np.repeat(order[begins], lengths)
        known = digests != 0
        for number in np.flatnonzero(known & (first != np.arange(len(first)))):
            self._note_duplicate(ordered, ends, int(number), int(first[number]))

    def _note_duplicate(
        self, ordered: list[Tally], ends: list[int], number: int, first: int
    ) -> None:
        tally, own = _place(ordered, ends, number)
        other, earlier = _place(ordered, ends, first)
        crosses = tally.set.use in MEASURED and other.set.use == "training"
        kind = "also trained on" if crosses else "duplicate"
        if tally.notes_all(kind):
            tally.note(Finding(kind, ""), own, "")
            return
        reason = f"the same pictures and words as {_where(other, earlier)}"
        tally.note(Finding(kind, reason), own, _where(tally, own))

    def _of_set(self, tally: Tally, show: int) -> SetReport:
        return SetReport(
            name=tally.set.name,
            use=tally.set.use,
            stored=tally.set.stored,
            inspected=tally.inspected,
            usable=sum(tally.usable),
            found=tally.found(),
            totals=tally.totals(),
            epoch=None if tally.set.use == "questions" else self._packed([tally], 1.0),
            shown=tuple(map(_shown, self._cards(tally, tally.spread_out(show)))),
        )

    def _packed(self, tallies: Sequence[Tally], epochs: float) -> Packed | None:
        """The packs that the usable samples of these sets fill, in the order of a run."""
        samples = ceil(epochs * sum(tally.set.epoch for tally in tallies))
        ends = list(accumulate(tally.set.epoch for tally in tallies))
        planned = min(samples, PLANNED)
        sizes: list[Waiting] = []
        for ordinal in range(planned):
            place = sample_at(ordinal, ends[-1], self.recipe.seed)
            tally, number = _place(tallies, ends, place)
            if tally.inspected and tally.usable[at := number % tally.inspected]:
                sizes.append(Waiting(ordinal, tally.tokens[at], tally.tiles[at]))
        if not sizes:
            return None
        packing = self.recipe.packing
        limits = Limits(packing.tokens, packing.tiles, packing.window)
        if packing.fill == "in_order":
            packs = plan_in_order(sizes, limits)
        else:
            packs = plan_packs(sizes, limits, Costs.of(self.processor.config))
        tokens = sum(pack.tokens for pack in packs)
        return Packed(
            samples=round(sum(len(pack.samples) for pack in packs) * samples / planned),
            tokens=round(tokens * samples / planned),
            packs=ceil(len(packs) * samples / planned),
            filled=tokens / (len(packs) * packing.tokens),
            is_estimate=planned < samples or any(not tally.is_whole for tally in tallies),
        )

    def _steps(self, training: Sequence[Tally]) -> int | None:
        schedule = self.recipe.schedule
        if schedule.max_steps is not None:
            return schedule.max_steps
        run = self._packed(training, schedule.epochs)
        return None if run is None else max(1, ceil(run.packs / self.recipe.packs_per_step))


def _place(tallies: Sequence[Tally], ends: Sequence[int], number: int) -> tuple[Tally, int]:
    """The set in which a number of several falls, and its number there."""
    part = int(np.searchsorted(ends, number, side="right"))
    return tallies[part], number - (ends[part - 1] if part else 0)


def _shown(card: Card) -> Shown:
    assert card.opened.prompt is not None, "cards have prompts"
    size = Size.of(card.opened.prompt)
    return Shown(card.opened.where, size.tokens, size.tiles, card.stretches)


def _where(tally: Tally, number: int) -> str:
    try:
        return tally.set.source[number].where
    except SampleError as error:
        return error.where


def _closed(each: ClosedSet) -> SetReport:
    return SetReport(each.name, each.use, 0, 0, 0, (), None, None, (), closed=each.reason)
