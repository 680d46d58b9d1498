"""Which way a product in few bits takes, as times and failures decide it."""

import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn

from internvl2 import device as devices
from internvl2.model import low_bit_plans
from internvl2.model.kernel_choice import KernelChoice
from internvl2.model.low_bit import LINEARS, Fp8Linear, Int8Linear
from internvl2.model.low_bit_linear import Dequantized, LowBitLinear, Plan, Tiles, Vectors
from internvl2.model.low_bit_plans import MANY, plan_products, vectors

SPEED = {Vectors: 1.0, Tiles: 2.0, type(None): 5.0}
"""Seconds that every way is said to take."""


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Has the CPU pass for one of 132 multiprocessors, kernels for plain products."""
    monkeypatch.setattr(low_bit_plans, "_has_kernels", lambda linear: linear.fits_kernels)
    monkeypatch.setattr(devices, "processors", lambda _: 132)
    for kind in LINEARS.values():
        monkeypatch.setattr(kind, "_fused", lambda self, rows, _: self.product(rows, Dequantized()))


def seconds_by(speed: dict[type, float]) -> Callable[[Callable[[], object]], float]:
    """A clock that looks at what it is to time."""

    def seconds(run: Callable[[], object]) -> float:
        (timed,) = run.__defaults__
        return speed[type(timed.keywords["plan"])]

    return seconds


def few(kind=Int8Linear, shape=(512, 64), dtype=torch.bfloat16) -> LowBitLinear:
    torch.manual_seed(0)
    plain = nn.Linear(*shape, dtype=dtype).requires_grad_(False)
    return kind(plain.weight, plain.bias)


def ways(linear: LowBitLinear) -> dict[int, type[Plan] | type[None]]:
    return {limit: type(plan) for limit, plan in linear.plans}


@pytest.mark.parametrize("kind", LINEARS.values())
def test_the_fastest_way_is_planned_for_each_number_of_rows(on_a_gpu, kind):
    linear = few(kind)
    plan_products(linear, KernelChoice(seconds_by(SPEED)))
    expected = {1: Vectors, 16: Tiles, 32: Tiles, 64: Tiles, 256: Tiles}
    assert ways(linear) == expected | {MANY: type(None)}
    assert isinstance(linear._plan(1), Vectors)
    assert linear._plan(7).rows == linear._plan(16).rows == 16
    assert linear._plan(17).rows == 32
    assert linear._plan(257) is None


def test_plain_products_stay_where_kernels_are_slower(on_a_gpu):
    linear = few()
    slow_tiles = SPEED | {Tiles: 9.0}
    plan_products(linear, KernelChoice(seconds_by(slow_tiles)))
    assert ways(linear) == {1: Vectors} | dict.fromkeys((16, 32, 64, 256, MANY), type(None))
    assert linear._plan(5) is None


def test_matrices_of_one_shape_are_tried_once(on_a_gpu):
    runs = []
    clock = seconds_by(SPEED)
    model = nn.Sequential(few(), few(), few(shape=(256, 64)))
    plan_products(model, KernelChoice(lambda run: runs.append(run) or clock(run)))
    one, other, third = model
    assert one.plans is other.plans
    assert third.plans is not one.plans
    assert len(runs) == 2 * 2 * sum(len(tiles) for tiles in low_bit_plans.TILES.values()) + 2 * 6


def test_matrix_units_do_not_multiply_fp32(on_a_gpu):
    linear = few(dtype=torch.float32)
    plan_products(linear, KernelChoice(seconds_by(SPEED)))
    assert ways(linear) == {1: Vectors, MANY: type(None)}


def test_fp8_is_dequantised_where_pytorchs_product_in_fp8_fails(on_a_gpu, monkeypatch, caplog):
    def fails(self, rows):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(Fp8Linear, "_plain", fails)
    linear = few(Fp8Linear)
    plan_products(linear, KernelChoice(seconds_by(SPEED | {Dequantized: 5.0})))
    assert ways(linear)[MANY] is Dequantized
    assert "no such kernel" in caplog.text
    x = torch.randn(300, 512, dtype=torch.bfloat16)
    torch.testing.assert_close(linear(x), nn.functional.linear(x, linear.weight, linear.bias))


def test_without_triton_everything_stays_plain_and_a_warning_says_why(monkeypatch, caplog):
    for name in [name for name in sys.modules if "triton_kernels" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(low_bit_plans, "_has_kernels", lambda _: True)
    monkeypatch.setattr(devices, "processors", lambda _: 132)
    plain = nn.Linear(64, 32).requires_grad_(False)
    linear = Int8Linear(plain.weight, plain.bias)
    plan_products(linear, KernelChoice(seconds_by(SPEED)))
    assert ways(linear) == {1: type(None), MANY: type(None)}
    assert len(caplog.records) == 1
    assert "triton" in caplog.text


def test_a_cpu_gets_no_plans():
    linear = few()
    plan_products(linear, KernelChoice(lambda _: pytest.fail("timed")))
    assert not linear.plans


@pytest.mark.parametrize(
    ("inputs", "at_once", "warps"),
    [(896, 16, 2), (2048, 16, 4), (14336, 16, 4), (896, 32, 1), (2048, 32, 2), (8192, 32, 4)],
)
def test_a_thread_reads_one_load_of_each_output_at_a_time(inputs, at_once, warps):
    assert {plan.warps for plan in vectors(inputs, at_once)} == {warps}


@pytest.mark.parametrize(("shares", "inputs"), [(1, 2048), (3, 2048), (8, 896), (5, 14336)])
def test_shares_are_whole_tiles_that_make_up_all_inputs(shares, inputs):
    tile = Tiles(16, 32, 256, warps=4, stages=4, shares=shares)
    share = tile.share(inputs)
    assert share % 256 == 0
    assert -(-inputs // share) <= shares
