"""The thread that runs the engine's steps for callers who cannot: those of an event loop."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """What the thread does over and over."""

    has_work: Callable[[], bool]
    run_step: Callable[[], None]
    fail: Callable[[Exception], None]
    """Ends everything in work with an error."""


class Worker:
    """Runs steps while there is work and sleeps while there is none."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._wake = threading.Event()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Says that there may be work."""
        self._wake.set()

    def close(self) -> None:
        """Ends the thread behind its running step."""
        self._is_closing = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_closing:
            self._wake.wait()
            self._wake.clear()
            while not self._is_closing and self._job.has_work():
                self._step()

    def _step(self) -> None:
        try:
            self._job.run_step()
        except Exception as error:
            # Nobody is above this thread: without a report its callers would wait for ever.
            logger.exception("a step of the engine failed")
            self._job.fail(error)
