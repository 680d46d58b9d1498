"""Checkpoints in PaddleMIX's layout compute what PaddleMIX's own code recorded."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from internvl2.checkpoint.store import load_model
from internvl2.model.attention import PackedAttention
from internvl2.model.internvl import InternVL
from internvl2.model.rotary import Positions
from internvl2.processing.image import choose_grid, cut, open_picture

pytestmark = pytest.mark.parity

IMAGE_TOKEN = 96
"""These checkpoints come without a tokenizer, which otherwise knows it."""


@pytest.fixture(scope="module")
def outputs(data):
    with np.load(data("paddlemix", "io_internlm2.npz")) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture(scope="module")
def pixels(data):
    with np.load(data("paddlemix", "pixels_internlm2.npz")) as file:
        return torch.from_numpy(file["pixel_values"])


def model_of(directory) -> InternVL:
    model = load_model(directory, dtype=torch.float32)
    model.config = replace(model.config, image_token_id=IMAGE_TOKEN)
    return model


@torch.no_grad()
def logits_of(model: InternVL, ids: torch.Tensor, visual: torch.Tensor) -> torch.Tensor:
    length = [len(ids)]
    x = model.embed(ids, visual.flatten(0, 1))
    hidden = model.decoder(x, Positions.packed(length), PackedAttention.of(length))
    return model.logits(hidden)


@torch.no_grad()
def test_visual_tokens_logits_and_loss_are_equal(data, outputs, pixels):
    model = model_of(data("paddlemix", "ckpt_internlm2"))
    visual = model.encode_pixels(pixels)
    torch.testing.assert_close(visual, outputs["vit_embeds"], rtol=0, atol=2e-4)
    ids, labels = outputs["input_ids"][0], outputs["labels"][0]
    logits = logits_of(model, ids, visual)
    torch.testing.assert_close(logits[-16:], outputs["logits_tail"][0], rtol=0, atol=2e-4)
    total = F.cross_entropy(logits[:-1], labels[1:], reduction="sum")
    # Paddle divides by every position, those that are not learned included.
    assert float(total) / (len(ids) - 1) == pytest.approx(float(outputs["loss"]), rel=1e-5)


def test_greedy_tokens_are_equal(data, outputs, pixels):
    model = model_of(data("paddlemix", "ckpt_internlm2"))
    with torch.no_grad():
        visual = model.encode_pixels(pixels)
    ids = outputs["input_ids"][0]
    for expected in outputs["greedy"][0]:
        assert logits_of(model, ids, visual)[-1].argmax() == expected
        ids = torch.cat([ids, expected[None]])


@torch.no_grad()
def test_bf16_weights_stored_as_uint16_are_the_same_model_rounded(data, pixels):
    full = model_of(data("paddlemix", "ckpt_internlm2"))
    rounded = model_of(data("paddlemix", "ckpt_internlm2_bf16_pdparams"))
    stored = dict(rounded.named_parameters())
    kept = ("class_embedding", "position_embedding", "scale1", "scale2")
    for name, weight in full.named_parameters():
        exact = name.endswith(kept)
        assert torch.equal(stored[name], weight if exact else weight.bfloat16().float()), name
    assert full.encode_pixels(pixels).shape == rounded.encode_pixels(pixels).shape


@pytest.mark.parametrize("max_tiles", [6, pytest.param(12, marks=pytest.mark.slow)])
def test_demo_pictures_have_the_tiles_that_paddlemix_makes(data, max_tiles):
    recorded = json.loads(data("paddlemix", "preprocess_stats.json").read_text())
    names = [key for key in recorded if key.endswith(f"@{max_tiles}")]
    assert len(names) == 4
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for key in names:
        picture = open_picture(data("media", key.split("@")[0]))
        tiles = cut(picture, choose_grid(*picture.size, 448, 1, max_tiles), 448, True)
        means = ((tiles / 255 - mean) / std).mean((1, 2, 3))
        np.testing.assert_allclose(means, recorded[key]["tile_means"], atol=1e-5)
