import importlib.machinery
import sys
from types import ModuleType

import pytest
import torch

from internvl2 import device as devices
from internvl2.device import _room_in_group, is_out_of_memory, threads


@pytest.fixture
def no_accelerator(monkeypatch):
    """A machine where torch finds a CPU only, and where torch_npu was not imported yet."""
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda check_available=False: None
    )
    monkeypatch.delitem(sys.modules, "torch_npu", raising=False)
    return monkeypatch


def test_an_npu_without_torch_npu_is_an_error_that_says_what_to_install(no_accelerator):
    no_accelerator.setattr(devices, "find_spec", lambda name: None)
    assert devices.pick().type == "cpu"
    for name in ("npu", "npu:1"):
        with pytest.raises(ValueError, match=f"{name}' needs torch_npu, .*not installed; install"):
            devices.pick(name)


def test_a_torch_npu_that_cannot_be_imported_is_an_error_that_says_why(no_accelerator, tmp_path):
    (tmp_path / "torch_npu.py").write_text("raise ImportError('libhccl.so: no such file')\n")
    no_accelerator.syspath_prepend(tmp_path)
    for name in (None, "npu"):
        with pytest.raises(ValueError, match=r"cannot be imported: libhccl.so.*--device cpu"):
            devices.pick(name)
    assert devices.pick("cpu").type == "cpu"


def test_a_torch_npu_without_an_npu_leaves_the_cpu(no_accelerator):
    module = ModuleType("torch_npu")
    module.__spec__ = importlib.machinery.ModuleSpec("torch_npu", None)
    no_accelerator.setitem(sys.modules, "torch_npu", module)
    assert devices.pick().type == "cpu"


def test_only_an_npu_has_kernels_of_torch_npu(no_accelerator):
    assert devices.fused_kernel("npu_rms_norm", torch.device("cpu")) is None
    module = ModuleType("torch_npu")
    module.npu_rms_norm = max
    no_accelerator.setitem(sys.modules, "torch_npu", module)
    no_accelerator.setattr(devices, "multiplies_bf16", lambda device: True)
    npu = type("Device", (), {"type": "npu"})()
    assert devices.fused_kernel("npu_rms_norm", npu) is max
    assert devices.fused_kernel("npu_swiglu", npu) is None
    no_accelerator.setattr(devices, "multiplies_bf16", lambda device: False)
    assert devices.fused_kernel("npu_rms_norm", npu) is None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("no room"), True),
        (RuntimeError("NPU out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("shapes differ"), False),
        (ValueError("the list is out of memory"), False),
    ],
)
def test_errors_of_memory_are_known_by_kind_or_words(error, expected):
    assert is_out_of_memory(error) is expected


def test_threads_are_as_many_as_before_when_the_work_is_done_or_fails():
    usual = torch.get_num_threads()
    seen = []
    try:
        with threads(usual + 1):
            seen.append(torch.get_num_threads())
            raise ValueError("the work fails")
    except ValueError:
        seen.append(torch.get_num_threads())
    assert seen == [usual + 1, usual]


def test_cached_files_count_as_free_memory_of_a_control_group(tmp_path):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 200\nactive_file 300\ninactive_file 400\n")
    assert _room_in_group(tmp_path, 5000) == 800


def test_a_control_group_without_limit_limits_nothing(tmp_path):
    assert _room_in_group(tmp_path, 5000) == 5000
    for name, text in (("max", "max\n"), ("current", "900\n"), ("stat", "")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert _room_in_group(tmp_path, 5000) == 5000


def test_segments_grow_on_a_gpu_unless_the_environment_configures_the_allocator(monkeypatch):
    told = []
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", told.append)
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    devices.let_segments_grow(torch.device("cpu"))
    assert told == []
    devices.let_segments_grow(torch.device("cuda"))
    assert told == ["expandable_segments:True"]
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:128")
    devices.let_segments_grow(torch.device("cuda"))
    assert len(told) == 1


@pytest.mark.gpu
def test_memory_of_a_gpu_is_reserved_in_segments_that_grow():
    device = torch.device("cuda")
    torch.cuda.empty_cache()
    devices.let_segments_grow(device)
    held = torch.empty(2**26, device=device)
    segments = torch.cuda.memory_snapshot()
    assert any(s["is_expandable"] and s["allocated_size"] >= held.nbytes for s in segments)
