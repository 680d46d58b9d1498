"""The arithmetic that MFU counts is what PyTorch counts while a pack is learned."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from internvl2 import family
from internvl2.checkpoint.store import load_model
from internvl2.model.attention import PackedAttention
from internvl2.model.lora import LoraSettings, add_lora
from internvl2.model.rotary import Positions
from internvl2.train.monitoring.flops import pack_flops
from internvl2.train.optimizers.groups import freeze_parts
from internvl2.train.recipe import Freeze, Lora, Recipe

LENGTH, TILES = 128, 3


@pytest.mark.parametrize(
    ("freeze", "lora"),
    [
        (Freeze(vision=False), Lora()),
        (Freeze(vision=True), Lora()),
        (Freeze(vision=True, vision_last=1), Lora()),
        (Freeze(vision=True, decoder=True), Lora()),
        (Freeze(vision=True, decoder=True, head=False), Lora()),
        (Freeze(vision=True, projector=True, head=True), Lora()),
        (Freeze(projector=True), Lora(decoder_rank=4)),
        (Freeze(), Lora(decoder_rank=4)),
        (Freeze(projector=True, decoder=True), Lora(vision_rank=4)),
        (Freeze(head=False), Lora(decoder_rank=4, vision_rank=8)),
    ],
)
def test_a_pack_costs_what_pytorch_counts(data, freeze, lora):
    model = load_model(data("official", "B_qwen2", "checkpoint"), dtype=torch.float32)
    adapters = [
        LoraSettings(rank, 8.0) if rank else None for rank in (lora.decoder_rank, lora.vision_rank)
    ]
    add_lora(model, *adapters)
    freeze = Recipe("m", freeze=freeze, lora=lora).kept
    freeze_parts(model, freeze)
    config = model.config
    size = config.tile_size
    tokens = torch.ones(LENGTH, dtype=torch.long)
    tokens[: TILES * config.tokens_per_tile] = config.image_token_id
    tiles = torch.zeros(TILES, size, size, 3, dtype=torch.uint8)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        hidden = model(tokens, Positions.packed([LENGTH]), tiles, PackedAttention.of([LENGTH]))
        model.logits(hidden).sum().backward()
    ours = pack_flops(config, freeze, [LENGTH], TILES, LENGTH, lora).total
    decoder = config.decoder
    masked = 6 * LENGTH**2 * decoder.num_heads * decoder.head_dim * decoder.num_layers
    assert ours + masked == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize(
    ("member", "trained", "frozen"),
    [
        ("internvl2-1b", 87, 47),
        ("internvl2-2b", 150, 109),
        ("internvl2-4b", 255, 214),
        ("internvl2-8b", 437, 397),
    ],
)
def test_a_step_of_a_released_member_costs_what_was_counted_by_hand(member, trained, frozen):
    config = family.find(member).config
    for vision, teraflops in ((False, trained), (True, frozen)):
        freeze = Freeze(vision=vision)
        flops = pack_flops(config, freeze, [2048] * 4, tiles=28, labelled=8192)
        assert flops.total / 1e12 == pytest.approx(teraflops, abs=0.7)


def test_a_frozen_vision_tower_costs_its_forward_pass_and_little_of_the_projector(data):
    config = load_model(data("official", "B_qwen2", "checkpoint")).config
    parts = {"decoder": True, "head": True}
    asleep = pack_flops(config, Freeze(projector=True, **parts), [64], TILES, 64).vision
    learning = pack_flops(config, Freeze(**parts), [64], TILES, 64).vision
    wide, text = config.vision.hidden_size * config.shuffle**2, config.decoder.hidden_size
    weights, states = wide * text + 2 * text * text, TILES * config.tokens_per_tile
    assert learning - asleep == 2 * states * weights


def test_text_alone_sends_no_gradient_through_a_frozen_decoder(data):
    config = load_model(data("official", "B_qwen2", "checkpoint")).config
    freeze = Freeze(decoder=True)
    flops = pack_flops(config, freeze, [64], tiles=0, labelled=64)
    frozen = pack_flops(config, Freeze(projector=True, decoder=True), [64], 0, labelled=64)
    assert flops == frozen
    assert flops.decoder < pack_flops(config, freeze, [64], tiles=1, labelled=64).decoder
