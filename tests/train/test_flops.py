"""The arithmetic that MFU counts is what PyTorch counts while a pack is learned."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from internvl2.checkpoint.store import load_model
from internvl2.model.attention import PackedAttention
from internvl2.model.rotary import Positions
from internvl2.train.flops import pack_flops
from internvl2.train.optimizer import freeze_parts
from internvl2.train.recipe import Freeze

LENGTH, TILES = 128, 3


@pytest.mark.parametrize(
    "freeze",
    [
        Freeze(vision=False),
        Freeze(vision=True),
        Freeze(vision=True, vision_last=1),
        Freeze(vision=True, decoder=True),
        Freeze(vision=True, decoder=True, head=False),
        Freeze(vision=True, projector=True, head=True),
    ],
)
def test_a_pack_costs_what_pytorch_counts(data, freeze):
    model = load_model(data("official", "B_qwen2", "checkpoint"), dtype=torch.float32)
    freeze_parts(model, freeze)
    config = model.config
    size = config.tile_size
    tokens = torch.ones(LENGTH, dtype=torch.long)
    tokens[: TILES * config.tokens_per_tile] = config.image_token_id
    tiles = torch.zeros(TILES, size, size, 3, dtype=torch.uint8)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        hidden = model(tokens, Positions.packed([LENGTH]), tiles, PackedAttention.of([LENGTH]))
        model.logits(hidden).sum().backward()
    ours = pack_flops(config, freeze, [LENGTH], TILES, labelled=LENGTH).total
    decoder = config.decoder
    masked = 6 * LENGTH**2 * decoder.num_heads * decoder.head_dim * decoder.num_layers
    assert ours + masked == pytest.approx(counter.get_total_flops(), rel=0.02)
