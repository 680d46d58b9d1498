"""The first process of a divided model: it starts the others and tells them every step.

It alone schedules, tokenizes and answers. The others run the same `ModelRunner` on their shares of
the model, so that each process meets the sums of a layer in the same order. All choose tokens, from
the same logits with the same noise; what the first one chose is what they all go on with, for the
model begins a step with its tokens (`DividedInternVL.embed`). After an error in any process
they no longer stand at the same place, so all of them end.
"""

import contextlib
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import TracebackType

import torch
import torch.distributed as dist

import internvl2
from internvl2 import device as devices
from internvl2.engine.follower import Begin, ModelSource, Order, Release, Trouble, load_own
from internvl2.engine.mirror import Teller
from internvl2.engine.model_runner import ModelRunner
from internvl2.engine.peers import ProcessPeers, open_store
from internvl2.engine.runner import Launched, NextToken
from internvl2.engine.scheduler import Step
from internvl2.engine.sequence import Sequence
from internvl2.model.tensor_parallel import DividedInternVL, Share

GRACE_SECONDS = 10.0
"""How long the others may take to end before they are killed."""
REPORT_SECONDS = 3.0
"""How long after an error the reason of a process that has failed may take to arrive."""


def choose_places(size: int, device: str | None) -> list[torch.device]:
    """The devices of so many processes, the first GPUs that there are; one device is any."""
    if size < 1:
        raise ValueError(f"tensor_parallel is {size}; it must be at least 1")
    picked = devices.pick(device)
    if size == 1:
        return [picked]
    if os.name != "posix":
        raise ValueError(f"tensor_parallel {size}: several processes need Linux")
    if picked.index is not None:
        raise ValueError(
            f"tensor_parallel {size} takes the first {size} GPUs, but device {device!r} names one: "
            f"give {picked.type!r}, and choose GPUs with CUDA_VISIBLE_DEVICES"
        )
    if picked.type == "cpu":
        return [picked] * size
    if picked.type != "cuda":
        raise ValueError(
            f"tensor_parallel {size}: a model is divided over NVIDIA GPUs (or, to try it out, over "
            f"processes on a CPU), not over devices of kind {picked.type}"
        )
    count = torch.cuda.device_count()
    if count < size:
        there = ", ".join(f"cuda:{index}" for index in range(count))
        raise ValueError(f"tensor_parallel {size} needs {size} GPUs; this machine has {there}")
    return [torch.device("cuda", index) for index in range(size)]


@dataclass(frozen=True)
class Follower:
    """Another process, and the way to it."""

    name: str
    process: subprocess.Popen[bytes]
    connection: Connection
    device: torch.device


class Team:
    """All processes of a divided model, seen from the first."""

    def __init__(self, devices_of_ranks: list[torch.device]) -> None:
        if dist.is_initialized():
            raise ValueError(
                "tensor_parallel makes a group of processes, but this process is in one already: "
                "close the engine that made it, or take a process of its own"
            )
        self.share = Share(0, len(devices_of_ranks))
        self.device = devices_of_ranks[0]
        self._failure: str | None = None
        self._has_news = threading.Event()
        self._runner: TeamRunner | None = None
        self._is_closing = False
        self._arrived = threading.Semaphore(0)
        self._peers: ProcessPeers | None = None
        self._followers = [
            _start(rank, len(devices_of_ranks), device)
            for rank, device in enumerate(devices_of_ranks[1:], 1)
        ]
        self._watch = threading.Thread(target=self._listen, name="followers", daemon=True)
        self._watch.start()

    @property
    def peers(self) -> ProcessPeers:
        """What all processes do together."""
        assert self._peers is not None, "the processes have not met"
        return self._peers

    def meet(self, source: ModelSource) -> int:
        """Waits for the others, who then load their shares; bytes that each process can take."""
        with self.watched():
            for _ in self._followers:
                self._arrived.acquire()
            self.require_alive()
            store = open_store(self.share.size)
            threads = max(1, torch.get_num_threads() // self.share.size)
            for rank, follower in enumerate(self._followers, 1):
                share, device = Share(rank, self.share.size), str(follower.device)
                follower.connection.send(Order(source, share, device, store.port, threads))
            self._peers = ProcessPeers.join(self.share, self.device, store)
            return self._peers.free_memory()

    def load(self, source: ModelSource) -> DividedInternVL:
        """The first process's share of a model."""
        with self.watched():
            return load_own(source, self.peers)

    def free_memory(self) -> int:
        """Bytes that each process can still take; to be asked once, when the model is loaded."""
        with self.watched():
            return self.peers.free_memory()

    def runner(self, own: ModelRunner, *, records: bool) -> "TeamRunner":
        """What computes steps in all processes; where this one records steps, all do."""
        with self.watched():
            self.tell(Begin(own.options, records))
        self._runner = TeamRunner(own, self)
        return self._runner

    def tell(self, message: object) -> None:
        """Sends a message to all others."""
        packed = ForkingPickler.dumps(message)
        for follower in self._followers:
            follower.connection.send_bytes(packed)

    def watched(self) -> "_Watched":
        """A time in which others may fail, which is raised then instead of what it led to here."""
        return _Watched(self)

    def wait_for_news(self) -> None:
        """Gives the reason of a process that has failed some time to arrive."""
        self._has_news.wait(REPORT_SECONDS)

    def require_alive(self, error: BaseException | None = None) -> None:
        """Raises ChildProcessError when a process has failed, which may have caused `error`."""
        if self._failure is not None:
            raise ChildProcessError(
                f"{self._failure}; the {self.share.size} processes of the engine end together, "
                "load it anew"
            ) from error

    def fail(self, reason: str) -> None:
        """Ends the others, who would wait for a process that is no longer with them."""
        if self._failure is None:
            self._failure = reason
        self._has_news.set()
        for follower in self._followers:
            follower.process.kill()
            self._arrived.release()
        if self._peers is not None:
            self._peers.abort()

    def close(self) -> None:
        """Ends the other processes."""
        self._is_closing = True
        if self._runner is None or self._failure is not None:
            for follower in self._followers:
                follower.process.kill()
        else:
            with contextlib.suppress(OSError):
                self.tell(None)
        if self._runner is not None:
            self._runner.close()
        if self._peers is not None:
            # Not for ever: what a process that was killed has left behind may keep the group.
            leaving = threading.Thread(target=self._peers.leave, daemon=True)
            leaving.start()
            leaving.join(GRACE_SECONDS)
        for follower in self._followers:
            _end(follower)
        self._watch.join()

    def _listen(self) -> None:
        """Hears from the others until they have ended."""
        ranks = {follower.connection: follower for follower in self._followers}
        while ranks:
            for connection in wait(list(ranks)):
                assert isinstance(connection, Connection)
                trouble = _heard(ranks[connection])
                if trouble is None:
                    self._arrived.release()
                    continue
                del ranks[connection]
                if not self._is_closing:
                    self.fail(trouble)


class TeamRunner:
    """Computes steps in all processes of a team."""

    def __init__(self, own: ModelRunner, team: Team) -> None:
        self._computing: ModelRunner | None = own
        self._team = team
        self._teller = Teller()

    @property
    def _own(self) -> ModelRunner:
        assert self._computing is not None, "an engine was asked that is closed"
        return self._computing

    @property
    def runs_ahead(self) -> bool:
        """Whether the tokens that a step chooses stay where the next one reads them."""
        return self._own.runs_ahead

    def begin(self, step: Step) -> "TeamStep":
        """Tells the others of a step and begins this process's share of it."""
        with self._team.watched():
            self._team.tell(self._teller.note(step))
            return TeamStep(self._own.begin(step), self._team)

    def release(self, sequence: Sequence) -> None:
        """Forgets what is kept for a sequence, in all processes."""
        self._own.release(sequence)
        if self._teller.forget(sequence.id):
            # That a process is gone is said by the next step.
            with contextlib.suppress(OSError):
                self._team.tell(Release(sequence.id))

    def close(self) -> None:
        """Lets go of recorded steps: a group waits for the CUDA graphs that have its sums."""
        self._computing = None


@dataclass(frozen=True)
class TeamStep:
    """A step on its way through all processes."""

    own: Launched
    team: Team

    def tokens(self) -> list[NextToken]:
        """The tokens that the first process chose."""
        with self.team.watched():
            return self.own.tokens()


class _Watched:
    """Turns what another process's end led to into an error that names that end."""

    def __init__(self, team: Team) -> None:
        self._team = team

    def __enter__(self) -> None:
        self._team.require_alive()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception):
            self._team.wait_for_news()
        self._team.require_alive(error)
        if error is not None:
            self._team.fail(f"the first process failed: {type(error).__name__}: {error}")


def _start(rank: int, size: int, device: torch.device) -> Follower:
    own, others = Pipe()
    program = f"from internvl2.engine.follower import follow; follow({others.fileno()})"
    package = str(Path(internvl2.__file__).parents[1])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    with others:
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=[others.fileno()],
            env=os.environ | {"PYTHONPATH": path},
            # Ctrl-C is for the first process, which may only stop an answer.
            start_new_session=True,
        )
    return Follower(f"process {rank} of {size} ({device})", process, own, device)


def _heard(follower: Follower) -> str | None:
    """Why a follower has ended; None where it only says that it is there."""
    try:
        said: Trouble | None = follower.connection.recv()
    except (EOFError, OSError):
        return f"{follower.name} ended with exit code {follower.process.wait()}"
    return None if said is None else f"{follower.name} failed: {said.text}"


def _end(follower: Follower) -> None:
    """Waits for a process that has been told to end; kills it if it does not."""
    try:
        follower.process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        follower.process.kill()
        follower.process.wait()
    assert follower.process.stdin is not None
    follower.process.stdin.close()
