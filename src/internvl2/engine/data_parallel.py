"""Many requests through several engines: one a GPU, or several that divide a CPU's threads.

with DataParallel.load("OpenGVLab/InternVL2-2B", count=4) as engines:
    for answered in engines.answers(requests):
        print(answered.index, answered.answer)

Each request goes to the engine that has least to do. What a process that dies has in work goes to
another one, once: a request that ends two processes is reported, not tried for ever.
"""

import itertools
import logging
import multiprocessing
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from collections.abc import Sequence as Rows
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Protocol, runtime_checkable

import torch

from internvl2 import device as devices
from internvl2.checkpoint.hub import EMBEDDED, locate
from internvl2.cores import read_cores
from internvl2.engine.batch import Answered, params_of
from internvl2.engine.engine import EngineOptions
from internvl2.engine.engine_facts import EngineFacts
from internvl2.engine.replica import Ended, Fault, Setup, Task, run_replica
from internvl2.engine.sequence import SamplingParams
from internvl2.processing.conversation import Conversation
from internvl2.processing.pixels import PictureOptions
from internvl2.processing.processor import EncodeOptions
from internvl2.processing.prompt import Prompt

logger = logging.getLogger(__name__)

MOST_TRIES = 2
"""Processes that one request may meet their end with."""
GRACE_SECONDS = 5.0
"""How long a process has to end by itself when it is told to."""


@runtime_checkable
class Process(Protocol):
    """What is asked of an engine's process."""

    @property
    def exitcode(self) -> int | None:
        """Below 0 where a signal ended it."""
        ...

    def join(self, timeout: float | None = None) -> None:
        """Waits for its end."""

    def is_alive(self) -> bool:
        """Whether it goes on."""
        ...

    def terminate(self) -> None:
        """Asks it to end."""

    def kill(self) -> None:
        """Ends it."""


@dataclass(slots=True)
class Work:
    """A request between its arrival and its end."""

    index: int
    task: Task
    tries: int = 0


@dataclass(slots=True)
class Replica:
    """One engine's process, as those who give it work see it."""

    device: str
    process: Process
    connection: Connection
    facts: EngineFacts | None = None
    """What it says when its model is loaded."""
    work: dict[int, Work] = field(default_factory=dict)

    @property
    def has_room(self) -> bool:
        """Whether it takes another request: it prepares as many as it answers at a time."""
        return self.facts is not None and len(self.work) < 2 * self.facts.max_sequences

    def await_loaded(self) -> EngineFacts:
        """Waits for its model; raises what kept it from loading."""
        try:
            message: EngineFacts | Fault = self.connection.recv()
        except (EOFError, OSError) as error:
            raise ChildProcessError(f"{self.ending()} while it loaded the model") from error
        if isinstance(message, Fault):
            raise message.error()
        self.facts = message
        return message

    def give(self, work: Work) -> bool:
        """Hands it a request; False where the process is gone."""
        self.work[work.task.ticket] = work
        try:
            self.connection.send(work.task)
        except OSError:
            return False
        return True

    def take(self) -> Ended | None:
        """One end of a request; None where the process is gone."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            return None

    def ending(self) -> str:
        """That it died, and how."""
        self.process.join(GRACE_SECONDS)
        return f"the process of {self.device} died (exit code {self.process.exitcode})"

    def close(self) -> None:
        """Ends the process: by itself where it has nothing to do, else at once."""
        if not self.work and self.facts is not None:
            try:
                self.connection.send(None)
                self.process.join(GRACE_SECONDS)
            except OSError:
                self.process.terminate()
        self.connection.close()
        if self.process.is_alive():
            self.process.terminate()
            self.process.join(GRACE_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


class DataParallel:
    """Engines of one model in processes of their own; one caller at a time."""

    def __init__(self, replicas: Rows[Replica]) -> None:
        self._replicas = list(replicas)
        self._tickets = itertools.count()

    @classmethod
    def load(
        cls,
        model: str | Path = EMBEDDED,
        *,
        count: int,
        device: str | None = None,
        dtype: str | None = None,
        options: EngineOptions | None = None,
        adapter: str | Path | None = None,
        pictures: PictureOptions | None = None,
        quantize: str | None = None,
    ) -> "DataParallel":
        """`count` engines, each loaded as `Engine.load` does; raises what one of them raised.

        A program that calls this begins with `if __name__ == "__main__":`, as for every process
        that Python starts.
        """
        places = replica_devices(count, device)
        located = locate(model, adapter)
        threads = max(1, read_cores().threads // count)
        with ExitStack() as started:
            replicas = []
            for place in places:
                setup = Setup(
                    located.directory,
                    place,
                    threads,
                    adapter=located.adapter,
                    dtype=dtype,
                    quantize=quantize,
                    options=options,
                    pictures=pictures,
                )
                replicas.append(_start(setup))
                started.callback(replicas[-1].close)
            for replica in replicas:
                replica.await_loaded()
            started.pop_all()
        return cls(replicas)

    @property
    def facts(self) -> tuple[EngineFacts, ...]:
        """What each engine says of itself."""
        return tuple(replica.facts for replica in self._replicas if replica.facts is not None)

    def answers(
        self,
        requests: Iterable[Conversation | Prompt],
        params: SamplingParams | Rows[SamplingParams] | None = None,
        options: EncodeOptions | None = None,
    ) -> Generator[Answered]:
        """How each of many requests ends, as soon as it does; errors come in place of answers.

        Requests are read only a little ahead of the engines. Leaving the loop early ends the
        processes. ChildProcessError when none of them is left.
        """
        chosen = params or SamplingParams()
        work = (
            Work(index, Task(next(self._tickets), request, params_of(index, chosen), options))
            for index, request in enumerate(requests)
        )
        deal = _Deal(self._replicas, work)
        try:
            yield from deal.run()
        finally:
            if deal.has_work:
                self.close()

    def close(self) -> None:
        """Ends the processes."""
        for replica in self._replicas:
            replica.close()
        self._replicas.clear()

    def __enter__(self) -> "DataParallel":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def replica_devices(count: int, wanted: str | None) -> tuple[str, ...]:
    """Where `count` engines run: one on each accelerator, or all on the CPU."""
    if count < 1:
        raise ValueError(f"{count} engines were asked for; 1 is the least")
    if wanted is not None and ":" in wanted:
        kind = wanted.split(":")[0]
        raise ValueError(
            f"device {wanted!r} is one device, and {count} engines take one each: give {kind!r}"
        )
    kind = devices.pick(wanted).type
    if kind == "cpu":
        return ("cpu",) * count
    there = torch.accelerator.device_count()
    if count > there:
        raise ValueError(f"{count} engines need a device each; this machine has {there} of {kind}")
    return tuple(kind if kind == "mps" else f"{kind}:{index}" for index in range(count))


def _start(setup: Setup) -> Replica:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    name = f"internvl2 {setup.device}"
    # A daemon: a program that ends in any way of Python's ends it as well.
    process = context.Process(target=run_replica, args=(setup, theirs), name=name, daemon=True)
    process.start()
    theirs.close()
    return Replica(setup.device, process, ours)


class _Deal:
    """One run over many requests."""

    def __init__(self, replicas: list[Replica], work: Iterator[Work]) -> None:
        self._replicas = replicas
        self._new = work
        self._again: deque[Work] = deque()
        self._given_up: list[Answered] = []

    @property
    def has_work(self) -> bool:
        """Whether an engine has unfinished requests."""
        return any(replica.work for replica in self._replicas)

    def run(self) -> Iterator[Answered]:
        """Every request's end, in the order in which they end."""
        self._require_one()
        while True:
            self._hand_out()
            if not self._replicas:
                self._given_up += [_lost(work) for work in self._again]
            yield from self._given_up
            self._given_up.clear()
            self._require_one()
            if not self.has_work:
                return
            yield from self._hear()

    def _hand_out(self) -> None:
        """Gives work to whoever has least, until all have enough or none is left."""
        while free := [replica for replica in self._replicas if replica.has_room]:
            work = self._again.popleft() if self._again else next(self._new, None)
            if work is None:
                return
            replica = min(free, key=lambda each: len(each.work))
            work.tries += 1
            if not replica.give(work):
                self._bury(replica)

    def _hear(self) -> Iterator[Answered]:
        """What has ended, after waiting for something."""
        by_connection: dict[object, Replica] = {each.connection: each for each in self._replicas}
        for connection in wait([each.connection for each in self._replicas]):
            replica = by_connection[connection]
            ended = replica.take()
            if ended is None:
                self._bury(replica)
                continue
            index = replica.work.pop(ended.ticket).index
            error = None if ended.fault is None else ended.fault.error()
            yield Answered(index, ended.answer, error)

    def _bury(self, replica: Replica) -> None:
        """Takes a process that died out, and puts its requests back in line."""
        work = list(replica.work.values())
        replica.work.clear()
        self._replicas.remove(replica)
        logger.warning(
            "%s; %d engines are left for its %d requests",
            *(replica.ending(), len(self._replicas), len(work)),
        )
        replica.close()
        for each in work:
            if each.tries < MOST_TRIES:
                self._again.append(each)
            else:
                self._given_up.append(_lost(each))

    def _require_one(self) -> None:
        if not self._replicas:
            raise ChildProcessError(
                "no engine is left: their processes died, most likely for want of memory"
            )


def _lost(work: Work) -> Answered:
    times = "time" if work.tries == 1 else "times"
    reason = f"the engine's process died while it was in work, {work.tries} {times}"
    return Answered(work.index, None, ChildProcessError(reason))
