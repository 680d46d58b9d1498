"""Processes that measure samples and make packs, and their stand-in where there are none."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from internvl2.processing.processor import PromptSize
from internvl2.train.dataset import Dataset, Fault, Sample
from internvl2.train.packing import LossWeighting, Pack, pack_samples, with_tile_bucket

Result = TypeVar("Result")

DIED = "a worker process of the data set died, most likely for want of memory; take fewer workers"
GRACE_SECONDS = 20
"""How long a worker goes on after SIGTERM, which launchers send to all processes of a run: the
trainer still needs its packs to finish a step and save."""
_DATASET: ContextVar[Dataset] = ContextVar("dataset")
"""What a worker process was started with."""


@dataclass(frozen=True, slots=True)
class Measure:
    """Measure the samples from `start` to before `stop`."""

    start: int
    stop: int

    def __call__(self, dataset: Dataset) -> tuple[PromptSize | Fault, ...]:
        """Sizes, or faults, in the order of the samples."""
        return tuple(dataset.measure(ordinal) for ordinal in range(self.start, self.stop))


@dataclass(frozen=True, slots=True)
class Made:
    """A pack, and the samples that are missing in it."""

    pack: Pack
    faults: tuple[Fault, ...]


@dataclass(frozen=True, slots=True)
class Make:
    """Make a pack of these samples."""

    samples: tuple[int, ...]
    length: int
    weighting: LossWeighting
    buckets: tuple[int, ...]
    """Numbers of tiles that a pack may have, ascending; those beyond its own are black."""

    def __call__(self, dataset: Dataset) -> Made:
        """The pack of those samples that can be used."""
        encoded = [dataset.encode(ordinal) for ordinal in self.samples]
        samples = [found for found in encoded if isinstance(found, Sample)]
        faults = tuple(found for found in encoded if isinstance(found, Fault))
        pack = pack_samples(samples, self.length, self.weighting)
        bucket = next(size for size in self.buckets if size >= pack.num_tiles)
        return Made(with_tile_bucket(pack, dataset.processor.config.tile_size, bucket), faults)


class Workers:
    """Runs tasks on a data set: in `count` processes, or in this one where it is 0."""

    def __init__(self, dataset: Dataset, count: int) -> None:
        if count < 0:
            raise ValueError(f"{count} worker processes were asked for; 0 is the least")
        self._dataset = dataset
        self._pool: ProcessPoolExecutor | None = None
        if count:
            self._pool = ProcessPoolExecutor(
                count, multiprocessing.get_context("spawn"), _install, (dataset,)
            )

    def submit(self, task: Callable[[Dataset], Result]) -> Callable[[], Result]:
        """Begin a task; calling what comes back gives its result."""
        if self._pool is None:
            return partial(task, self._dataset)
        try:
            return partial(_wait, self._pool.submit(_run, task))
        except BrokenProcessPool as error:
            raise RuntimeError(DIED) from error

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def _wait(future: "Future[Result]") -> Result:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise RuntimeError(DIED) from error


def _install(dataset: Dataset) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_SECONDS) and None)
    _DATASET.set(dataset)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed trainer must not leave its workers behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(task: Callable[[Dataset], Result]) -> Result:
    return task(_DATASET.get())
