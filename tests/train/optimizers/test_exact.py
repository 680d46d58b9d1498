"""The two halves of fp32 numbers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from internvl2.train.optimizers.exact import join, split

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


def round_trip(values: torch.Tensor) -> torch.Tensor:
    halves = split(values)
    return join(halves.weight, halves.residual)


@given(st.lists(FINITE, min_size=1, max_size=50))
def test_every_finite_number_comes_back_bit_for_bit(values: list[float]):
    master = torch.tensor(values, dtype=torch.float32)
    assert torch.equal(round_trip(master).view(torch.int32), master.view(torch.int32))


def test_every_lower_half_comes_back_bit_for_bit():
    bits = torch.arange(2**16, dtype=torch.int32)
    for upper in (0, 0x3F80, 0x0001, 0x7F7E, -0x8000, -0x4080):
        master = (bits + upper * 2**16).view(torch.float32)
        assert torch.equal(round_trip(master).view(torch.int32), master.view(torch.int32))


def test_the_weight_is_the_nearest_bf16_number():
    torch.manual_seed(0)
    master = torch.randn(100_000)
    ours, nearest = (x.float().sub(master).abs() for x in (split(master).weight, master.bfloat16()))
    assert torch.equal(ours, nearest)


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -2.5])
def test_a_bf16_number_has_no_residual(value: float):
    halves = split(torch.tensor([value]))
    assert halves.residual.item() == 0
    assert halves.weight.item() == value


def test_both_halves_together_take_four_bytes():
    halves = split(torch.randn(3))
    assert halves.weight.element_size() + halves.residual.element_size() == 4
