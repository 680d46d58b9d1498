"""Tiles become visual tokens in the right order and in the right places."""

import dataclasses

import pytest
import torch
from einops import rearrange

from internvl2.config import DecoderConfig, InternVLConfig, RotaryConfig, VisionConfig
from internvl2.model.attention import PackedAttention
from internvl2.model.internvl import PIXEL_SHUFFLE, random_model
from internvl2.model.rotary import Positions
from internvl2.model.vision import VisionTower, normalize

VISION = VisionConfig(
    hidden_size=32, num_layers=3, num_heads=4, intermediate_size=48, image_size=56
)
CONFIG = InternVLConfig(
    vision=VISION,
    decoder=DecoderConfig(
        kind="llama",
        vocab_size=50,
        hidden_size=24,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=12,
        intermediate_size=32,
        max_positions=128,
        rotary=RotaryConfig(theta=1e4),
    ),
    template="Hermes-2",
    tile_size=56,
    image_token_id=7,
)


def tiles(count: int, size: int = 56) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)


def official_pixel_shuffle(x: torch.Tensor, version: str) -> torch.Tensor:
    """The published recipe of views and permutations, for a factor of one half."""
    n, w, h, c = x.shape
    x = x.reshape(n, w, h // 2, c * 2).permute(0, 2, 1, 3)
    x = x.reshape(n, h // 2, w // 2, c * 4)
    return x.permute(0, 2, 1, 3) if version == "v2" else x


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_pixel_shuffle_orders_tokens_and_channels_as_published(version):
    x = torch.randn(2, 6, 6, 5)
    expected = rearrange(official_pixel_shuffle(x, version), "n a b c -> n (a b) c")
    assert torch.equal(rearrange(x, PIXEL_SHUFFLE[version], a=2, b=2), expected)


@torch.no_grad()
def test_each_tile_is_encoded_by_itself():
    model = random_model(CONFIG)
    together = model.encode_tiles(tiles(3))
    assert together.shape == (3, CONFIG.tokens_per_tile, 24)
    torch.testing.assert_close(together[1:2], model.encode_tiles(tiles(3)[1:2]))


@torch.no_grad()
def test_visual_tokens_take_the_places_of_image_tokens_in_order():
    model = random_model(CONFIG)
    tokens = torch.tensor([1, 7, 7, 3, 7])
    visual = torch.randn(3, 24)
    x = model.embed(tokens, visual)
    assert torch.equal(x[tokens == 7], visual)
    assert torch.equal(x[tokens != 7], model.decoder.embedding(tokens[tokens != 7]))


def test_a_wrong_number_of_visual_tokens_is_an_error():
    with pytest.raises(ValueError, match=r"2 <IMG_CONTEXT> tokens but 3 visual tokens"):
        random_model(CONFIG).embed(torch.tensor([7, 7, 1]), torch.randn(3, 24))


@torch.no_grad()
def test_forward_reads_pictures_and_text():
    model = random_model(CONFIG)
    tokens = torch.tensor([1, *[7] * CONFIG.tokens_per_tile, 2])
    positions, attend = Positions.packed([len(tokens)]), PackedAttention.of([len(tokens)])
    first = model(tokens, positions, tiles(1), attend)
    other = model(tokens, positions, tiles(2)[1:], attend)
    assert not torch.allclose(first[-1], other[-1])
    assert model.logits(first[-1:]).dtype == torch.float32


@torch.no_grad()
def test_select_layer_counts_from_the_embeddings_and_from_the_end():
    model = random_model(CONFIG)
    by_end = random_model(dataclasses.replace(CONFIG, select_layer=-2))
    by_start = random_model(dataclasses.replace(CONFIG, select_layer=2))
    assert torch.equal(by_end.encode_tiles(tiles(1)), by_start.encode_tiles(tiles(1)))
    assert not torch.equal(by_end.encode_tiles(tiles(1)), model.encode_tiles(tiles(1)))


@torch.no_grad()
def test_a_tower_reads_tiles_of_another_size():
    model = random_model(dataclasses.replace(CONFIG, tile_size=84))
    assert model.encode_tiles(tiles(1, 84)).shape == (1, 9, 24)


@torch.no_grad()
def test_drop_path_acts_while_training_only():
    tower = VisionTower(dataclasses.replace(VISION, drop_path_rate=0.9))
    pixels = normalize(tiles(4), torch.float32)
    tower.eval()
    assert torch.equal(tower(pixels), tower(pixels))
    tower.train()
    torch.manual_seed(0)
    assert not torch.equal(tower(pixels), tower(pixels))


def test_normalized_pixels_follow_imagenet():
    white = torch.full((1, 14, 14, 3), 255, dtype=torch.uint8)
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(normalize(white, torch.float32)[0, :, 0, 0], expected)
