"""Registers the process group `hccl`."""

from datetime import timedelta

import torch.distributed as dist

from . import _device


def register() -> None:
    dist.Backend.register_backend("hccl", _create, devices=["npu"])


def _create(store: dist.Store, rank: int, size: int, timeout: timedelta) -> dist.Backend:
    return _device.hccl(dist.ProcessGroupGloo(store, rank, size, timeout))
