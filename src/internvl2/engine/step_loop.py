"""Turns requests into outputs, step by step, for callers in any thread.

Whoever waits for an output runs the next step; with asynchronous callers a thread of the engine
does. New and aborted requests wait in a queue for the end of the running step, so that nobody waits
for a step just to ask, and then share the next one.

Where the runner can do that, the next step is launched before the tokens of this one are read: what
the host does then costs the device no time. An answer that turns out to have ended has one token
too many on its way, which is dropped.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue

from internvl2.engine.requests import Failure, Request
from internvl2.engine.runner import Launched, NextToken, Runner
from internvl2.engine.scheduler import Scheduler, Step
from internvl2.engine.sequence import Output, Status
from internvl2.engine.worker import Job, Worker

Inbox = SimpleQueue[Output | Failure]
"""Where one caller's outputs arrive."""


@dataclass(slots=True)
class _Flight:
    """A step between its launch and the reading of its tokens."""

    step: Step
    launched: Launched
    is_last: bool = False
    """Whether nothing is launched behind it any more before its tokens are read."""


@dataclass(frozen=True, slots=True)
class _Broken:
    """A step that could not be launched."""

    error: Exception

    def tokens(self) -> list[NextToken]:
        """Raises what went wrong, when its turn has come."""
        raise self.error


class StepLoop:
    """The scheduler, the runner, and every request between its arrival and its last output."""

    def __init__(self, scheduler: Scheduler, runner: Runner) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self._requests: dict[int, Request] = {}
        self._flights: deque[_Flight] = deque()
        self._commands: deque[Callable[[], None]] = deque()
        self._stepping = threading.Lock()
        self._starting = threading.Lock()
        self._unclaimed: deque[Output | Failure] = deque()
        self._worker: Worker | None = None
        self._is_closed = False

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished or any output unread by `step`."""
        return bool(self._commands or self._requests or self._unclaimed)

    def submit(self, request: Request) -> None:
        """Takes a request, or raises ValueError at once when it can never fit."""
        self._require_open()
        self.scheduler.check(request.sequence)
        self._command(lambda: self._start(request))

    def abort(self, sequence_id: int) -> None:
        """Ends a request as soon as the running step is done; a finished one stays as it is."""
        self._command(lambda: self._abort(sequence_id))

    def step(self) -> list[Output]:
        """Runs one step and gives the outputs that have no inbox, or raises what ended them.

        What others of them gave in the meantime comes with the next step.
        """
        with self._turn():
            if self._requests:
                self._advance()
            items = list(self._unclaimed)
            outputs = [item for item in items if isinstance(item, Output)]
            failures = [item for item in items if isinstance(item, Failure)]
            self._unclaimed = deque(outputs if failures else ())
        self._settle()
        if failures:
            raise failures[0].error
        return outputs

    def wait(self, inbox: Inbox) -> Output | Failure:
        """The next thing in an inbox; runs steps until there is one."""
        while inbox.empty() and self._worker is None:
            with self._turn():
                if inbox.empty():
                    self._advance()
        self._settle()
        return inbox.get()

    def start_thread(self) -> None:
        """From now on a thread of the engine runs the steps."""
        with self._starting:
            self._require_open()
            if self._worker is None:
                job = Job(lambda: bool(self._requests or self._commands), self._run, self._fail_all)
                self._worker = Worker(job)
        self._worker.wake()

    def close(self) -> None:
        """Aborts what is left and ends the thread."""
        with self._starting:
            self._is_closed = True
        if self._worker is not None:
            self._worker.close()
        with self._turn():
            for sequence_id in list(self._requests):
                self._abort(sequence_id)
            self._land()
        self._settle()

    def _require_open(self) -> None:
        if self._is_closed:
            raise ValueError("the engine is closed; load a new one")

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """The right to run a step, after everything that was asked for meanwhile."""
        with self._stepping:
            self._apply()
            yield

    def _command(self, command: Callable[[], None]) -> None:
        self._commands.append(command)
        if self._worker is not None:
            self._worker.wake()
        self._settle()

    def _settle(self) -> None:
        """Applies what was asked for, unless somebody runs a step and will do so behind it."""
        while self._commands and self._stepping.acquire(blocking=False):
            try:
                self._apply()
            finally:
                self._stepping.release()

    def _apply(self) -> None:
        while self._commands:
            self._commands.popleft()()
        self._land()

    def _start(self, request: Request) -> None:
        if self._is_closed:
            # It was submitted while another thread closed the engine.
            self._deliver(request, request.aborted())
            return
        self._requests[request.sequence.id] = request
        self.scheduler.add(request.sequence)

    def _abort(self, sequence_id: int) -> None:
        request = self._requests.get(sequence_id)
        if request is not None:
            self._end(request)
            self._deliver(request, request.aborted())

    def _end(self, request: Request) -> None:
        sequence = request.sequence
        del self._requests[sequence.id]
        if sequence.status is not Status.FINISHED:
            self.scheduler.finish(sequence, "abort")
        self.runner.release(sequence)

    def _run(self) -> None:
        with self._turn():
            self._advance()

    def _advance(self) -> None:
        """One step, to the delivery of its tokens."""
        if not self._flights:
            step = self.scheduler.schedule()
            for sequence in step.preempted:
                self.runner.release(sequence)
            if not step.chunks:
                return
            self._launch(step)
        flight = self._flights[0]
        if self.runner.runs_ahead and not flight.is_last:
            flight.is_last = True
            following = self.scheduler.follow(flight.step)
            if following is not None:
                self._launch(following)
        self._collect(flight)
        self._land()

    def _launch(self, step: Step) -> None:
        try:
            flight = _Flight(step, self.runner.begin(step))
        except Exception as error:
            flight = _Flight(step, _Broken(error), is_last=True)
        self.scheduler.launch(step)
        self._flights.append(flight)

    def _collect(self, flight: _Flight) -> None:
        """Reads the tokens; whatever stops the model ends the requests of this step, no others."""
        tokens: list[NextToken] = []
        try:
            tokens = flight.launched.tokens()
        except Exception as error:
            # Whoever runs the step may be another caller, who must not get this error.
            ids = [chunk.sequence.id for chunk in flight.step.chunks]
            self._end_with([self._requests[i] for i in ids if i in self._requests], error)
        self._flights.popleft()
        for chunk in flight.step.chunks:
            self.scheduler.complete(chunk)
        for token in tokens:
            self._take(token)

    def _take(self, token: NextToken) -> None:
        request = self._requests.get(token.sequence.id)
        if request is None:
            return  # it ended while this token was on its way
        output = request.take(token)
        if output.finish_reason is not None:
            self.scheduler.finish(token.sequence, output.finish_reason)
            self._end(request)
        self._deliver(request, output)

    def _land(self) -> None:
        """Waits for steps that nobody wants any more, so that their blocks are free."""
        while self._flights and not any(
            chunk.sequence.id in self._requests for chunk in self._flights[0].step.chunks
        ):
            self._collect(self._flights[0])

    def _fail_all(self, error: Exception) -> None:
        with self._turn():
            self._end_with(list(self._requests.values()), error)
            self._land()

    def _end_with(self, requests: list[Request], error: Exception) -> None:
        for request in requests:
            self._end(request)
            self._deliver(request, Failure(request.sequence.id, error))

    def _deliver(self, request: Request, item: Output | Failure) -> None:
        if request.mailbox is None:
            self._unclaimed.append(item)
        else:
            request.mailbox(item)
