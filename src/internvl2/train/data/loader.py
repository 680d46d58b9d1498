"""The packs of a run, step by step: planned alike on every rank, made ahead by worker processes.

Packs are numbered through the run. Step s has the packs from s * packs_per_step on, and of those
rank r of n makes numbers r, r + n, ...: so neither ranks nor workers change what a step learns. A
`Position` after each step is all that resuming needs, on any number of ranks.
"""

import json
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain
from math import ceil
from pathlib import Path
from typing import Any, TypeVar

from internvl2.processing.processor import PromptSize
from internvl2.train.data.dataset import Dataset, Fault
from internvl2.train.data.filling import Costs, Fill, PackPlan, Planner, Waiting
from internvl2.train.data.packing import LossWeighting, TrainBatch, tile_buckets
from internvl2.train.data.tile_store import TileStore
from internvl2.train.data.workers import CountTiles, Made, Make, Measure, Workers

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

CHUNK = 16
"""Samples that a worker measures at a time."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a run stands in its data."""

    next_sample: int = 0
    """Samples seen so far, counted through all epochs."""
    waiting: tuple[Waiting, ...] = ()
    """Those of them that no pack has taken yet."""
    step: int = 0
    skipped: int = 0
    """Samples that could not be used."""
    epoch: int | None = None
    """Samples of an epoch, by which all this is counted; None where a checkpoint does not say."""

    def state(self) -> dict[str, Any]:
        """As plain numbers, for a checkpoint."""
        return asdict(self)

    @classmethod
    def of(cls, state: dict[str, Any]) -> "Position":
        """From what `state` gave, also after JSON."""
        waiting = tuple(Waiting(**sample) for sample in state["waiting"])
        counts = (state["step"], state["skipped"], state.get("epoch"))
        return cls(state["next_sample"], waiting, *counts)


@dataclass(frozen=True, slots=True)
class LoaderOptions:
    """How packs come to the trainer."""

    packs_per_step: int = 1
    """Over all ranks and accumulation steps."""
    epochs: float | None = 1.0
    """None goes on for ever."""
    rank: int = 0
    world: int = 1
    workers: int = 0
    """Processes; 0 makes everything in this one."""
    prefetch: int = 2
    """Steps that workers make ahead; more where those have fewer packs than there are workers."""
    fill: Fill = "evenly"
    weighting: LossWeighting = "token"
    skip_bad_samples: int = 0
    """How many samples may be left out; the next one stops the run."""
    bad_samples: Path | None = None
    """File to which samples that were left out are written."""
    idle_tiles: bool = False
    """Where another rank has tiles in its pack and this one has none, give it a bucket of black
    tiles, so that every rank runs its sharded vision tower."""
    store: TileStore | None = None
    """Where features of tiles may be found instead."""

    def __post_init__(self) -> None:
        if self.packs_per_step < 1 or self.packs_per_step % self.world:
            raise ValueError(
                f"packs_per_step is {self.packs_per_step}; "
                f"a multiple of the {self.world} processes was expected"
            )
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank {self.rank} of {self.world}")


@dataclass(frozen=True)
class Step:
    """What this rank learns from in one optimizer step."""

    batches: tuple[TrainBatch, ...]
    """As many on every rank; at the end of the data some may be empty."""
    position: Position
    """Where the run stands after it."""


@dataclass(frozen=True, slots=True)
class _Planned:
    """A step before its packs are made."""

    packs: tuple[PackPlan, ...]
    position: Position
    faults: tuple[Fault, ...]


@dataclass(frozen=True, slots=True)
class _Ordered:
    """A step whose packs of this rank are being made."""

    planned: _Planned
    made: tuple[Callable[[], Made], ...]


def _counted(position: Position, samples: int) -> Position:
    """The position in data of so many samples; an error where it was counted by others."""
    if position.epoch not in (None, samples):
        raise ValueError(
            f"an epoch of the data has {samples} samples, and had {position.epoch} when the run "
            "was begun, which counts what it has seen by them; put the data back as it was "
            "(samples may be mended, and skip_bad_samples leaves out what cannot be used), or give "
            "another --output"
        )
    return replace(position, epoch=samples)


class Loader:
    """Iterates over the steps of a run from a position on."""

    def __init__(
        self,
        dataset: Dataset,
        costs: Costs,
        options: LoaderOptions | None = None,
        position: Position | None = None,
    ) -> None:
        self.dataset, self.costs = dataset, costs
        self.options = options or LoaderOptions()
        self.position = _counted(position or Position(), len(dataset))
        self.left_out = self.position.skipped
        """Samples that this rank knows to be left out."""
        self._workers = Workers(dataset, self.options.workers)
        epochs = self.options.epochs
        self._samples = None if epochs is None else ceil(epochs * len(dataset))
        self._buckets = tile_buckets(dataset.limits.tiles)

    def __iter__(self) -> Iterator[Step]:
        """The steps; `position` follows them."""
        ordered: deque[_Ordered] = deque()
        ahead = self._steps_ahead
        for planned in self._plan(self.position):
            ordered.append(self._order(planned))
            if len(ordered) > ahead:
                yield from self._finish(ordered.popleft())
        while ordered:
            yield from self._finish(ordered.popleft())
        if not self.position.step:
            raise ValueError(f"none of the {len(self.dataset)} samples can be used")

    def count_steps(self, samples: int = 2000) -> int:
        """Steps of the whole run: exact where it has no more than so many samples, else estimated.

        The estimate looks at sizes alone, and is the same on every rank and after resuming.
        """
        if self._samples is None:
            raise ValueError("a run over endless epochs has no number of steps")
        if self.options.fill == "in_order":
            return ceil(self._samples / self._samples_of_step)
        measured = min(samples, self._samples)
        packs = sum(len(step.packs) for step in self._plan(Position(), measured))
        return max(1, ceil(packs * self._samples / measured / self.options.packs_per_step))

    def tiles_of_samples(self) -> dict[tuple[str, int], int]:
        """Tiles of each sample of an epoch, by its place and their number.

        Only headers of pictures are read. ValueError where a sample is augmented.
        """
        chunks = self._in_chunks(CountTiles, 0, len(self.dataset))
        return {(one.where, one.tiles): one.tiles for one in chain.from_iterable(chunks)}

    def close(self) -> None:
        """End the worker processes."""
        self._workers.close()

    @property
    def _steps_ahead(self) -> int:
        """So many that no worker waits for a step to end."""
        options = self.options
        if not options.workers:
            return 0
        return max(
            options.prefetch, ceil(2 * options.workers * options.world / options.packs_per_step)
        )

    @property
    def _samples_of_step(self) -> int:
        """Where packs are filled in order."""
        return self.options.packs_per_step * self.dataset.limits.window

    def _plan(self, position: Position, samples: int | None = None) -> Iterator[_Planned]:
        """Steps in their order, as every rank plans them."""
        if self.options.fill == "in_order":
            yield from self._plan_in_order(position)
            return
        planner = Planner(self.dataset.limits, self.costs, position.waiting)
        sizes = self._sizes(position.next_sample, self._samples if samples is None else samples)
        seen, skipped, step = position.next_sample, position.skipped, position.step
        packs: list[PackPlan] = []
        faults: list[Fault] = []
        more = True
        while more or planner.waiting or packs or faults:
            while more and not planner.has_choice and skipped <= self.options.skip_bad_samples:
                size = next(sizes, None)
                more = size is not None
                seen += more
                if isinstance(size, PromptSize):
                    planner.add(Waiting(seen - 1, size.tokens, size.tiles))
                elif size is not None:
                    faults.append(size)
                    skipped += 1
            if skipped > self.options.skip_bad_samples:
                yield _Planned((), position, tuple(faults))
                return
            if planner.waiting:
                packs.append(planner.next_pack())
            if len(packs) == self.options.packs_per_step or not (more or planner.waiting):
                step += bool(packs)
                after = replace(
                    position,
                    next_sample=seen,
                    waiting=planner.waiting,
                    step=step,
                    skipped=skipped,
                )
                yield _Planned(tuple(packs), after, tuple(faults))
                packs, faults = [], []

    def _plan_in_order(self, position: Position) -> Iterator[_Planned]:
        """Steps of packs that each have a window of samples to choose from."""
        start, step, limits = position.next_sample, position.step, self.dataset.limits
        while self._samples is None or start < self._samples:
            stop = start + self._samples_of_step
            last = stop if self._samples is None else min(stop, self._samples)
            windows = (
                range(a, min(a + limits.window, last)) for a in range(start, last, limits.window)
            )
            packs = tuple(PackPlan(tuple(own), limits.tokens, limits.tiles) for own in windows)
            start, step = stop, step + 1
            yield _Planned(packs, replace(position, next_sample=stop, step=step), ())

    def _sizes(self, start: int, stop: int | None) -> Iterator[PromptSize | Fault]:
        """What each sample takes, measured ahead where there are processes for it."""
        return chain.from_iterable(self._in_chunks(Measure, start, stop))

    def _in_chunks(
        self,
        task: Callable[[int, int], Callable[[Dataset], tuple[Result, ...]]],
        start: int,
        stop: int | None,
    ) -> Iterator[tuple[Result, ...]]:
        """Results of a task for runs of samples, in their order."""
        ahead = 2 * self.options.workers
        running: deque[Callable[[], tuple[Result, ...]]] = deque()
        while running or stop is None or start < stop:
            while (stop is None or start < stop) and len(running) <= ahead:
                end = start + CHUNK if stop is None else min(start + CHUNK, stop)
                running.append(self._workers.submit(task(start, end)))
                start = end
            yield running.popleft()()

    def _order(self, planned: _Planned) -> _Ordered:
        """Have this rank's packs of a step made; where the data end they may be empty."""
        if not planned.packs:
            return _Ordered(planned, ())
        options = self.options
        tasks = []
        for first in range(0, options.packs_per_step, options.world):
            row = planned.packs[first : first + options.world]
            own = row[options.rank].samples if options.rank < len(row) else ()
            idle = options.idle_tiles and any(pack.tiles for pack in row)
            buckets = self._buckets[1:] if idle else self._buckets
            tasks.append(Make(own, options.fill, options.weighting, buckets, options.store))
        return _Ordered(planned, tuple(self._workers.submit(task) for task in tasks))

    def _finish(self, ordered: _Ordered) -> Iterator[Step]:
        """The step when its packs are there; none where only faults were left."""
        self._report(ordered.planned.faults, write=self.options.rank == 0)
        batches = []
        for wait in ordered.made:
            made = wait()
            self._report(made.faults, write=True)
            batches.append(TrainBatch.of(made.pack))
        self.position = ordered.planned.position
        if batches:
            yield Step(tuple(batches), ordered.planned.position)

    def _report(self, faults: tuple[Fault, ...], *, write: bool) -> None:
        """Stop for a sample that cannot be used, or note that it is left out."""
        for fault in faults:
            self.left_out += 1
            if self.left_out > self.options.skip_bad_samples:
                raise fault.error()
            if not write:
                continue
            logger.warning("left out %s", fault.error())
            if self.options.bad_samples is not None:
                line = json.dumps({"where": fault.where, "reason": fault.reason})
                with self.options.bad_samples.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
