"""Weights on their way to a CUDA device: read by several threads, copied while others are read.

Copied straight from a mapped file, a tensor waits for one page of the file after the other, and the
device for all of them. Here threads read pieces into pinned memory, and the device fetches those.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from queue import SimpleQueue

import torch
from jaxtyping import UInt8
from torch import Tensor

PIECE_BYTES = 16 * 2**20
READERS = 4
BYTES_AHEAD = 256 * 2**20
"""Tensors that are on their way while the one before them is used."""

Named = tuple[str, Tensor]


@dataclass(frozen=True, slots=True)
class Upload:
    """How tensors are taken apart."""

    device: torch.device
    piece_bytes: int = PIECE_BYTES
    readers: int = READERS
    bytes_ahead: int = BYTES_AHEAD

    def tensors(self, weights: Iterable[Named]) -> Iterator[Named]:
        """The same tensors on the device, in the same order."""
        lanes: SimpleQueue[_Lane] = SimpleQueue()
        for _ in range(self.readers):
            lanes.put(_Lane.to(self.device, self.piece_bytes))
        waiting: deque[_Arriving] = deque()
        with ThreadPoolExecutor(self.readers, thread_name_prefix="upload") as pool:
            for name, tensor in weights:
                waiting.append(self._start(name, tensor, pool, lanes))
                while sum(arriving.tensor.nbytes for arriving in waiting) > self.bytes_ahead:
                    yield waiting.popleft().landed()
            while waiting:
                yield waiting.popleft().landed()

    def _start(
        self, name: str, tensor: Tensor, pool: ThreadPoolExecutor, lanes: "SimpleQueue[_Lane]"
    ) -> "_Arriving":
        if tensor.is_cuda:  # computed there, as weights with an adapter are
            return _Arriving(name, tensor, [])
        source = tensor.contiguous()
        target = torch.empty_like(source, device=self.device)
        # The memory may be that of a tensor which is still read from.
        is_cuda = self.device.type == "cuda"
        is_free = _event(torch.cuda.current_stream(self.device)) if is_cuda else None
        pieces = zip(*(_bytes(x).split(self.piece_bytes) for x in (source, target)), strict=True)
        copies = [pool.submit(_copy, lanes, piece, place, is_free) for piece, place in pieces]
        return _Arriving(name, target, copies)


def uploaded(weights: Iterable[Named], device: torch.device) -> Iterable[Named]:
    """Weights on their way to a CUDA device; those of others stay where they are."""
    return Upload(device).tensors(weights) if device.type == "cuda" else weights


@dataclass(frozen=True, slots=True)
class _Lane:
    """Pinned memory, and the stream that empties it; plain memory for other devices."""

    buffer: UInt8[Tensor, " piece"]
    stream: torch.cuda.Stream | None

    @classmethod
    def to(cls, device: torch.device, num_bytes: int) -> "_Lane":
        is_cuda = device.type == "cuda"
        buffer = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=is_cuda)
        return cls(buffer, torch.cuda.Stream(device) if is_cuda else None)


@dataclass(frozen=True, slots=True)
class _Arriving:
    """A tensor whose pieces are being copied."""

    name: str
    tensor: Tensor
    copies: list[Future[torch.cuda.Event | None]]

    def landed(self) -> Named:
        """The tensor, which work of this thread may use from now on."""
        for copy in self.copies:
            event = copy.result()
            if event is not None:
                torch.cuda.current_stream(self.tensor.device).wait_event(event)
        return self.name, self.tensor


def _copy(
    lanes: "SimpleQueue[_Lane]",
    piece: UInt8[Tensor, " piece"],
    place: UInt8[Tensor, " piece"],
    is_free: torch.cuda.Event | None,
) -> torch.cuda.Event | None:
    """Runs in a reader's thread; gives the event behind the copy."""
    lane = lanes.get()
    try:
        if lane.stream is not None:
            lane.stream.synchronize()
        staged = lane.buffer[: len(piece)]
        staged.copy_(piece)
        with nullcontext() if lane.stream is None else torch.cuda.stream(lane.stream):
            if lane.stream is not None and is_free is not None:
                lane.stream.wait_event(is_free)
            place.copy_(staged, non_blocking=True)
        return None if lane.stream is None else _event(lane.stream)
    finally:
        lanes.put(lane)


def _bytes(tensor: Tensor) -> UInt8[Tensor, " bytes"]:
    return tensor.reshape(-1).view(torch.uint8)


def _event(stream: torch.cuda.Stream) -> torch.cuda.Event:
    event = torch.cuda.Event()
    event.record(stream)
    return event
