"""Makes what nano's training begins with: its config.json and its vocabulary.

    python examples/make_nano.py src/internvl2/assets/nano

Each character is a piece of its own; docs/nano.md says why, and why the sizes are what they are.
"""

import sys
from pathlib import Path

from internvl2.checkpoint.config_files import TokenIds, write_config
from internvl2.config import DecoderConfig, InternVLConfig, RotaryConfig, VisionConfig
from internvl2.synthetic.words import characters
from internvl2.train.vocabulary import (
    SPECIAL,
    Vocabulary,
    character_vocabulary,
    write_vocabulary,
)

SYSTEM = "You are nano."
BEYOND_ASCII = "，。！？：；、（）“”‘’¥￥€£°×÷−–—…•·éèüöäß"


def config(vocabulary: Vocabulary) -> InternVLConfig:
    """InternVL2's architecture in 14 million weights."""
    return InternVLConfig(
        vision=VisionConfig(hidden_size=256, num_layers=8, num_heads=4, intermediate_size=1024),
        decoder=DecoderConfig(
            kind="qwen2",
            vocab_size=len(vocabulary.pieces) + len(SPECIAL),
            hidden_size=256,
            num_layers=8,
            num_heads=4,
            num_kv_heads=2,
            head_dim=64,
            intermediate_size=704,
            max_positions=8192,
            rotary=RotaryConfig(theta=10000.0),
            qkv_bias=True,
        ),
        template="internlm2-chat",
        max_tiles=6,
        system_message=SYSTEM,
        image_token_id=vocabulary.special["<IMG_CONTEXT>"],
    )


def main(folder: Path) -> None:
    """Writes the files."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = character_vocabulary(characters() + BEYOND_ASCII)
    write_vocabulary(vocabulary, folder)
    ids = vocabulary.special
    tokens = TokenIds(ids[SPECIAL[0]], ids["<|im_end|>"], ids[SPECIAL[0]])
    write_config(config(vocabulary), folder, "opengvlab", tokens)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
