"""Packs on their way to the device: the next one is copied while the model computes on this one."""

from collections.abc import Iterable, Iterator

import torch

from internvl2 import device as devices
from internvl2.train.data.packing import TrainBatch


class Arrivals:
    """Brings packs to a device; on an accelerator a side stream copies each ahead of its turn.

    There is one for a whole run: what a stream has allocated, no other stream takes up again.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = _Copies(device) if devices.copies_by_itself(device) else None

    def bring(self, batches: Iterable[TrainBatch]) -> Iterator[TrainBatch]:
        """The batches on the device."""
        if self._copies is None:
            yield from (batch.to(self._device) for batch in batches)
            return
        upcoming = None
        for batch in batches:
            begun = self._copies.begin(batch)
            if upcoming is not None:
                yield self._copies.arrived(upcoming)
            upcoming = begun
        if upcoming is not None:
            yield self._copies.arrived(upcoming)


class _Copies:
    """Copies from pinned memory on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._module = device, torch.get_device_module(device)
        self._stream = self._module.Stream(device)

    def begin(self, batch: TrainBatch) -> tuple[TrainBatch, torch.Event]:
        """Starts to copy a batch; the event says when it is there."""
        with self._module.stream(self._stream):
            moved = batch.pin().to(self._device)
        return moved, self._stream.record_event()

    def arrived(self, begun: tuple[TrainBatch, torch.Event]) -> TrainBatch:
        """The batch, for work that is queued from now on."""
        batch, done = begun
        current = self._module.current_stream(self._device)
        current.wait_event(done)
        return batch.used_by(current)
