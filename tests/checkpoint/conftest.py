from dataclasses import replace

import pytest

from internvl2.config import DecoderConfig, InternVLConfig, RotaryConfig, VisionConfig

VISION = VisionConfig(32, 2, 2, 48, image_size=28)
VISION_6B = replace(VISION, norm="rms_norm", qkv_bias=False, qk_norm=True)


def tiny_config(kind: str, *, large_vision: bool = False) -> InternVLConfig:
    """A member of every kind, with no two dimensions alike that could be mixed up."""
    rotary = RotaryConfig(1e4)
    if kind in ("internlm2", "llama"):
        rotary = RotaryConfig(1e6, "dynamic", 64, 2.0)
    if kind == "phi3":
        rotary = RotaryConfig(1e4, "long", 16, 1.0, (1.0, 1.1, 1.2, 1.3), (1.5, 2.5, 3.5, 4.5), 1.2)
    decoder = DecoderConfig(
        kind=kind,
        vocab_size=70,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=4 if kind == "phi3" else 2,
        head_dim=12 if kind == "qwen3" else 8,
        intermediate_size=40,
        max_positions=64,
        rotary=rotary,
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
    )
    return InternVLConfig(
        vision=VISION_6B if large_vision else VISION,
        decoder=decoder,
        template="internvl2_5",
        tile_size=28,
        image_token_id=66,
        dtype="float32",
    )


@pytest.fixture(scope="session")
def tiny():
    """`tiny("qwen2")` is the configuration of a tiny member with that kind of decoder."""
    return tiny_config
