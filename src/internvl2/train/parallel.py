"""The processes of a run: who they are, and what they add up; a single process needs no group."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from internvl2 import device as devices

BUCKET_BYTES = 64 * 2**20
"""Gradients travel in pieces of about this size."""


@dataclass(frozen=True)
class World:
    """This process among those of the run."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def join(cls, device: str | None) -> "World":
        """The processes that torchrun started, or this one alone."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls(0, 1, devices.pick(device))
        picked = devices.pick(device)
        if picked.type != "cpu" and picked.index is None:
            picked = devices.pick(f"{picked.type}:{os.environ['LOCAL_RANK']}")
            torch.accelerator.set_device_index(picked.index)
        backend = devices.process_group(picked.type)
        dist.init_process_group(backend, timeout=timedelta(minutes=30))
        return cls(int(os.environ["RANK"]), size, picked)

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def sum(self, values: Sequence[float | int]) -> list[float]:
        """Each value summed over all processes, in fp64 and in the same order everywhere."""
        if self.size == 1:
            return [float(value) for value in values]
        mine = torch.tensor(values, dtype=torch.float64)
        everyone = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(everyone, mine)
        return torch.stack(everyone).sum(0).tolist()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Gradients summed over all processes; one that is missing here counts as 0."""
        if self.size == 1:
            return
        for bucket in _buckets(parameters):
            gradients = [_gradient(p) for p in bucket]
            flat = torch.cat([g.reshape(-1) for g in gradients])
            dist.all_reduce(flat)
            pieces = flat.split([g.numel() for g in gradients])
            for gradient, piece in zip(gradients, pieces, strict=True):
                gradient.copy_(piece.view_as(gradient))

    def wait(self) -> None:
        """Returns when every process is here."""
        if self.size > 1:
            dist.barrier()

    def leave(self) -> None:
        """Takes the group of processes down."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _buckets(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Runs of parameters of one type, each of about `BUCKET_BYTES`."""
    buckets: list[list[nn.Parameter]] = []
    filled = BUCKET_BYTES
    for parameter in parameters:
        size = parameter.numel() * parameter.element_size()
        if filled + size > BUCKET_BYTES or buckets[-1][0].dtype != parameter.dtype:
            buckets.append([])
            filled = 0
        buckets[-1].append(parameter)
        filled += size
    return buckets
