"""The processes of a divided model: how they find each other and what they do together."""

from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from jaxtyping import Float, Integer
from torch import Tensor

from internvl2 import device as devices
from internvl2.model.tensor_parallel import Share

Store = dist.TCPStore  # pyright: ignore[reportPrivateImportUsage]
"""Where processes find each other."""

HOST = "127.0.0.1"
MEETING = timedelta(minutes=2)
"""Within which processes that have started find each other."""
PATIENCE = timedelta(minutes=30)
"""How long one waits for the others: reading weights takes longer for some than for others."""


@dataclass(frozen=True, slots=True)
class ProcessPeers:
    """This process among those of a group; NCCL between GPUs, gloo between CPUs."""

    share: Share
    device: torch.device

    @classmethod
    def join(cls, share: Share, device: torch.device, store: Store) -> "ProcessPeers":
        """Meets the others; every process must come.

        PyTorch knows one group of all processes, so a process can be in one divided model at a
        time.
        """
        dist.init_process_group(
            devices.process_group(device.type),
            store=store,
            rank=share.rank,
            world_size=share.size,
            timeout=PATIENCE,
            device_id=device if device.type == "cuda" else None,
        )
        return cls(share, device)

    def sum(self, x: Float[Tensor, "tokens dim"]) -> Float[Tensor, "tokens dim"]:
        """The sum of what all have, in place of `x`."""
        dist.all_reduce(x)
        return x

    def gather(self, x: Float[Tensor, "first *rest"]) -> Float[Tensor, "everyone *rest"]:
        """What all have, of one shape, one below the other."""
        everyone = x.new_empty((self.share.size, *x.shape))
        dist.all_gather(list(everyone), x.contiguous())
        return everyone.flatten(0, 1)

    def adopt(self, x: Integer[Tensor, "*shape"]) -> Integer[Tensor, "*shape"]:
        """What the first process has, in place of what is in `x`."""
        dist.broadcast(x, 0)
        return x

    def free_memory(self) -> int:
        """Bytes that each process can take; the host's memory is for all of them."""
        free = devices.free_memory(self.device)
        if self.device.type == "cpu":
            free //= self.share.size
        return self._least(free)

    def all_have(self, here: bool) -> bool:
        """Whether something is so in every process."""
        return bool(self._least(int(here)))

    def abort(self) -> None:
        """Has a device stop waiting for processes that are gone; gloo finds that out by itself."""
        if self.device.type == "cuda" and dist.is_initialized():
            group = dist.distributed_c10d._get_default_group()
            group._get_backend(self.device).abort()

    def leave(self) -> None:
        """Takes the group down."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def _least(self, number: int) -> int:
        least = torch.tensor(number)
        dist.all_reduce(least, dist.ReduceOp.MIN)
        return int(least)


def open_store(size: int) -> Store:
    """Where the processes meet, on a port that is free; the first process keeps it."""
    return Store(HOST, 0, size, is_master=True, timeout=MEETING, wait_for_workers=False)


def find_store(port: int, size: int) -> Store:
    """The store that the first process keeps."""
    return Store(HOST, port, size, is_master=False, timeout=MEETING)
