"""Work of fixed shapes, recorded once and then repeated at the cost of one call of the host.

The work reads and writes tensors that stay where they are. It is recorded on whatever they hold,
running once or more on the way, and only then are real numbers put into them: so recording must
harm nothing. What it leaves behind must be in tensors made before, since the memory that recorded
work takes for itself is shared by all of it.
"""

import logging
import threading
import time
from collections.abc import Callable, Hashable
from typing import Protocol, runtime_checkable

import torch

from internvl2.model.cuda_graphs import WARM_UPS, GraphStream

Work = Callable[[], None]

_logger = logging.getLogger(__name__)


@runtime_checkable
class Recorder(Protocol):
    """How work is recorded on a kind of device."""

    def record(self, work: Work) -> Work:
        """What repeats `work` on the same tensors; RuntimeError where it cannot be recorded."""
        ...


class CallAgain:
    """Repeats work by calling it once more, as a CUDA graph would on the same tensors."""

    def record(self, work: Work) -> Work:
        """The work itself, after running it as a recording does."""
        for _ in range(WARM_UPS):
            work()
        return work


class CudaRecorder:
    """Records CUDA graphs, which share one pool of memory.

    Other threads may go on to use the device meanwhile. Graphs must be repeated one after the
    other, on one stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = GraphStream(device, shares_memory=True)

    def record(self, work: Work) -> Work:
        """A graph of the work, which has run a few times before."""
        return self._stream.record(work).replay


class Graphs:
    """Recorded work by key; what cannot be recorded is run as it is."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._replays: dict[Hashable, Work] = {}
        self._recording = threading.Lock()

    def __contains__(self, key: Hashable) -> bool:
        """Whether the work of a key has been recorded, or been found not to be recordable."""
        return key in self._replays

    def ready(self, key: Hashable, work: Work) -> Work:
        """What repeats `work`, recorded now when the key is new; fill its tensors after this.

        Of later calls with the same key the work is not looked at.
        """
        with self._recording:
            if key not in self._replays:
                self._replays[key] = self._record(key, work)
            return self._replays[key]

    def _record(self, key: Hashable, work: Work) -> Work:
        started = time.perf_counter()
        try:
            replay = self._recorder.record(work)
        except RuntimeError as error:
            _logger.warning("%s runs without a CUDA graph, which costs time: %s", key, error)
            return work
        _logger.debug("recorded %s in %.2f s", key, time.perf_counter() - started)
        return replay
