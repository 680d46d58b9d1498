"""Processes that measure samples and make packs, and their stand-in where there are none.

The tiles of a pack, some 18 MB, or their stored features, come to the trainer through a file in
memory where the system has such a folder with room left, and else through a pipe, which takes from
the trainer a fifteenth of a core per 100 tiles/s.
"""

import multiprocessing
import os
import pickle
import shutil
import signal
import tempfile
import threading
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from internvl2.processing.processor import PromptSize
from internvl2.train.data.dataset import Dataset, Fault, Sample
from internvl2.train.data.filling import Fill, Room
from internvl2.train.data.packing import (
    LossWeighting,
    Pack,
    pack_samples,
    with_tile_bucket,
    without_known_tiles,
)
from internvl2.train.data.tile_store import TileStore

Result = TypeVar("Result")

DIED = (
    "a worker process of the data set died, most likely for want of memory; take fewer workers "
    '(a program that begins outside `if __name__ == "__main__":` cannot start any)'
)
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
class SampleTiles:
    """How many tiles a sample has; alike in every epoch."""

    where: str
    tiles: int


@dataclass(frozen=True, slots=True)
class CountTiles:
    """Count the tiles of the samples from `start` to before `stop`, in the order of their files.

    Those that cannot be used are left out. ValueError where a sample shows other pixels each time.
    """

    start: int
    stop: int

    def __call__(self, dataset: Dataset) -> tuple[SampleTiles, ...]:
        """For each of those samples."""
        dataset, counted = replace(dataset, shuffle=False), []
        for ordinal in range(self.start, self.stop):
            size = dataset.measure(ordinal)
            if isinstance(size, Fault):
                continue
            record = dataset.record(ordinal)
            if record.augment:
                raise ValueError(
                    f"{record.where}: the sample is augmented, so that its tiles never come again; "
                    "give data.augment = false or leave out feature_cache"
                )
            counted.append(SampleTiles(record.where, size.tiles))
        return tuple(counted)


@dataclass(frozen=True, slots=True)
class Made:
    """A pack, and the samples that are missing in it."""

    pack: Pack
    faults: tuple[Fault, ...]


@dataclass(frozen=True, slots=True)
class Make:
    """Make a pack of samples."""

    samples: tuple[int, ...]
    fill: Fill
    """Evenly: of all these samples, which fit. In order: of as many as there is room for."""
    weighting: LossWeighting
    buckets: tuple[int, ...]
    """Numbers of tiles that a pack may have, ascending; those beyond its own are black."""
    store: TileStore | None = None
    """Where features of tiles may be found."""

    def __call__(self, dataset: Dataset) -> Made:
        """The pack of those samples that can be used."""
        encoded = map(dataset.encode, self.samples)
        if self.fill == "in_order":
            encoded = _fitting(encoded, Room(dataset.limits.tokens, dataset.limits.tiles))
        samples, faults = _apart(encoded)
        pack = pack_samples(samples, dataset.limits.tokens, self.weighting)
        if self.store is not None:
            pack = without_known_tiles(pack, self.store, self._bucket(pack.num_tiles))
        bucket = self._bucket(len(pack.tiles))
        return Made(with_tile_bucket(pack, dataset.processor.config.tile_size, bucket), faults)

    def _bucket(self, tiles: int) -> int:
        return next(size for size in self.buckets if size >= tiles)


def _apart(encoded: Iterable[Sample | Fault]) -> tuple[list[Sample], tuple[Fault, ...]]:
    found = list(encoded)
    samples = [each for each in found if isinstance(each, Sample)]
    return samples, tuple(each for each in found if isinstance(each, Fault))


def _fitting(encoded: Iterable[Sample | Fault], room: Room) -> Iterator[Sample | Fault]:
    """Faults, and the samples for which there is room, until there is none."""
    for found in encoded:
        if isinstance(found, Fault) or room.take(
            len(found.prompt.token_ids), len(found.prompt.tiles)
        ):
            yield found
        if room.is_closed:
            return


@dataclass(frozen=True, slots=True)
class _Lying:
    """A pack whose tiles and features lie in a file."""

    made: Made
    file: Path
    tiles: tuple[int, ...]
    """Their shape."""
    features: tuple[int, ...]
    """Theirs."""

    def take(self) -> Made:
        """The pack with its tiles and features; the file is gone."""
        arrays = np.empty(self.tiles, np.uint8), np.empty(self.features, np.uint8)
        with self.file.open("rb", buffering=0) as file:
            read = sum(file.readinto(each.data.cast("B")) for each in arrays if each.size)
        self.file.unlink()
        if read != sum(each.nbytes for each in arrays):
            raise OSError(f"{self.file} holds {read} bytes, not those of {self.tiles}")
        return _with_arrays(self.made, *arrays)


class Workers:
    """Runs tasks on a data set: in `count` processes, or in this one where it is 0."""

    def __init__(self, dataset: Dataset, count: int) -> None:
        if count < 0:
            raise ValueError(f"{count} worker processes were asked for; 0 is the least")
        self._dataset = dataset
        self._pool: ProcessPoolExecutor | None = None
        self._takers = ThreadPoolExecutor(TAKERS, "packs") if count else None
        self._clear: Callable[[], object] = lambda: None
        self._given: IO[bytes] | None = None
        if count:
            self._given = _in_file(_Given(dataset, self._folder_in_memory()))
            self._pool = ProcessPoolExecutor(
                count, multiprocessing.get_context("spawn"), _install, (Path(self._given.name),)
            )

    def submit(self, task: Callable[[Dataset], Result]) -> Callable[[], Result]:
        """Begin a task; calling what comes back gives its result."""
        if self._pool is None:
            return partial(task, self._dataset)
        try:
            future = self._pool.submit(_run, task)
        except BrokenProcessPool as error:
            raise ChildProcessError(DIED) from error
        if isinstance(task, Make) and self._takers is not None:
            return self._takers.submit(_wait, future).result
        return partial(_wait, future)

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        if self._takers is not None:
            self._takers.shutdown(wait=True, cancel_futures=True)
        if self._given is not None:
            self._given.close()
        self._clear()

    def _folder_in_memory(self) -> Path | None:
        """A folder that is gone when this object or the program ends, however that comes."""
        if not os.access(MEMORY, os.W_OK):
            return None
        folder = Path(tempfile.mkdtemp(prefix="internvl2-", dir=MEMORY))
        self._clear = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return folder


def _in_file(given: _Given) -> IO[bytes]:
    """A file that is gone when it is closed.

    What is larger than a pipe cannot go to a new process by itself: one that dies while it starts
    would leave its parent writing for ever.
    """
    file = tempfile.NamedTemporaryFile(prefix="internvl2-")  # noqa: SIM115
    pickle.dump(given, file)
    file.flush()
    return file


def _wait(future: "Future[Any]") -> Any:
    try:
        result = future.result()
    except BrokenProcessPool as error:
        raise ChildProcessError(DIED) from error
    return result.take() if isinstance(result, _Lying) else result


def _install(path: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_SECONDS) and None)
    given: _Given = pickle.loads(path.read_bytes())
    _GIVEN.set(given)
    if given.dataset.processor.pictures.arithmetic != "exact":
        import torch

        torch.set_num_threads(1)  # each worker has one core; threads would wait for one another
    threading.Thread(target=_end_with_parent, args=(path, given.folder), daemon=True).start()


def _end_with_parent(path: Path, folder: Path | None) -> None:
    """A killed trainer must leave neither its workers nor their files behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        path.unlink(missing_ok=True)
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
    """The pack with its large arrays in a file, or as it is where there is no room for one."""
    tiles, known = made.pack.tiles, made.pack.known
    features = tiles[:0] if known is None else known.features
    needed = tiles.nbytes + features.nbytes
    path = folder / uuid.uuid4().hex
    try:
        if shutil.disk_usage(folder).free < needed + SPARE:
            return made
        with path.open("xb", buffering=0) as file:
            written = sum(
                file.write(each.data.cast("B")) for each in (tiles, features) if each.size
            )
    except OSError:
        written = None
    if written != needed:
        path.unlink(missing_ok=True)
        return made
    return _Lying(_with_arrays(made, tiles[:0], features[:0]), path, tiles.shape, features.shape)


def _with_arrays(made: Made, tiles: np.ndarray, features: np.ndarray) -> Made:
    pack = replace(made.pack, tiles=tiles)
    if pack.known is not None:
        pack = replace(pack, known=replace(pack.known, features=features))
    return replace(made, pack=pack)
