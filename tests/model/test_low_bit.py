"""Linear maps in few bits: what they compute, how far it is from the plain map, what they weigh."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from internvl2.config import DecoderConfig, InternVLConfig, RotaryConfig, VisionConfig
from internvl2.model import int4, low_bit
from internvl2.model.int4 import Groups, Int4Linear, quantize_groups
from internvl2.model.internvl import random_model
from internvl2.model.low_bit import (
    LINEARS,
    Fp8Linear,
    Int8Linear,
    quantization_of,
    quantize_for_answers,
    quantize_fp8,
    require_quantization,
    stored_bytes,
)

CONFIG = InternVLConfig(
    vision=VisionConfig(32, 2, 4, 64, image_size=28),
    decoder=DecoderConfig("qwen2", 64, 128, 2, 4, 2, 32, 256, 512, RotaryConfig(1e4)),
    template="internvl2_5",
    tile_size=28,
    image_token_id=7,
)
BITS = {"int8": 8, "fp8": 8, "int4": 4}
ROWS = (1, low_bit.INT8_ROWS, low_bit.INT8_ROWS + 1, int4.INT4_ROWS + 1)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def random_linear(inputs=256, outputs=128, dtype=torch.float32) -> nn.Linear:
    return nn.Linear(inputs, outputs, dtype=dtype).requires_grad_(False)


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found - wanted).float().norm() / wanted.float().norm()).item()


@pytest.mark.parametrize(("name", "rows"), [*product(("int8", "int4"), ROWS)])
@pytest.mark.parametrize("shape", [(256, 128), (64, 32), (48, 40), (24, 6)])
def test_integer_weights_compute_what_their_dequantised_weight_does(name, rows, shape):
    plain = random_linear(*shape)
    few = LINEARS[name](plain.weight, plain.bias)
    x = torch.randn(rows, shape[0])
    torch.testing.assert_close(few(x), F.linear(x, few.weight, plain.bias), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "rows"), [*product(("int8", "int4"), ROWS)])
def test_integer_weights_agree_with_their_dequantised_weight_in_bf16(name, rows):
    plain = random_linear(dtype=torch.bfloat16)
    few = LINEARS[name](plain.weight, plain.bias)
    x = torch.randn(rows, 256, dtype=torch.bfloat16)
    found = few(x)
    assert found.dtype is torch.bfloat16
    assert relative(found, F.linear(x.float(), few.weight.float(), plain.bias.float())) < 0.006


def test_fp8_multiplies_the_rounded_inputs_with_the_rounded_weight():
    plain = random_linear()
    few, x = Fp8Linear(plain.weight, plain.bias), torch.randn(5, 256)
    codes, scales = quantize_fp8(x)
    assert codes.float().abs().amax(dim=1).tolist() == [448.0] * 5
    wanted = F.linear(codes.float() * scales, few.weight, plain.bias)
    torch.testing.assert_close(few(x), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "most"), [("int8", 0.007), ("fp8", 0.03), ("int4", 0.11)])
def test_a_weight_comes_back_nearly_as_it_was(name, most):
    weight = torch.randn(128, 256)
    few = LINEARS[name](weight, None)
    assert 0 < relative(few.weight, weight) < most


@pytest.mark.parametrize("name", LINEARS)
def test_a_weight_that_was_quantised_once_is_not_changed_by_doing_it_again(name):
    once = LINEARS[name](torch.randn(64, 128), None).weight
    torch.testing.assert_close(LINEARS[name](once, None).weight, once, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LINEARS)
def test_rows_of_zeros_stay_zeros(name):
    few = LINEARS[name](torch.zeros(32, 64), None)
    assert few(torch.randn(3, 64)).abs().max() == 0
    assert few(torch.zeros(3, 64)).abs().max() == 0


@pytest.mark.parametrize("name", LINEARS)
def test_leading_axes_are_kept(name):
    few = LINEARS[name](torch.randn(32, 64), None)
    x = torch.randn(2, 3, 64)
    torch.testing.assert_close(few(x)[1], few(x[1]))


def test_every_group_of_int4_uses_its_whole_range():
    groups = quantize_groups(torch.randn(16, 128), 32, torch.float32)
    codes = groups.codes.view(16, 4, 32)
    assert codes.amin(dim=-1).eq(0).all()
    assert codes.amax(dim=-1).eq(15).all()


@pytest.mark.parametrize("outputs", [192, 96, 10])
def test_four_bit_codes_are_unpacked_as_they_were_packed(outputs):
    codes = torch.randint(0, 16, (outputs, 64), dtype=torch.uint8)
    few = Int4Linear(torch.empty(outputs, 64), None, group=32)
    few.store_groups(Groups(codes, torch.ones(outputs, 2), torch.full((outputs, 2), 8.0)))
    assert torch.equal(few.weight, codes.float())
    assert few.codes.nbytes == codes.numel() // 2


def test_torch_reads_four_bit_weights_in_an_order_that_is_known_here():
    known = torch.backends.cpu.get_cpu_capability()
    if known not in ("AVX2", "AVX512"):
        pytest.skip(f"{known} is not measured")
    assert int4._kernel_block() == {"AVX2": 32, "AVX512": 64}[known]


@pytest.mark.parametrize("name", LINEARS)
def test_maps_without_memory_wait_for_their_weight(name):
    weight = torch.randn(64, 128)
    waiting = LINEARS[name](weight.to("meta"), None)
    assert all(buffer.is_meta for buffer in waiting.buffers())
    waiting.to_empty(device="cpu").store(weight)
    assert torch.equal(waiting.weight, LINEARS[name](weight, None).weight)


@pytest.mark.parametrize("name", LINEARS)
def test_a_decoder_in_few_bits_weighs_what_its_bits_do(name):
    model = random_model(CONFIG, dtype=torch.bfloat16)
    numbers = sum(p.numel() for p in model.decoder.layers.parameters() if p.dim() == 2)
    before = stored_bytes(model)
    quantize_for_answers(model, name)
    saved = numbers * (16 - BITS[name]) / 8
    # What comes on top are scales: two numbers for 64 weights, or one or two for a row.
    assert before - stored_bytes(model) == pytest.approx(saved, rel=0.05)
    assert quantization_of(model) == name


def test_vision_projector_embedding_and_head_stay_as_they_were():
    model = random_model(CONFIG)
    before = {name: p for name, p in model.named_parameters() if "decoder.layers" not in name}
    quantize_for_answers(model, "int8")
    after = dict(model.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
    assert quantization_of(model.vision) is quantization_of(model.projector) is None
    assert isinstance(model.decoder.head, nn.Linear)


@pytest.mark.parametrize(("kind", "shape"), [(Fp8Linear, (40, 64)), (Int4Linear, (64, 7))])
def test_a_matrix_that_does_not_divide_is_refused_with_its_shape(kind, shape):
    inputs, outputs = shape
    with pytest.raises(ValueError, match=f"from {inputs} to {outputs} numbers.*int8"):
        kind(torch.empty(outputs, inputs), None)


def test_unknown_names_and_fp8_without_a_fitting_gpu_are_refused():
    with pytest.raises(ValueError, match="unknown quantization 'int5'; known: fp8, int8, int4"):
        require_quantization("int5", CPU, torch.bfloat16)
    with pytest.raises(ValueError, match=r"cpu does not multiply fp8.*int8 works"):
        require_quantization("fp8", CPU, torch.bfloat16)
    assert require_quantization("int4", CPU, torch.float32) == "int4"


def test_fp8_goes_with_bfloat16_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    hopper = torch.device("cuda")
    assert require_quantization("fp8", hopper, torch.bfloat16) == "fp8"
    with pytest.raises(ValueError, match="fp8 goes with bfloat16, not with float16"):
        require_quantization("fp8", hopper, torch.float16)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", LINEARS)
def test_maps_of_the_same_states_are_joined_without_a_change(name, bias):
    linears = [nn.Linear(128, outputs, bias=bias).requires_grad_(False) for outputs in (64, 32, 32)]
    few, x = [LINEARS[name](one.weight, one.bias) for one in linears], torch.randn(3, 128)
    whole = few[0].joined(few[1:])
    assert torch.equal(whole.weight, torch.cat([one.weight for one in few]))
    torch.testing.assert_close(whole(x), torch.cat([one(x) for one in few], dim=-1))
    assert whole.codes.nbytes == sum(one.codes.nbytes for one in few)


def test_maps_with_and_without_biases_are_not_joined():
    weight = torch.randn(32, 64)
    with pytest.raises(AssertionError, match="with and without biases"):
        Int8Linear(weight, None).joined([Int8Linear(weight, torch.zeros(32))])


def test_four_bit_codes_in_rows_are_the_same_weight(monkeypatch):
    weight = torch.randn(48, 96)
    blocks = Int4Linear(weight, None)
    monkeypatch.setattr(Int4Linear, "_has_rows", property(lambda _: True))
    rows = Int4Linear(weight, None)
    assert not torch.equal(rows.codes, blocks.codes)
    monkeypatch.undo()
    wanted = blocks.weight
    monkeypatch.setattr(Int4Linear, "_has_rows", property(lambda _: True))
    assert torch.equal(rows.weight, wanted)
    assert torch.equal(rows.joined([rows]).weight, torch.cat([wanted, wanted]))


def test_four_bit_codes_take_the_order_of_the_device_that_they_move_to(monkeypatch):
    few = Int4Linear(torch.randn(48, 96), None)
    wanted, moved = few.weight, []

    def arrive(tensor: torch.Tensor) -> torch.Tensor:
        moved.append(tensor)
        return tensor

    order = property(lambda _: len(moved) >= 2)
    monkeypatch.setattr(Int4Linear, "_has_rows", order)
    before = few.codes.clone()
    few._apply(arrive)
    assert not torch.equal(few.codes, before)
    assert torch.equal(few.weight, wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", ROWS)
def test_the_products_of_a_gpu_equal_those_of_the_cpu(rows):
    plain, x = random_linear(dtype=torch.bfloat16), torch.randn(rows, 256, dtype=torch.bfloat16)
    for name, kind in LINEARS.items():
        if name == "fp8" and torch.cuda.get_device_capability() < low_bit.FP8_CAPABILITY:
            continue
        few = kind(plain.weight, plain.bias)
        wanted = few(x)
        assert relative(few.cuda()(x.cuda()).cpu(), wanted) < 0.01


def test_eight_bit_sums_do_not_depend_on_how_many_rows_come_together():
    few, x = Int8Linear(torch.randn(64, 128), None), torch.randn(20, 128)
    alone = torch.cat([few(row[None]) for row in x])
    torch.testing.assert_close(few(x), alone, rtol=1e-5, atol=1e-5)
