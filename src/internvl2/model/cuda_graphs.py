"""CUDA graphs, recorded once libraries have started; one that fails leaves its device usable."""

import atexit
import contextlib
from collections.abc import Callable

import torch

WARM_UPS = 2
"""Runs before a recording: libraries start, kernels are compiled and chosen, workspaces made."""


class GraphStream:
    """The one stream that a device's graphs are recorded on: libraries keep memory for each stream.

    Other threads may go on to use the device meanwhile. Graphs that share their memory must be
    repeated one after the other, on one stream, and be kept as long as more are recorded.
    """

    def __init__(self, device: torch.device, *, shares_memory: bool) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._shares_memory = shares_memory
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], object]) -> torch.cuda.CUDAGraph:
        """A graph of the work, which has run a few times before; RuntimeError where it fails."""
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            # Within its own stream, which a recording that fails would leave the caller with.
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UPS):
                    work()
                graph = self._captured(work)
            current.wait_stream(self._stream)
        return graph

    def _captured(self, work: Callable[[], object]) -> torch.cuda.CUDAGraph:
        graph, pool = torch.cuda.CUDAGraph(), self._pool
        whole = torch.cuda.graph(
            graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"
        )
        try:
            with whole:
                work()
        except RuntimeError:
            atexit.register(graph.reset)  # until then allocators may go on to look at it
            self._pool = torch.cuda.graph_pool_handle()
            _end_allocation(pool)
            self._reset_generators()
            raise
        if not self._shares_memory:
            self._pool = torch.cuda.graph_pool_handle()
        return graph

    def _reset_generators(self) -> None:
        """Random numbers cannot be drawn after a recording that failed, until one succeeds."""
        number = torch.zeros((), device=self._device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            number.zero_()


def _end_allocation(pool: tuple[int, int]) -> None:
    """Does what PyTorch leaves undone where the end of a recording fails.

    Else the allocator would believe in a recording for good: it would give back nothing when memory
    runs out, nor what more than one stream has used.
    """
    device = torch.cuda.current_device()
    # Where the work failed but its recording ended well, this is an error, and all is done.
    with contextlib.suppress(RuntimeError):
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)
