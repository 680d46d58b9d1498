"""Matrices whose rows begin at aligned places."""

import pytest
import torch

from internvl2.model.aligned import ALIGNED, aligned_copy


@pytest.fixture
def _new_memory_is_nan():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_new_memory_is_nan")
@pytest.mark.parametrize("columns", [1, ALIGNED - 1, ALIGNED, ALIGNED + 5])
def test_a_copy_has_zeros_between_its_rows(columns: int):
    numbers = torch.randn(3, columns)
    copy = aligned_copy(numbers, torch.bfloat16)
    assert torch.equal(copy, numbers.bfloat16())
    assert copy.stride(0) % ALIGNED == 0
    between = copy.as_strided((3, copy.stride(0)), (copy.stride(0), 1))[:, columns:]
    assert torch.equal(between, torch.zeros_like(between))
