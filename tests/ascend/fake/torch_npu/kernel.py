"""How the fused kernels are made: checked, recorded, computed by plain PyTorch over host memory."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _device

LIBRARY = torch.library.Library("npu", "DEF")
FLOATS = (torch.float16, torch.bfloat16, torch.float32)


class Contract:
    """The documented conditions of one kernel; what breaks them is a RuntimeError, as on a card."""

    def __init__(self, kernel: str) -> None:
        self.kernel = kernel

    def require(self, holds: bool, wanted: str) -> None:
        if not holds:
            raise RuntimeError(f"{self.kernel}: {wanted}")

    def on_npu(self, **tensors: Tensor | None) -> None:
        for name, tensor in tensors.items():
            place = "npu" if tensor is None else tensor.device.type
            self.require(place == "npu", f"{name} must be on an npu, not on {place}")

    def one_dtype(self, allowed: Sequence[torch.dtype], **tensors: Tensor) -> None:
        dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
        self.require(len(set(dtypes.values())) == 1, f"dtypes must be the same, not {dtypes}")
        self.require(
            next(iter(dtypes.values())) in allowed, f"dtype must be of {allowed}: {dtypes}"
        )

    def absent(self, **arguments: object) -> None:
        given = [name for name, value in arguments.items() if value is not None]
        self.require(not given, f"this fake does not implement {', '.join(given)}")

    def host_ints(self, name: str, values: object) -> list[int]:
        are_ints = isinstance(values, list | tuple) and all(type(value) is int for value in values)
        self.require(are_ints, f"{name} must be a list of ints on the host, not {values!r}")
        assert isinstance(values, list | tuple)
        return [int(value) for value in values]


def define(
    schema: str,
    compute: Callable[..., Any],
    save: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> torch._ops.OpOverload:
    """Registers a kernel as `torch.ops.npu.<name>`; `compute` gets the device's tensors."""
    name = LIBRARY.define(schema)
    full = f"npu::{name}" if "::" not in name else name

    def run(*arguments: object, **options: object) -> object:
        _device.record_operator(full)
        return compute(*arguments, **options)

    LIBRARY.impl(name, run, "PrivateUse1")
    if backward is not None:

        def run_backward(ctx: Any, *grads: Tensor | None) -> object:
            _device.record_operator(f"{full}_grad")
            return backward(ctx, *grads)

        torch.library.register_autograd(full, run_backward, setup_context=save, lib=LIBRARY)
    return getattr(torch.ops.npu, full.removeprefix("npu::"))


def host(tensor: Tensor) -> Tensor:
    """The tensor as the CPU sees it, in 32-bit floats where it has fewer bits."""
    seen = _device.on_host(tensor.detach())
    return seen.float() if seen.is_floating_point() else seen


def device(tensor: Tensor, like: Tensor) -> Tensor:
    """A result of the CPU as a tensor in the memory and the format of `like`."""
    return _device.on_device(tensor.to(like.dtype).contiguous(), like.device.index)


def device_fp32(tensor: Tensor, like: Tensor) -> Tensor:
    return _device.on_device(tensor.float().contiguous(), like.device.index)
