"""What an Ascend card refuses, the fake refuses too."""

import importlib

import pytest
import torch
import torch_npu  # noqa: F401 - makes the device known


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_neither_64_bit_floats_nor_complex_numbers(dtype: torch.dtype) -> None:
    with pytest.raises(RuntimeError, match="an NPU has no"):
        torch.zeros(2, dtype=dtype, device="npu")
    with pytest.raises(RuntimeError, match="an NPU has no"):
        torch.zeros(2, dtype=dtype).to("npu")


def test_no_results_in_64_bit_floats() -> None:
    with pytest.raises(RuntimeError, match="64-bit"):
        torch.ones(2, device="npu").sum(dtype=torch.float64)


def test_no_mixing_of_devices_except_for_numbers() -> None:
    x = torch.ones(2, device="npu")
    assert (x + torch.tensor(1.0)).cpu().tolist() == [2, 2]
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(2)


def test_no_flash_attention_of_other_makers() -> None:
    q = torch.ones(2, 1, 16, device="npu", dtype=torch.float16)
    ends = torch.tensor([0, 2], dtype=torch.int32, device="npu")
    with pytest.raises(RuntimeError, match="a kernel that no NPU has"):
        torch.ops.aten._flash_attention_forward(q, q, q, ends, ends, 2, 2, 0.0, True, False)


@pytest.mark.parametrize("package", ["triton", "flash_attn", "bitsandbytes"])
def test_no_packages_for_other_makers_cards(package: str) -> None:
    with pytest.raises(ModuleNotFoundError, match="no kernels for an NPU"):
        importlib.import_module(package)
