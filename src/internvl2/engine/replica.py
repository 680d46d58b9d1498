"""One engine in a process of its own: requests come through a pipe, their ends go back.

The process outlives neither its parent nor the pipe. It leaves Ctrl-C, which a terminal sends to
all processes of a command, to its parent.
"""

import multiprocessing
import os
import signal
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from internvl2 import console
from internvl2 import device as devices
from internvl2.engine.engine import Engine, EngineOptions
from internvl2.engine.engine_facts import EngineFacts
from internvl2.engine.requests import Collector, Failure
from internvl2.engine.sequence import Answer, Output, SamplingParams
from internvl2.processing.conversation import Conversation
from internvl2.processing.pixels import PictureOptions
from internvl2.processing.processor import EncodeOptions
from internvl2.processing.prompt import Prompt


@dataclass(frozen=True, slots=True)
class Setup:
    """What a process loads, and what of the machine is its own."""

    model: Path
    device: str
    threads: int
    adapter: Path | None = None
    dtype: str | None = None
    quantize: str | None = None
    options: EngineOptions | None = None
    pictures: PictureOptions | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """One request on its way to an engine."""

    ticket: int
    """What its end is known by."""
    request: Conversation | Prompt
    params: SamplingParams
    options: EncodeOptions | None


@dataclass(frozen=True, slots=True)
class Fault:
    """An error on its way to another process, which may not be able to rebuild it."""

    kind: type[Exception]
    text: str

    @classmethod
    def of(cls, error: BaseException) -> "Fault":
        """ValueError and OSError keep their kind; the rest are RuntimeErrors."""
        kinds = (ValueError, MemoryError, OSError)
        kind = next((kind for kind in kinds if isinstance(error, kind)), RuntimeError)
        return cls(kind, console.one_line(error))

    def error(self) -> Exception:
        """What is raised or reported in its place."""
        return self.kind(self.text)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a request ended."""

    ticket: int
    answer: Answer | None
    fault: Fault | None


def run_replica(setup: Setup, connection: Connection) -> None:
    """What the process does: load, say so, answer until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    console.set_up_logging()
    torch.set_num_threads(setup.threads)
    try:
        engine = _load(setup)
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not devices.is_out_of_memory(error):
            raise
        connection.send(Fault.of(error))
        return
    with engine:
        serve(engine, connection, setup.threads)


def serve(engine: Engine, connection: Connection, encoders: int) -> None:
    """Answers what comes through a pipe, many at once, until None comes or the other end closes.

    `encoders` threads read pictures meanwhile.
    """
    desk = _Desk(engine, connection)
    engine.start_thread()
    connection.send(EngineFacts.of(engine))
    with ThreadPoolExecutor(encoders, thread_name_prefix="encode") as pool:
        while (task := _receive(connection)) is not None:
            future = pool.submit(desk.begin, task)
            future.add_done_callback(partial(desk.report, task))


class _Desk:
    """The requests in work."""

    def __init__(self, engine: Engine, connection: Connection) -> None:
        self._engine = engine
        self._connection = connection
        self._collectors: dict[int, Collector] = {}
        # Whoever submits may be the one who delivers: the engine applies aborts in any thread.
        self._changing = threading.RLock()
        self._sending = threading.Lock()

    def begin(self, task: Task) -> None:
        """Encodes a request and hands it to the engine, whose thread ends it."""
        prompt = self._engine.encode(task.request, task.options)
        # The first output must not come before there is something that collects it.
        with self._changing:
            mailbox = partial(self._take, task.ticket)
            sequence = self._engine.submit(prompt, task.params, mailbox)
            self._collectors[task.ticket] = Collector(sequence)

    def report(self, task: Task, begun: "Future[None]") -> None:
        """Ends a request that could not begin."""
        error = begun.exception()
        if error is not None:
            self._send(Ended(task.ticket, None, Fault.of(error)))

    def _take(self, ticket: int, item: Output | Failure) -> None:
        with self._changing:
            if isinstance(item, Failure):
                del self._collectors[ticket]
                ended = Ended(ticket, None, Fault.of(item.error))
            else:
                answer = self._collectors[ticket].add(item)
                if answer is None:
                    return
                del self._collectors[ticket]
                ended = Ended(ticket, answer, None)
        self._send(ended)

    def _send(self, ended: Ended) -> None:
        # A parent that is gone needs no answer; this process ends with it.
        with self._sending, suppress(OSError):
            self._connection.send(ended)


def _load(setup: Setup) -> Engine:
    place = devices.pick(setup.device)
    if place.index is not None:  # else the first device would hold a context of each process
        torch.accelerator.set_device_index(place.index)
    return Engine.load(
        setup.model,
        adapter=setup.adapter,
        device=setup.device,
        dtype=setup.dtype,
        quantize=setup.quantize,
        options=setup.options,
        pictures=setup.pictures,
    )


def _receive(connection: Connection) -> Task | None:
    try:
        return connection.recv()
    except (EOFError, OSError):
        return None


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
