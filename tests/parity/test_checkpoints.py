"""Recorded results of peers, computed again from the checkpoints that they wrote."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from internvl2.checkpoint.store import load_model
from internvl2.model.attention import PackedAttention
from internvl2.model.rotary import Positions

pytestmark = pytest.mark.parity


def test_unmerged_lora_computes_what_the_official_code_computes(data):
    folder = data("official", "G_lora_internlm2")
    run = json.loads((folder / "expected.json").read_text())["runs"][0]
    recorded = np.load(folder / "expected.npz")
    model = load_model(folder / "checkpoint")
    tokens = torch.tensor([token for token, count in run["input_ids_rle"] for _ in range(count)])
    tiles = torch.from_numpy(recorded["tiles_u8_1"])
    lengths = [len(tokens)]
    with torch.no_grad():
        visual = model.encode_tiles(tiles)
        hidden = model(tokens, Positions.packed(lengths), tiles, PackedAttention.of(lengths))
        logits = model.logits(hidden)[recorded["logits_pos_tiles1"]]
    assert np.abs(visual.numpy() - recorded["vit_embeds_1"]).max() <= 2e-4
    assert np.abs(logits.numpy() - recorded["logits_tiles1"]).max() <= 2e-4


@pytest.mark.parametrize(
    ("checkpoint", "tolerance"), [("ckpt_internlm2", 2e-4), ("ckpt_internlm2_bf16_pdparams", 0.1)]
)
def test_paddlemix_checkpoint_computes_what_paddlemix_computes(
    data, monkeypatch, checkpoint, tolerance
):
    recorded = np.load(data("paddlemix", "io_internlm2.npz"))
    pixels = torch.from_numpy(np.load(data("paddlemix", "pixels_internlm2.npz"))["pixel_values"])
    monkeypatch.setattr("internvl2.model.internvl.normalize", lambda tiles, dtype: pixels.to(dtype))
    model = load_model(data("paddlemix", checkpoint), dtype=torch.float32)
    model.config = replace(model.config, image_token_id=96)
    tokens = torch.from_numpy(recorded["input_ids"][0])
    tiles = torch.zeros(2, 448, 448, 3, dtype=torch.uint8)
    lengths = [len(tokens)]
    with torch.no_grad():
        visual = model.encode_tiles(tiles)
        hidden = model(tokens, Positions.packed(lengths), tiles, PackedAttention.of(lengths))
        logits = model.logits(hidden[-16:])
    assert np.abs(visual.numpy() - recorded["vit_embeds"]).max() <= tolerance
    assert np.abs(logits.numpy() - recorded["logits_tail"][0]).max() <= tolerance
