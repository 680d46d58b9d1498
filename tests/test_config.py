"""Impossible shapes are refused where they are written down."""

import dataclasses

import pytest

from internvl2.config import DecoderConfig, InternVLConfig, RotaryConfig, VisionConfig

VISION = VisionConfig(hidden_size=64, num_layers=2, num_heads=4, intermediate_size=128)
DECODER = DecoderConfig(
    kind="internlm2",
    vocab_size=100,
    hidden_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=128,
    max_positions=512,
    rotary=RotaryConfig(theta=1e6, kind="dynamic", limit=512, factor=2.0),
)
CONFIG = InternVLConfig(vision=VISION, decoder=DECODER, template="internlm2-chat")


def test_a_released_tile_becomes_256_visual_tokens():
    assert CONFIG.tokens_per_tile == 256


@pytest.mark.parametrize(
    ("config", "field", "value", "message"),
    [
        (VISION, "num_heads", 5, "hidden_size 64 is not a multiple of num_heads 5"),
        (VISION, "num_layers", 0, "num_layers is 0; it must be a whole number above 0"),
        (VISION, "image_size", 450, "image_size 450 is not a multiple of patch_size 14"),
        (DECODER, "num_kv_heads", 3, "num_heads 4 is not a multiple of num_kv_heads 3"),
        (DECODER, "head_dim", 15, "head_dim 15"),
        (CONFIG, "ps_version", "v3", "unknown ps_version 'v3'"),
        (CONFIG, "downsample_ratio", 0.4, "downsample_ratio 0.4"),
        (CONFIG, "select_layer", -4, "select_layer -4 does not exist in 2 vision layers"),
        (CONFIG, "tile_size", 450, "tile_size 450"),
        (CONFIG, "min_tiles", 13, "min_tiles 13 is above max_tiles 12"),
    ],
)
def test_an_impossible_shape_is_refused_with_its_value(config, field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **{field: value})


def test_long_rope_needs_a_factor_for_each_pair_of_dimensions():
    rotary = RotaryConfig(theta=1e4, kind="long", limit=64, short_factors=(1.0,) * 8)
    with pytest.raises(ValueError, match="long_factors has 0 values; head_dim 16 needs 8"):
        dataclasses.replace(DECODER, rotary=rotary)


def test_rotary_state_changes_only_beyond_the_limit():
    dynamic = DECODER.rotary
    assert [dynamic.state(n) for n in (1, 512, 513, 600)] == [0, 0, 513, 600]
    assert RotaryConfig(theta=1e4).state(10**6) == 0
