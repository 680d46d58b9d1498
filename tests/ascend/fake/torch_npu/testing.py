"""What tests ask the fake device: which operators ran, how often the host waited, less memory."""

from collections.abc import Iterator
from contextlib import contextmanager

from . import _device, npu


def recorded_operators() -> set[str]:
    """Names of the operators that ran on the device, such as "aten::add.Tensor"."""
    return _device.recorded_operators()


def forget_operators() -> None:
    _device.forget_operators()


def synchronizations() -> int:
    """How often the host waited for the device: copies, `item`, shapes that depend on values."""
    return sum(synchronizations_by_kind().values())


def synchronizations_by_kind() -> dict[str, int]:
    """Waits by reason: device_to_host, host_to_device, item, operator, wait."""
    return _device.synchronizations()


def forget_synchronizations() -> None:
    _device.forget_synchronizations()


@contextmanager
def memory_of(limit: int) -> Iterator[None]:
    """Gives each device so many bytes for a while."""
    before = npu.mem_get_info()[1]
    _device.limit_memory(limit)
    try:
        yield
    finally:
        _device.limit_memory(before)
