"""Which device computes, in which number format, and how much memory it has left.

torch is imported when a function needs it, so that `--help` does not wait for it. torch_npu, which
brings the device `npu`, is imported here alone, and only where no other accelerator is there.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internvl2.config import DTypeName

if TYPE_CHECKING:
    import torch


def pick(name: str | None = None) -> "torch.device":
    """The device called `name` ("cpu", "cuda:1", "npu", "mps"), or the best one there is."""
    import torch

    best = _accelerator(name)
    if name is None:
        return best if best is not None else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}; known: cpu, cuda, cuda:N, npu, mps") from None
    if device.type == "cpu":
        return device
    found = "cpu" if best is None else f"cpu, {best.type}"
    if best is None or best.type != device.type:
        raise ValueError(f"device {name!r} is not available here; this machine has: {found}")
    count = torch.accelerator.device_count()
    if device.index is not None and device.index >= count:
        there = ", ".join(f"{device.type}:{index}" for index in range(count))
        raise ValueError(f"device {name!r} does not exist; this machine has: {there}")
    return device


def choose_dtype(
    device: "torch.device", stored: DTypeName, wanted: str | None = None
) -> "torch.dtype":
    """The format to compute in: `wanted`, else the checkpoint's where the device is good at it."""
    return format_for(device.type, stored, wanted, multiplies_bf16=lambda: multiplies_bf16(device))


def format_for(
    kind: str,
    stored: DTypeName,
    wanted: str | None,
    *,
    multiplies_bf16: Callable[[], bool],
) -> "torch.dtype":
    """What `choose_dtype` does for a kind of device.

    Without bf16 arithmetic a bf16 checkpoint runs in fp16 on an accelerator and in fp32 on a CPU.
    """
    import torch

    formats = {
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
        "float32": torch.float32,
        "bf16": torch.bfloat16,
        "fp16": torch.float16,
        "fp32": torch.float32,
    }
    if wanted is not None and wanted not in formats:
        raise ValueError(f"unknown dtype {wanted!r}; known: {', '.join(formats)}")
    dtype = formats[stored if wanted is None else wanted]
    if kind == "cpu" and wanted is None:
        return dtype if dtype is torch.bfloat16 and multiplies_bf16() else torch.float32
    if kind == "cpu" or dtype is not torch.bfloat16 or multiplies_bf16():
        return dtype
    if wanted is None:
        return torch.float16
    raise ValueError(
        f"dtype {wanted}: this {kind} device has no bf16 arithmetic (NVIDIA has it from Ampere on, "
        "Ascend from Atlas A2 on); use float16, which takes as little memory, or float32"
    )


def fused_kernel(name: str, device: "torch.device") -> Callable[..., Any] | None:
    """A kernel of torch_npu for tensors on `device`; None where plain torch has to do.

    The kernels are documented for NPUs from Atlas A2 on, which are those that know bf16.
    """
    if device.type != "npu" or not multiplies_bf16(device):
        return None
    return getattr(import_module("torch_npu"), name, None)


def process_group(kind: str) -> str:
    """What several processes with devices of a kind talk through, host memory by gloo."""
    return {"cuda": "cpu:gloo,cuda:nccl", "npu": "cpu:gloo,npu:hccl"}.get(kind, "gloo")


def copies_by_itself(device: "torch.device") -> bool:
    """Whether a device copies from pinned memory while the host goes on."""
    return device.type in ("cuda", "npu")


def current(device: "torch.device") -> AbstractContextManager[Any]:
    """Has a CUDA device be the current one: Triton launches there, and pinned memory belongs to it.

    Nothing changes for other devices.
    """
    import torch

    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def upload(values: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """A copy on the device that the host does not wait for, where the device can do that."""
    if not copies_by_itself(device):
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device had no room; not every one has a kind of error for it."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "out of memory" in str(error).lower()


def free_memory(device: "torch.device") -> int:
    """Bytes that new tensors on `device` can take."""
    import torch

    if device.type == "cpu":
        return _available_host_memory()
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    free, _ = torch.get_device_module(device).mem_get_info(device)
    module = torch.get_device_module(device)
    return free + module.memory_reserved(device) - module.memory_allocated(device)


def let_segments_grow(device: "torch.device") -> None:
    """Have memory of a CUDA device reserved in segments that grow, so that less of it lies idle.

    Steps whose packs differ ask for other sizes each time, for which segments of fixed size are
    soon too small. What the environment says of PyTorch's allocator stands.
    """
    import torch

    is_told = {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & set(os.environ)
    if device.type == "cuda" and not is_told:
        torch._C._accelerator_setAllocatorSettings("expandable_segments:True")


def processors(device: "torch.device") -> int:
    """Multiprocessors of a CUDA device; 1 elsewhere, where kernels of Triton are interpreted."""
    import torch

    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def synchronize(device: "torch.device") -> None:
    """Wait until everything queued on `device` is done."""
    import torch

    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Has torch compute with so many threads on the CPU for a while."""
    import torch

    usual = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(usual)


def _accelerator(name: str | None) -> "torch.device | None":
    """The accelerator that is there, with torch_npu imported where `name` may mean an NPU."""
    import torch

    kind = None if name is None else name.split(":")[0]
    found = torch.accelerator.current_accelerator(check_available=True)
    if kind == "npu" or (kind is None and found is None):
        is_installed = _import_torch_npu()
        if kind == "npu" and not is_installed:
            raise ValueError(
                f"device {name!r} needs torch_npu, which is not installed; "
                f"install torch_npu {'.'.join(torch.__version__.split('.')[:2])}, as torch is"
            )
        found = torch.accelerator.current_accelerator(check_available=True)
    return found


def _import_torch_npu() -> bool:
    """Makes the device `npu` known to torch; whether torch_npu is installed."""
    if "torch_npu" not in sys.modules and find_spec("torch_npu") is None:
        return False
    try:
        import_module("torch_npu")
    except (ImportError, OSError, RuntimeError) as error:
        raise ValueError(
            f"torch_npu is installed but cannot be imported: {error}; it needs CANN, whose "
            "set_env.sh must have been sourced, and the version that goes with torch "
            "(--device cpu computes without it)"
        ) from error
    return True


def multiplies_bf16(device: "torch.device") -> bool:
    """Whether a device has arithmetic for bf16."""
    import torch

    if device.type == "cpu":
        return cpu_multiplies_bf16()
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    module = torch.get_device_module(device)
    return bool(getattr(module, "is_bf16_supported", lambda: True)())


def cpu_multiplies_bf16() -> bool:
    """Whether the CPU has instructions for bf16 products; without them bf16 is slower than fp32."""
    import torch

    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def _available_host_memory() -> int:
    """Memory that programs can take without swapping, within the control group's limit."""
    import os

    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(
            line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line
        )
        available = int(fields["MemAvailable"].split()[0]) * 1024
    else:
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(available, _room_in_group(Path("/sys/fs/cgroup"), available))


def _room_in_group(group: Path, otherwise: int) -> int:
    """What a control group's limit leaves; cached files count as free, they make room."""
    paths = [group / f"memory.{name}" for name in ("max", "current", "stat")]
    if not all(path.exists() for path in paths):
        return otherwise
    limit, used, stat = (path.read_text().strip() for path in paths)
    if not limit.isdigit():
        return otherwise
    fields = dict(line.split() for line in stat.splitlines())
    cached = int(fields.get("active_file", 0)) + int(fields.get("inactive_file", 0))
    return int(limit) - int(used) + cached
