"""What `torch.npu` offers: the devices, their memory, streams, events and random numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import torch

from . import _device

PRIVATE_USE = 20
"""The number of the kind of device that is renamed npu."""
Which = torch.device | str | int | None


def _index(device: Which = None) -> int:
    if isinstance(device, int):
        return device
    index = None if device is None else torch.device(device).index
    return _device.current_device() if index is None else index


def is_available() -> bool:
    return True


def is_initialized() -> bool:
    return True


def init() -> None:
    pass


def _lazy_init() -> None:
    pass


def _is_in_bad_fork() -> bool:
    return False


def device_count() -> int:
    return _device.device_count()


def current_device() -> int:
    return _device.current_device()


def set_device(device: Which) -> None:
    _device.set_device(_index(device))


class device:
    """Makes another device the current one for a while."""

    def __init__(self, device: Which) -> None:
        self.index = _index(device)

    def __enter__(self) -> None:
        self.before = current_device()
        set_device(self.index)

    def __exit__(self, *reason: object) -> None:
        set_device(self.before)


def get_device_name(device: Which = None) -> str:
    return f"Fake Ascend {_index(device)}"


def get_device_properties(device: Which = None) -> SimpleNamespace:
    return SimpleNamespace(
        name=get_device_name(device), total_memory=_use(device).total, major=0, minor=0
    )


def is_bf16_supported() -> bool:
    return _device.has_bf16()


def get_amp_supported_dtype() -> list[torch.dtype]:
    return [torch.float16, torch.bfloat16] if is_bf16_supported() else [torch.float16]


def set_compile_mode(jit_compile: bool = False) -> None:
    if jit_compile:
        raise RuntimeError("operators compiled while they run are slow; use jit_compile=False")


def _use(device: Which = None):
    return _device.memory_use(_index(device))


def memory_allocated(device: Which = None) -> int:
    return _use(device).allocated


def max_memory_allocated(device: Which = None) -> int:
    return _use(device).peak_allocated


def memory_reserved(device: Which = None) -> int:
    return _use(device).reserved


def max_memory_reserved(device: Which = None) -> int:
    return _use(device).peak_reserved


def mem_get_info(device: Which = None) -> tuple[int, int]:
    use = _use(device)
    return use.total - use.reserved, use.total


def memory_stats(device: Which = None) -> dict[str, int]:
    use = _use(device)
    return {
        "allocated_bytes.all.current": use.allocated,
        "allocated_bytes.all.peak": use.peak_allocated,
        "active_bytes.all.current": use.allocated,
        "active_bytes.all.peak": use.peak_allocated,
        "reserved_bytes.all.current": use.reserved,
        "reserved_bytes.all.peak": use.peak_reserved,
        "num_alloc_retries": 0,
        "num_ooms": 0,
    }


def reset_peak_memory_stats(device: Which = None) -> None:
    _device.reset_peaks(_index(device))


def empty_cache() -> None:
    _device.empty_cache(current_device())


class Stream(torch.Stream):
    """A queue of work; here, work is done as soon as it is queued."""

    def __new__(cls, device: Which = None, priority: int = 0) -> "Stream":
        return super().__new__(cls, device=f"npu:{_index(device)}", priority=priority)


class Event:
    """A moment in a stream; torch compares its own events only, so that this makes one of them."""

    def __new__(
        cls, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False
    ) -> torch.Event:
        return torch.Event("npu", enable_timing=enable_timing, blocking=blocking)


def current_stream(device: Which = None) -> torch.Stream:
    return torch.accelerator.current_stream(f"npu:{_index(device)}")


def default_stream(device: Which = None) -> torch.Stream:
    return torch.Stream(stream_id=0, device_index=_index(device), device_type=PRIVATE_USE)


def set_stream(stream: torch.Stream) -> None:
    torch.accelerator.set_stream(stream)


@contextmanager
def stream(stream: torch.Stream | None) -> Iterator[None]:
    if stream is None:
        yield
        return
    before = current_stream()
    set_stream(stream)
    try:
        yield
    finally:
        set_stream(before)


def synchronize(device: Which = None) -> None:
    torch.accelerator.synchronize(f"npu:{_index(device)}")


def _generator(device: Which = None) -> torch.Generator:
    return _device.default_generator(_index(device))


def manual_seed(seed: int) -> None:
    _generator().manual_seed(seed)


def manual_seed_all(seed: int) -> None:
    for index in range(device_count()):
        _generator(index).manual_seed(seed)


def seed() -> int:
    return _generator().seed()


def seed_all() -> None:
    manual_seed_all(seed())


def initial_seed() -> int:
    return _generator().initial_seed()


def get_rng_state(device: Which = "npu") -> torch.Tensor:
    return _generator(device).get_state()


def set_rng_state(new_state: torch.Tensor, device: Which = "npu") -> None:
    _generator(device).set_state(new_state)


def get_rng_state_all() -> list[torch.Tensor]:
    return [get_rng_state(index) for index in range(device_count())]


def set_rng_state_all(new_states: list[torch.Tensor]) -> None:
    for index, state in enumerate(new_states):
        set_rng_state(state, index)
