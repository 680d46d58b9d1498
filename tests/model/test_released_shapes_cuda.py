"""Members of released size, with random weights, agree between a GPU in bf16 and a CPU in fp32."""

import copy

import pytest
import torch

from internvl2.family import MEMBERS
from internvl2.model.attention import PackedAttention
from internvl2.model.internvl import InternVL, random_model
from internvl2.model.rotary import Positions

pytestmark = pytest.mark.gpu

BOUND = 3e-2
"""Relative error of the logits; bf16 keeps 8 bits, and errors add up over 24 to 32 layers."""


@torch.no_grad()
def logits_of(model: InternVL, ids: torch.Tensor, tiles: torch.Tensor) -> torch.Tensor:
    lengths, device = [len(ids)], model.decoder.embedding.weight.device
    attend = PackedAttention.of(lengths, device)
    hidden = model(ids.to(device), Positions.packed(lengths, device), tiles.to(device), attend)
    return model.logits(hidden[-32:]).double().cpu()


@pytest.mark.parametrize("name", ["internvl2-1b", "internvl2-2b", "internvl2-4b", "internvl3_5-1b"])
def test_logits_in_bf16_agree_with_fp32_on_the_cpu(name):
    config = MEMBERS[name].config
    on_gpu = random_model(config, device="cuda", dtype=torch.bfloat16)
    reference = copy.deepcopy(on_gpu).cpu().float()
    generator = torch.Generator().manual_seed(0)
    tiles = torch.randint(0, 256, (1, 448, 448, 3), dtype=torch.uint8, generator=generator)
    words = torch.randint(10, 30000, (48,), generator=generator)
    picture = torch.full((config.tokens_per_tile,), config.image_token_id)
    ids = torch.cat([words[:8], picture, words[8:]])
    expected = logits_of(reference, ids, tiles)
    error = (logits_of(on_gpu, ids, tiles) - expected).norm() / expected.norm()
    assert error < BOUND
