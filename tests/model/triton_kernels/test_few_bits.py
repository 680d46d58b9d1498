"""Products with matrices in 8 and 4 bits against exact ones of the same numbers."""

import pytest
import torch
import torch.nn.functional as F
from einops import repeat
from torch import nn

from internvl2.model.int4 import Groups, RowOrder, quantize_groups
from internvl2.model.low_bit import Fp8Linear, Int8Linear
from internvl2.model.low_bit_linear import LowBitLinear, Tiles, Vectors

pytestmark = pytest.mark.compiled

SHAPES = [(64, 32), (128, 48), (288, 16), (480, 80)]
"""Inputs and outputs, few of them whole tiles."""
VECTORS = [Vectors(2, 1), Vectors(8, 2)]
TILES = [Tiles(16, 32, 128, warps=4, stages=2), Tiles(16, 16, 128, warps=4, stages=2, shares=3)]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def eight_bit(device, kind: type[LowBitLinear], shape, dtype=torch.float32) -> LowBitLinear:
    plain = nn.Linear(*shape, dtype=dtype).requires_grad_(False)
    return kind(plain.weight, plain.bias).to(device)


def states(device, rows: int, inputs: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(rows, inputs, dtype=dtype, device=device)


def exact(few: LowBitLinear, x: torch.Tensor) -> torch.Tensor:
    """The product of the numbers that codes and scales stand for."""
    weight = few.codes.float().double() * few.scales.double().view(-1, 1)
    return F.linear(x.double(), weight, few.bias.double())


def assert_equal(found: torch.Tensor, wanted: torch.Tensor) -> None:
    rounding = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[found.dtype]
    difference = (found.double() - wanted).abs().max()
    assert difference <= rounding * wanted.abs().max()


@pytest.mark.parametrize("kind", [Int8Linear, Fp8Linear])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("plan", VECTORS)
def test_one_row_is_multiplied_exactly_with_eight_bits(device, kind, shape, plan):
    few, x = eight_bit(device, kind, shape), states(device, 1, shape[0])
    assert_equal(few.product(x, plan), exact(few, x))


@pytest.mark.parametrize("kind", [Int8Linear, Fp8Linear])
@pytest.mark.parametrize("rows", [1, 2, 7, 16, 33])
@pytest.mark.parametrize("plan", TILES)
def test_several_rows_are_multiplied_exactly_with_eight_bits(device, kind, rows, plan):
    few, x = eight_bit(device, kind, (288, 48)), states(device, rows, 288)
    found = few.product(x, plan)
    rounding = 3e-3 if device.type == "cuda" else 1e-5  # matrix units shorten fp32
    assert (found.double() - exact(few, x)).abs().max() <= rounding * found.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", [Int8Linear, Fp8Linear])
@pytest.mark.parametrize("plan", [VECTORS[1], *TILES])
def test_eight_bits_are_rounded_once_in_half_precision(device, dtype, kind, plan):
    few = eight_bit(device, kind, (480, 80), dtype)
    x = states(device, 1 if isinstance(plan, Vectors) else 7, 480, dtype)
    found = few.product(x, plan)
    assert found.dtype is dtype
    assert_equal(found, exact(few, x))


def test_outputs_need_not_be_whole_blocks(device):
    few, x = eight_bit(device, Int8Linear, (64, 37)), states(device, 3, 64)
    assert_equal(few.product(x[:1], VECTORS[1]), exact(few, x[:1]))
    found = few.product(x.half(), TILES[0])
    assert found.shape == (3, 37)
    assert (found - exact(few, x.half())).abs().max() <= 2e-3 * found.abs().max()


class Rows:
    """A four-bit matrix in the order of the kernels, on whatever device there is."""

    def __init__(self, device, shape, group, dtype=torch.float32):
        plain = nn.Linear(*shape, dtype=dtype).requires_grad_(False)
        self.bias = plain.bias.to(device)
        self.groups = quantize_groups(plain.weight.to(device), group, dtype)
        inputs, outputs = shape
        self.codes = torch.empty(outputs, inputs // 2, dtype=torch.uint8, device=device)
        self.scales = torch.empty(inputs // group, outputs, 2, dtype=dtype, device=device)
        RowOrder().pack(self.groups, self.codes, self.scales)

    def product(self, x: torch.Tensor, plan: Vectors | Tiles) -> torch.Tensor:
        from internvl2.model.triton_kernels import four_bit

        words, scales = self.codes.view(torch.int32), self.scales.view(len(self.codes), -1, 2)
        call = four_bit.vector_product if isinstance(plan, Vectors) else four_bit.tile_product
        return call(x, words, scales, self.bias, plan)

    def exact(self, x: torch.Tensor) -> torch.Tensor:
        group = self.groups.codes.shape[1] // self.groups.scales.shape[1]
        parts = (self.groups.scales, self.groups.offsets)
        scales, offsets = (repeat(part.double(), "o g -> o (g n)", n=group) for part in parts)
        weight = (self.groups.codes.double() - 8) * scales + offsets
        return F.linear(x.double(), weight, self.bias.double())


@pytest.mark.parametrize(("shape", "group"), [((64, 32), 32), ((288, 22), 96), ((512, 64), 128)])
@pytest.mark.parametrize("plan", VECTORS)
def test_one_row_is_multiplied_exactly_with_four_bits(device, shape, group, plan):
    few, x = Rows(device, shape, group), states(device, 1, shape[0])
    assert_equal(few.product(x, plan), few.exact(x))


@pytest.mark.parametrize("rows", [1, 2, 7, 16, 33])
@pytest.mark.parametrize("plan", TILES)
def test_several_rows_are_multiplied_with_four_bits(device, rows, plan):
    few, x = Rows(device, (448, 48), 64, torch.bfloat16), states(device, rows, 448, torch.bfloat16)
    assert_equal(few.product(x, plan), few.exact(x))


@pytest.mark.parametrize("group", [32, 128, 256])
def test_groups_may_be_shorter_or_longer_than_a_tile(device, group):
    few = Rows(device, (768, 40), group, torch.float16)
    x = states(device, 3, 768, torch.float16)
    assert_equal(few.product(x, TILES[0]), few.exact(x))
    assert_equal(few.product(x, TILES[1]), few.exact(x))


def test_codes_in_rows_are_unpacked_as_they_were_packed():
    codes = torch.randint(0, 16, (6, 96), dtype=torch.uint8)
    groups = Groups(codes, torch.randn(6, 3), torch.randn(6, 3))
    stored, scales = torch.empty(3, 96, dtype=torch.uint8), torch.empty(3, 6, 2)
    RowOrder().pack(groups, stored, scales)
    found = RowOrder().unpack(stored, scales)
    assert torch.equal(found.codes, codes)
    assert torch.equal(found.scales, groups.scales)
    assert torch.equal(found.offsets, groups.offsets)
