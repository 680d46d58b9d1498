"""What rows that draw their tokens want, at fixed addresses for recorded work."""

from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from internvl2 import device as devices
from internvl2.engine.sampler import UNLIMITED, Randomness, noise_keys
from internvl2.engine.sequence import Sequence

TEMPERATURE, TOP_P, LOG_MIN_P = range(3)
"""What the rows of the shares are."""


class DrawBuffers:
    """The wishes of a batch; rows without any take the most probable token."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self._device = device
        self._rows = torch.arange(rows, device=device)
        self._shares = torch.zeros(3, rows, device=device)
        self._top_k = torch.zeros(rows, dtype=torch.int64, device=device)
        self._keys = torch.zeros(rows, 2, dtype=torch.int64, device=device)

    def view(self, rows: int, *, truncates: bool) -> Randomness:
        """The wishes of the first rows, as recorded work reads them."""
        return Randomness(
            rows=self._rows[:rows],
            temperature=self._shares[TEMPERATURE, :rows],
            top_k=self._top_k[:rows],
            top_p=self._shares[TOP_P, :rows],
            log_min_p=self._shares[LOG_MIN_P, :rows],
            keys=self._keys[:rows],
            truncates=truncates,
        )

    def place(self, batch: Rows[Sequence]) -> None:
        """Fills in what stays the same while a batch does."""
        params = [sequence.params for sequence in batch]
        shares = torch.tensor(
            [[float(p.temperature), float(p.top_p), float(p.min_p)] for p in params]
        ).T.contiguous()
        shares[LOG_MIN_P] = shares[LOG_MIN_P].log()
        top_k = torch.tensor([min(p.top_k, UNLIMITED) for p in params])
        self._shares[:, : len(batch)].copy_(self._upload(shares))
        self._top_k[: len(batch)].copy_(self._upload(top_k))

    def advance(self, batch: Rows[Sequence], written: Rows[int]) -> None:
        """Fills in what the noise of the next tokens follows from, behind so many written ones."""
        keys = noise_keys(batch, written)
        self._keys[: len(batch)].copy_(self._upload(torch.from_numpy(keys)))

    def _upload(self, values: Tensor) -> Tensor:
        return devices.upload(values, self._device)
