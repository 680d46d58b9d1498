"""A process that computes its share of every step that the first process of an engine begins.

It is started by `tensor_parallel.Team`, which tells it what to load and then what to compute. It
says nothing itself but that it is there and what went wrong, and ends with the process that started
it, by the end of its standard input.
"""

import os
import threading
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Protocol, runtime_checkable

import torch

from internvl2 import device as devices
from internvl2.checkpoint.store import load_share
from internvl2.engine.graphs import CallAgain, CudaRecorder, Recorder
from internvl2.engine.launched import LaunchedStep
from internvl2.engine.mirror import Listener, StepNote
from internvl2.engine.model_runner import ModelRunner, RunnerOptions
from internvl2.engine.peers import ProcessPeers, find_store
from internvl2.engine.prepared import prepare
from internvl2.model.tensor_parallel import DividedInternVL, Share


@runtime_checkable
class ModelSource(Protocol):
    """Which model is taken, and how; it travels to the other processes."""

    def load_share(self, share: Share, device: torch.device) -> DividedInternVL:
        """One process's share of it, on its device."""
        ...


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A checkpoint."""

    directory: Path
    dtype: torch.dtype
    adapter: Path | None
    quantize: str | None

    def load_share(self, share: Share, device: torch.device) -> DividedInternVL:
        """One process's share of it, on its device."""
        return load_share(
            self.directory,
            share,
            device=device,
            dtype=self.dtype,
            adapter=self.adapter,
            quantize=self.quantize,
        )


@dataclass(frozen=True, slots=True)
class Order:
    """What a follower is told first."""

    source: ModelSource
    share: Share
    device: str
    port: int
    """Where the processes meet."""
    threads: int


@dataclass(frozen=True, slots=True)
class Begin:
    """What a follower is told when all have loaded."""

    options: RunnerOptions
    records: bool
    """Whether steps of written tokens are recorded."""


@dataclass(frozen=True, slots=True)
class Release:
    """A sequence has ended or gave its blocks back."""

    sequence_id: int


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a follower ends."""

    text: str


def load_own(source: ModelSource, peers: ProcessPeers) -> DividedInternVL:
    """This process's share of a model, ready to compute with the others."""
    model = source.load_share(peers.share, peers.device)
    prepare(model)
    _agree_on_kernels(model, peers)
    return model.join(peers)


def _agree_on_kernels(model: DividedInternVL, peers: ProcessPeers) -> None:
    """Steps are recorded in other shapes with a kernel over the cache; all must record the same."""
    kernels = model.decoder.kernels
    has_kernel = kernels.paged_decode is not None
    if not peers.all_have(has_kernel) and has_kernel:
        model.decoder.use(replace(kernels, paged_decode=None))


def follow(socket: int) -> None:
    """Follows until it is told to end; the socket is that of the first process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    leader = Connection(socket)
    leader.send(None)
    with _Reporting(leader):
        _follow(leader)


def _follow(leader: Connection) -> None:
    order: Order = leader.recv()
    device = torch.device(order.device)
    if device.type == "cpu":
        torch.set_num_threads(order.threads)
    else:
        torch.accelerator.set_device_index(device.index)
    store = find_store(order.port, order.share.size)
    peers = ProcessPeers.join(order.share, device, store)
    peers.free_memory()
    model = load_own(order.source, peers)
    peers.free_memory()
    begin: Begin = leader.recv()
    recorder = _recorder(device) if begin.records else None
    _compute(leader, ModelRunner(model, begin.options, recorder))
    devices.synchronize(device)
    peers.leave()


def _recorder(device: torch.device) -> Recorder:
    return CudaRecorder(device) if device.type == "cuda" else CallAgain()


def _compute(leader: Connection, runner: ModelRunner) -> None:
    """Every step that is told of, until nothing more is."""
    listener, before = Listener(), None
    while True:
        told: StepNote | Release | None = leader.recv()
        if told is None:
            return
        if isinstance(told, Release):
            runner.release(listener.forget(told.sequence_id))
            continue
        launched: LaunchedStep = runner.begin(listener.step(told))
        if before is not None:
            # Which tokens were chosen is the leader's business; that they were keeps pace with it.
            before.tokens()
        before = launched


class _Reporting:
    """Tells the leader what ended this process, and ends it at once: nobody else waits for it."""

    def __init__(self, leader: Connection) -> None:
        self._leader = leader

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            return
        if not isinstance(error, EOFError | ConnectionError):  # then the leader has gone
            self._leader.send(Trouble(f"{type(error).__name__}: {error}"))
        # The group would wait for the others before it lets go.
        os._exit(1)


def _end_with_parent() -> None:
    os.read(0, 1)
    os._exit(1)
