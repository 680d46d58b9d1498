"""Tiles through the vision tower: uploaded beside the computing, small runs as recorded work.

A run of few tiles takes the device less time than starting its several hundred kernels takes the
host, so runs of up to `MOST_RECORDED` tiles are padded to few sizes and recorded. The first run of
a size is not: nobody's first answer waits for a recording. Larger runs keep the device busy anyway.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from internvl2 import device as devices
from internvl2.engine.graphs import Graphs, Work
from internvl2.model.internvl import InternVL

MOST_RECORDED = 16
"""Tiles: a picture of the usual twelve and its thumbnail, and a little more."""
_SIZES = (1, 2, 3, 4, 5, 7, 9, 11, 13, MOST_RECORDED)

Tiles = UInt8[np.ndarray, "_ size size 3"]
"""Of one picture, or a piece of it."""
_Uploads = Callable[[Sequence[Tiles]], UInt8[Tensor, "tiles size size 3"]]
"""How pieces of a batch come to the device."""


def recorded_sizes(max_tiles: int) -> tuple[int, ...]:
    """The sizes of recorded runs, smallest first, where no run may have more tiles than that."""
    most = min(max_tiles, MOST_RECORDED)
    return (*(size for size in _SIZES if size < most), most)


@dataclass(frozen=True, slots=True)
class TowerRun:
    """What one recording is made for."""

    tiles: int


class TileEncoder:
    """Runs of the vision tower and the projector, `max_tiles` at a time at most."""

    def __init__(
        self, model: InternVL, device: torch.device, *, max_tiles: int, graphs: Graphs | None
    ) -> None:
        self._model = model
        self._max_tiles = max_tiles
        self._uploads = _uploads(device, max_tiles, model.config.tile_size)
        self._recorded = None if graphs is None else _Recorded(model, device, max_tiles, graphs)

    def encode(self, pictures: Sequence[Tiles]) -> list[Float[Tensor, "visual dim"]]:
        """Visual tokens of the pictures' tiles, all tiles in one row."""
        encoded: list[Tensor] = []
        for pieces in _runs(pictures, self._max_tiles):
            tiles = self._uploads(pieces)
            run = self._model.encode_tiles if self._recorded is None else self._recorded.encode
            encoded += run(tiles)
        return encoded


class _Recorded:
    """Runs of few sizes between tensors that stay where they are."""

    def __init__(
        self, model: InternVL, device: torch.device, max_tiles: int, graphs: Graphs
    ) -> None:
        self._model = model
        self._graphs = graphs
        self._sizes = recorded_sizes(max_tiles)
        self._met: set[int] = set()
        most, side = self._sizes[-1], model.config.tile_size
        shape = (most, model.config.tokens_per_tile, model.config.decoder.hidden_size)
        dtype = model.vision.patch_embedding.weight.dtype
        self._tiles = torch.zeros(most, side, side, 3, dtype=torch.uint8, device=device)
        self._encoded = torch.zeros(shape, dtype=dtype, device=device)

    def encode(
        self, tiles: UInt8[Tensor, "tiles size size 3"]
    ) -> Float[Tensor, "tiles visual dim"]:
        """Visual tokens, in memory of their own."""
        size = next((size for size in self._sizes if size >= len(tiles)), None)
        if size is None:
            return self._model.encode_tiles(tiles)
        if size not in self._met:
            self._met.add(size)
            return self._model.encode_tiles(tiles)
        # The largest first: the others then find room in the memory that it leaves.
        self._ready(self._sizes[-1])
        run = self._ready(size)
        self._tiles[: len(tiles)].copy_(tiles)
        run()
        return self._encoded[: len(tiles)].clone()

    def _ready(self, size: int) -> Work:
        return self._graphs.ready(TowerRun(size), partial(self._run, size))

    def _run(self, size: int) -> None:
        self._encoded[:size].copy_(self._model.encode_tiles(self._tiles[:size]))


class _Slot(NamedTuple):
    """A batch on its way: in pinned memory, then on the device."""

    pinned: UInt8[Tensor, "tiles size size 3"]
    on_device: UInt8[Tensor, "tiles size size 3"]
    filled: torch.cuda.Event
    read: torch.cuda.Event


class _CudaUploads:
    """Copies to the device on a stream of their own, while it computes on the batch before."""

    def __init__(self, device: torch.device, max_tiles: int, side: int) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        shape = (max_tiles, side, side, 3)
        self._slots = [
            _Slot(
                torch.empty(shape, dtype=torch.uint8, pin_memory=True),
                torch.empty(shape, dtype=torch.uint8, device=device),
                torch.cuda.Event(),
                torch.cuda.Event(),
            )
            for _ in range(2)
        ]
        for slot in self._slots:
            # Its memory may be that of a tensor which work on its way still reads.
            slot.read.record(torch.cuda.current_stream(device))

    def __call__(self, pieces: Sequence[Tiles]) -> UInt8[Tensor, "tiles size size 3"]:
        """The pieces as one batch, to be read before the call after the next."""
        self._slots.reverse()
        slot, before = self._slots
        current = torch.cuda.current_stream(self._device)
        before.read.record(current)
        slot.filled.synchronize()
        count = 0
        for piece in pieces:
            # PyTorch copies with several threads, but reads no array that must not be written to.
            source = torch.from_numpy(np.require(piece, requirements="W"))
            slot.pinned[count : count + len(piece)].copy_(source)
            count += len(piece)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(slot.read)
            slot.on_device[:count].copy_(slot.pinned[:count], non_blocking=True)
            slot.filled.record(self._stream)
        current.wait_event(slot.filled)
        return slot.on_device[:count]


def _uploads(device: torch.device, max_tiles: int, side: int) -> _Uploads:
    if device.type == "cuda":
        return _CudaUploads(device, max_tiles, side)
    return lambda pieces: devices.upload(torch.from_numpy(np.concatenate(pieces)), device)


def _runs(pictures: Sequence[Tiles], max_tiles: int) -> Iterator[list[Tiles]]:
    """The tiles of all pictures in batches, each as pieces of pictures."""
    pieces: list[Tiles] = []
    room = max_tiles
    for picture in pictures:
        rest = picture
        while len(rest):
            pieces.append(rest[:room])
            rest, room = rest[room:], room - len(pieces[-1])
            if room == 0:
                yield pieces
                pieces, room = [], max_tiles
    if pieces:
        yield pieces
