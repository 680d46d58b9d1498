"""Joining products, and what is left where a device has no fused kernels."""

import sys

import pytest
import torch
from torch import nn

from internvl2.config import DecoderConfig, RotaryConfig
from internvl2.model import attention
from internvl2.model.aligned import ALIGNED, aligned_product
from internvl2.model.attention import PackedAttention, PagedAttention
from internvl2.model.decoder import Decoder
from internvl2.model.fused import fuse
from internvl2.model.int4 import Int4Linear
from internvl2.model.joined import JoinedLinears, has_row_matrix, join_linears
from internvl2.model.kernel_choice import KernelChoice
from internvl2.model.kernels import FusedKernels
from internvl2.model.low_bit import LINEARS, Int8Linear, stored_bytes
from internvl2.model.quantize import linear_maps
from internvl2.model.rotary import Positions
from internvl2.model.spans import GATHERED, PackedSpans, PrefillSpan

CONFIG = DecoderConfig("qwen2", 99, 64, 2, 4, 2, 16, 96, 512, RotaryConfig(1e4), qkv_bias=True)


def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder(CONFIG).eval().requires_grad_(False)


def hidden(decoder: Decoder) -> torch.Tensor:
    x = decoder.embedding(torch.arange(9))
    return decoder(x, Positions.packed([4, 5]), PackedAttention.of([4, 5]))


@torch.no_grad()
def test_joined_products_give_what_single_ones_gave():
    model = decoder()
    wanted, count = hidden(model), sum(p.numel() for p in model.parameters())
    join_linears(model)
    torch.testing.assert_close(hidden(model), wanted)
    assert sum(p.numel() for p in model.parameters()) == count
    layer = model.layers[0]
    kinds = [type(module) for module in layer.modules()]
    assert (kinds.count(JoinedLinears), kinds.count(nn.Linear)) == (2, 4)


@torch.no_grad()
@pytest.mark.parametrize("kind", LINEARS.values())
def test_maps_in_few_bits_are_joined_where_that_is_wanted(kind):
    model = decoder()
    for holder, name in linear_maps(model.layers):
        linear = getattr(holder, name)
        setattr(holder, name, kind(linear.weight, linear.bias))
    wanted, count = hidden(model), stored_bytes(model)
    join_linears(model)
    assert model.layers[0].mlp.joined is None
    join_linears(model, in_few_bits=True)
    layer = model.layers[1]
    counted = sum(map(has_row_matrix, layer.modules()))
    assert counted == (0 if kind is Int4Linear else 4)
    assert type(layer.attention.joined.linear) is type(layer.mlp.joined.linear) is kind
    torch.testing.assert_close(hidden(model), wanted)
    assert stored_bytes(model) == count


@torch.no_grad()
def test_a_part_with_weights_in_few_bits_stays_as_it_is():
    model = decoder()
    gate = model.layers[0].mlp.gate
    model.layers[0].mlp.gate = Int8Linear(gate.weight, None)
    wanted = hidden(model)
    join_linears(model)
    assert model.layers[0].mlp.joined is None
    assert model.layers[0].attention.joined is not None
    torch.testing.assert_close(hidden(model), wanted)


@torch.no_grad()
def test_without_triton_plain_torch_computes_and_one_warning_says_so(monkeypatch, caplog):
    for module in [name for name in sys.modules if "triton_kernels" in name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "triton", None)
    model = decoder()
    wanted = hidden(model)
    fuse(model, KernelChoice())
    assert model.kernels == FusedKernels()
    torch.testing.assert_close(hidden(model), wanted)
    (record,) = caplog.records
    assert "triton" in record.message


@torch.no_grad()
def test_several_rows_of_scores_may_be_aligned_and_are_the_same():
    model = decoder()
    states = hidden(model)
    wanted = model.scores(states), model.scores(states[:1])
    model.use(FusedKernels(scores=aligned_product))
    found = model.scores(states), model.scores(states[:1])
    assert found[0].stride(0) % ALIGNED == 0 != CONFIG.vocab_size % ALIGNED
    assert found[1].stride(0) == CONFIG.vocab_size
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize("rows", [2, 5, 64])
def test_aligned_rows_of_scores_are_the_same_on_a_gpu(rows: int):
    x = torch.randn(rows, 256, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(92553, 256, device="cuda", dtype=torch.bfloat16)
    wanted = x.float() @ weight.float().T
    torch.testing.assert_close(aligned_product(x, weight).float(), wanted, rtol=1e-2, atol=0.1)


def test_fusing_leaves_the_random_numbers_of_others_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    model = decoder()
    state = torch.random.get_rng_state()
    fuse(model, KernelChoice())
    assert torch.equal(torch.random.get_rng_state(), state)


def spans(*lengths: tuple[int, int]) -> tuple[PrefillSpan, ...]:
    """Spans with so much context and so many new tokens, in blocks 0, 2, 4, ... of 16 tokens."""
    made, start, block = [], 0, 0
    for context, new in lengths:
        count = -(-(context + new) // 16)
        blocks = torch.arange(block, block + 2 * count, 2)
        made.append(PrefillSpan(start, start + new, context, blocks))
        start, block = start + new, block + 2 * count
    return tuple(made)


def test_prompts_without_context_are_one_pack_that_copies_no_keys():
    (pack,) = PackedSpans.of(spans((0, 20), (0, 3)), 16, torch.device("cpu"))
    assert pack.key_slots is None
    assert pack.bounds.tolist() == [[0, 20, 23], [0, 20, 23]]


def test_keys_of_a_pack_lie_where_the_blocks_say():
    (pack,) = PackedSpans.of(spans((18, 2), (0, 3), (16, 1)), 16, torch.device("cpu"))
    assert pack.bounds.tolist() == [[0, 2, 5, 6], [0, 20, 23, 40]]
    assert (pack.longest, pack.most_keys) == (3, 20)
    assert pack.key_slots is not None
    first, second, third = pack.key_slots.split([20, 3, 17])
    assert first.tolist() == [*range(16), *range(32, 36)]
    assert second.tolist() == [64, 65, 66]
    assert third.tolist() == [*range(96, 112), 128]


def test_packs_copy_no_more_keys_at_a_time_than_there_is_room_for():
    many = spans(*[(GATHERED // 2 - 1, 1)] * 3, (GATHERED, 1))
    packs = PackedSpans.of(many, 16, torch.device("cpu"))
    assert [len(pack.spans) for pack in packs] == [2, 1, 1]


@pytest.mark.parametrize("lengths", [((0, 20), (0, 3)), ((18, 2), (0, 7), (16, 1))])
@torch.no_grad()
def test_packed_prompts_see_what_they_see_one_by_one(monkeypatch, lengths):
    prompts = spans(*lengths)
    torch.manual_seed(0)
    keys, values = torch.randn(2, 1, 12, 16, 2, 16)
    slots = torch.cat(
        [
            torch.tensor([int(s.blocks[t // 16]) * 16 + t % 16 for t in range(s.context, s.total)])
            for s in prompts
        ]
    )
    q, k, v = torch.randn(len(slots), 4, 16), *torch.randn(2, len(slots), 2, 16)
    attend = PagedAttention(keys, values, slots, prompts)
    wanted = attend(0, q, k, v)

    def varlen(q, k, v, q_bounds, k_bounds, longest, most):
        rows = zip(q_bounds.diff().tolist(), k_bounds.diff().tolist(), strict=True)
        counts = [list(column) for column in zip(*rows, strict=True)]
        parts = zip(q.split(counts[0]), k.split(counts[1]), v.split(counts[1]), strict=True)
        return torch.cat([one_by_one(*part) for part in parts])

    one_by_one = attention._causal_attention
    with monkeypatch.context() as patch:
        patch.setattr(attention, "has_varlen_kernel", lambda q: len(q) == len(slots))
        patch.setattr(attention, "varlen_attention", varlen)
        found = attend.over_cache(0, q, k, v)
    torch.testing.assert_close(found, wanted)
