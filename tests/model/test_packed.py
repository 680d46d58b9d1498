import pytest
import torch
import torch.nn.functional as F
from torch import nn

from internvl2 import device as devices
from internvl2.config import DecoderConfig, RotaryConfig
from internvl2.model.attention import PackedAttention, full_attention, has_products_of_heads
from internvl2.model.decoder import Decoder
from internvl2.model.packed import PackedLinear, can_pack, pack_linears
from internvl2.model.rotary import Positions

CPU = torch.device("cpu")

needs_bf16_products = pytest.mark.skipif(
    not can_pack(CPU, torch.bfloat16), reason="this CPU multiplies no bf16"
)


def test_only_bf16_on_a_cpu_is_packed():
    assert not can_pack(CPU, torch.float32)
    assert not can_pack(torch.device("cuda"), torch.bfloat16)
    assert can_pack(CPU, torch.bfloat16) <= devices.cpu_multiplies_bf16()


@needs_bf16_products
@pytest.mark.parametrize("rows", [1, 5, 300])
@pytest.mark.parametrize("bias", [True, False])
def test_packed_weights_give_the_same_numbers(rows: int, bias: bool):
    torch.manual_seed(0)
    linear = nn.Linear(96, 72, bias=bias).to(torch.bfloat16)
    x = torch.randn(2, rows, 96).to(torch.bfloat16)
    with torch.no_grad():
        wanted, found = linear(x), PackedLinear(linear)(x)
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= 2**-8 * wanted.abs().max()


@needs_bf16_products
def test_every_linear_map_is_packed_and_counts_as_many_weights():
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 4)))
    model = model.to(torch.bfloat16)
    count = sum(parameter.numel() for parameter in model.parameters())
    pack_linears(model)
    assert [type(module) for module in model.modules()].count(PackedLinear) == 2
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@needs_bf16_products
def test_attention_head_by_head_is_that_of_all_heads_together():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 600, 4 * 16).to(torch.bfloat16).unbind()
    with torch.no_grad():
        assert has_products_of_heads(q)
        found = full_attention(q, k, v, 4)
        a, b, c = (x.unflatten(-1, (4, 16)).transpose(1, 2).double() for x in (q, k, v))
        wanted = F.scaled_dot_product_attention(a, b, c).transpose(1, 2).flatten(2)
    assert (found - wanted).norm() <= 0.02 * wanted.norm()


def test_training_and_fp32_keep_the_kernel_that_has_gradients():
    x = torch.randn(1, 600, 16)
    with torch.no_grad():
        assert not has_products_of_heads(x)
    assert not has_products_of_heads(x.to(torch.bfloat16))


@needs_bf16_products
def test_a_packed_decoder_layer_joins_what_reads_the_same_states():
    torch.manual_seed(0)
    config = DecoderConfig("qwen2", 99, 64, 2, 4, 2, 16, 96, 512, RotaryConfig(1e4), qkv_bias=True)
    decoder = Decoder(config).to(torch.bfloat16)
    x = torch.randn(9, 64).to(torch.bfloat16)
    positions, attend = Positions.packed([4, 5]), PackedAttention.of([4, 5])
    with torch.no_grad():
        wanted = decoder(x, positions, attend)
        count = sum(parameter.numel() for parameter in decoder.parameters())
        pack_linears(decoder)
        found = decoder(x, positions, attend)
    assert (found - wanted).norm() <= 0.02 * wanted.norm()
    assert sum(parameter.numel() for parameter in decoder.parameters()) == count
    products = [type(module) for module in decoder.layers[0].modules()].count(PackedLinear)
    assert products == len(["q, k, v", "o", "gate, up", "down"])
