"""Processes that measure samples and make packs, and their stand-in where there are none.

The tiles of a pack, some 18 MB, come to the trainer through a file in memory where the system has
such a folder with room left, and else through a pipe, which takes from the trainer a fifteenth of
a core per 100 tiles/s.
"""

import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import uuid
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from internvl2.processing.processor import PromptSize
from internvl2.train.data.dataset import Dataset, Fault, Sample
from internvl2.train.data.packing import LossWeighting, Pack, pack_samples, with_tile_bucket

Result = TypeVar("Result")

DIED = "a worker process of the data set died, most likely for want of memory; take fewer workers"
GRACE_SECONDS = 20
"""How long a worker goes on after SIGTERM, which launchers send to all processes of a run: the
trainer still needs its packs to finish a step and save."""
TAKERS = 2
"""Threads that fetch finished packs while the trainer's own thread keeps its device busy: 38 MB of
64 tiles take some 20 ms."""
MEMORY = Path("/dev/shm")
"""Where files are kept in memory."""
SPARE = 1 << 30
"""So many bytes of it are left to others, such as NCCL; containers often have less in all."""


@dataclass(frozen=True, slots=True)
class _Given:
    """What a worker process was started with."""

    dataset: Dataset
    folder: Path | None
    """For tiles on their way to the trainer."""


_GIVEN: ContextVar[_Given] = ContextVar("given")


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


@dataclass(frozen=True, slots=True)
class _Lying:
    """A pack whose tiles lie in a file."""

    made: Made
    file: Path
    shape: tuple[int, ...]

    def take(self) -> Made:
        """The pack with its tiles; the file is gone."""
        tiles = np.empty(self.shape, np.uint8)
        with self.file.open("rb", buffering=0) as file:
            read = file.readinto(tiles.data.cast("B")) if tiles.size else 0
        self.file.unlink()
        if read != tiles.nbytes:
            raise OSError(f"{self.file} holds {read} of {tiles.nbytes} bytes")
        return replace(self.made, pack=replace(self.made.pack, tiles=tiles))


class Workers:
    """Runs tasks on a data set: in `count` processes, or in this one where it is 0."""

    def __init__(self, dataset: Dataset, count: int) -> None:
        if count < 0:
            raise ValueError(f"{count} worker processes were asked for; 0 is the least")
        self._dataset = dataset
        self._pool: ProcessPoolExecutor | None = None
        self._takers = ThreadPoolExecutor(TAKERS, "packs") if count else None
        self._clear: Callable[[], object] = lambda: None
        if count:
            given = _Given(dataset, self._folder_in_memory())
            self._pool = ProcessPoolExecutor(
                count, multiprocessing.get_context("spawn"), _install, (given,)
            )

    def submit(self, task: Callable[[Dataset], Result]) -> Callable[[], Result]:
        """Begin a task; calling what comes back gives its result."""
        if self._pool is None:
            return partial(task, self._dataset)
        try:
            future = self._pool.submit(_run, task)
        except BrokenProcessPool as error:
            raise RuntimeError(DIED) from error
        if isinstance(task, Make) and self._takers is not None:
            return self._takers.submit(_wait, future).result
        return partial(_wait, future)

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        if self._takers is not None:
            self._takers.shutdown(wait=True, cancel_futures=True)
        self._clear()

    def _folder_in_memory(self) -> Path | None:
        """A folder that is gone when this object or the program ends, however that comes."""
        if not os.access(MEMORY, os.W_OK):
            return None
        folder = Path(tempfile.mkdtemp(prefix="internvl2-", dir=MEMORY))
        self._clear = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return folder


def _wait(future: "Future[Any]") -> Any:
    try:
        result = future.result()
    except BrokenProcessPool as error:
        raise RuntimeError(DIED) from error
    return result.take() if isinstance(result, _Lying) else result


def _install(given: _Given) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_SECONDS) and None)
    _GIVEN.set(given)
    threading.Thread(target=_end_with_parent, args=(given.folder,), daemon=True).start()


def _end_with_parent(folder: Path | None) -> None:
    """A killed trainer must leave neither its workers nor their files behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)


def _run(task: Callable[[Dataset], Any]) -> Any:
    given = _GIVEN.get()
    result = task(given.dataset)
    if isinstance(result, Made) and given.folder is not None:
        return _laid_down(result, given.folder)
    return result


def _laid_down(made: Made, folder: Path) -> Made | _Lying:
    """The pack with its tiles in a file, or as it is where there is no room for one."""
    tiles = made.pack.tiles
    path = folder / uuid.uuid4().hex
    try:
        if shutil.disk_usage(folder).free < tiles.nbytes + SPARE:
            return made
        with path.open("xb", buffering=0) as file:
            written = file.write(tiles.data.cast("B")) if tiles.size else 0
    except OSError:
        written = None
    if written != tiles.nbytes:
        path.unlink(missing_ok=True)
        return made
    return _Lying(replace(made, pack=replace(made.pack, tiles=tiles[:0])), path, tiles.shape)
