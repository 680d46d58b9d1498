"""Saves and resumes everything of a run; what carries a checkpoint's name is complete.

A checkpoint is copied to host memory, written by a thread into a hidden folder, summed up in a
manifest, flushed, and only then given its name: killed at any moment, a run has its last one.
"""

import errno
import json
import logging
import os
import re
import shutil
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from internvl2.train.parallel import World

logger = logging.getLogger(__name__)

MANIFEST = "complete.json"
_NAME = re.compile(r"step-(\d{8})")
_CHUNK = 2**24


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come, beside its tensors."""

    step: int
    """Changes of the weights so far."""
    position: dict[str, Any]
    """Where the data goes on; made and read by the data."""
    best_score: float | None = None
    """The best value so far of what validation goes by."""
    without_better: int = 0
    """Measurements in a row since then."""
    moved: float | None = None
    """The last divergence from the model that the run began with, where a guard measures it."""
    base: str | None = None
    """Fingerprint of the stored model that the run began with; checkpoints have no frozen part."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as it lies in a checkpoint."""

    shape: torch.Size
    dtype: torch.dtype


Places = Callable[[Mapping[str, StoredTensor]], Mapping[str, Tensor]]
"""Tensors to be filled from a checkpoint with such content, by the names there."""


class Checkpointer:
    """The checkpoints in a folder: the last `keep` of them."""

    def __init__(self, folder: Path, world: World, keep: int) -> None:
        self.folder, self.world, self.keep = folder, world, keep
        self._group: ProcessGroup | None = None
        if world.size > 1:
            group = dist.new_group(backend="gloo")
            assert isinstance(group, ProcessGroup)
            self._group = group
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running: Future[None] | None = None
        if world.is_first:
            folder.mkdir(parents=True, exist_ok=True)
            for partial in folder.glob(".step-*"):
                shutil.rmtree(partial)
        world.wait()

    def save(self, progress: Progress, tensors: Mapping[str, Tensor]) -> None:
        """Starts to write a checkpoint; the tensors may change as soon as this returns.

        Each process copies its part of divided tensors, the first one also all others.
        """
        self.finish()
        copies = {
            name: tensor.detach().to("cpu", copy=True)
            for name, tensor in tensors.items()
            if self.world.is_first or isinstance(tensor, DTensor)
        }
        self._running = self._thread.submit(self._write, progress, copies)

    def finish(self) -> None:
        """Waits for the checkpoint that is being written; raises what went wrong there."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def check(self) -> None:
        """Raises what went wrong in a checkpoint that has ended; waits for nothing."""
        if self._running is not None and self._running.done():
            self.finish()

    def close(self) -> None:
        """Ends the thread, once it has nothing to write."""
        self._thread.shutdown(wait=True)

    def load(self, places: Places) -> Progress | None:
        """Fills tensors from the last intact checkpoint; None without any.

        Damaged ones are named and passed over. Each process reads what belongs into its tensors,
        whatever number of processes wrote them.
        """
        seen = self._newest_intact() if self.world.is_first else _Seen(0, 0)
        count, step = map(int, self.world.sum([seen.count, seen.step]))
        if not count:
            return None
        if not step:
            raise ValueError(
                f"every checkpoint in {self.folder} is damaged; delete the folder to start anew"
            )
        path = self.folder / _name(step)
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        reader = FileSystemReader(path)
        stored: dict[str, StoredTensor] = {}
        for name, found in reader.read_metadata().state_dict_metadata.items():
            assert isinstance(found, TensorStorageMetadata), name
            stored[name] = StoredTensor(found.size, found.properties.dtype)
        state: dict[str, Any] = dict(places(stored))
        load(state, storage_reader=reader, no_dist=True)
        return Progress(**manifest["progress"])

    def _newest_intact(self) -> "_Seen":
        """Names damaged checkpoints on the way."""
        found = self._complete()
        for path in reversed(found):
            fault = _fault(path)
            if fault is None:
                return _Seen(len(found), int(path.name.removeprefix("step-")))
            logger.warning("checkpoint %s is damaged (%s); trying the one before", path, fault)
        return _Seen(len(found), 0)

    def _complete(self) -> list[Path]:
        """The checkpoints that have their name, oldest first."""
        return sorted(path for path in self.folder.iterdir() if _NAME.fullmatch(path.name))

    def _write(self, progress: Progress, tensors: dict[str, Tensor]) -> None:
        final = self.folder / _name(progress.step)
        partial = self.folder / f".{final.name}"
        writer = FileSystemWriter(partial)
        try:
            save(
                dict(tensors),
                storage_writer=writer,
                process_group=self._group,
                no_dist=self._group is None,
            )
            if self.world.is_first:
                self._name(progress, partial, final)
        except CheckpointException as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise _clear(error, final) from error
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)  # it may fill the disk
            raise OSError(error.errno, f"checkpoint {final} was not written: {error}") from error

    def _name(self, progress: Progress, partial: Path, final: Path) -> None:
        """Completes a checkpoint: manifest, name, and its oldest fellows removed."""
        files = {path.name: _summed(path) for path in sorted(partial.iterdir())}
        manifest = partial / MANIFEST
        with manifest.open("w", encoding="utf-8") as file:
            json.dump({"progress": asdict(progress), "files": files}, file)
            file.flush()
            os.fsync(file.fileno())
        if final.exists():  # a damaged one, which was passed over
            shutil.rmtree(final)
        partial.rename(final)
        _flush_folder(self.folder)
        for old in self._complete()[: -self.keep]:
            shutil.rmtree(old)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a folder of checkpoints holds."""

    count: int
    step: int
    """Of the last intact one; 0 if there is none, for runs begin to save after their first step."""


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _fault(path: Path) -> str | None:
    """What is wrong with a checkpoint's files."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        for name, sum_ in manifest["files"].items():
            if _summed(path / name) != sum_:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return str(error)
    return None


def _summed(path: Path) -> list[int]:
    """Size and CRC-32 of a file."""
    size, crc = 0, 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return [size, crc]


def _clear(error: CheckpointException, final: Path) -> OSError:
    """The first failure of any process, as the error it was."""
    rank, (failure, _) = next(iter(error.failures.items()))
    beneath: BaseException | None = failure
    while beneath is not None and not isinstance(beneath, OSError):
        beneath = beneath.__cause__ or beneath.__context__  # PyTorch's words do not say "disk full"
    number = errno.EIO if beneath is None else beneath.errno
    reason = failure if beneath is None else beneath.strerror or beneath
    return OSError(number, f"checkpoint {final} was not written (process {rank}): {reason}")


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
