"""Makes what nano's training begins with: its config.json and its vocabulary.

    python examples/make_nano.py src/internvl2/assets/nano

The vocabulary is trained on the questions and answers of the drawn samples; docs/nano.md says why
the sizes are what they are.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from internvl2.checkpoint.config_files import TokenIds, write_config
from internvl2.config import DecoderConfig, InternVLConfig, RotaryConfig, VisionConfig
from internvl2.synthetic.catalogue import mixture
from internvl2.synthetic.words import characters, english
from internvl2.train.vocabulary import SPECIAL, train_vocabulary, write_vocabulary

VOCABULARY = 3072
SAMPLES = 20_000
SYSTEM = "You are nano."
BEYOND_ASCII = "，。！？：；、（）“”‘’¥￥€£°×÷−–—…•·éèüöäß"


def texts() -> Iterator[str]:
    """What nano reads and writes: prompts' fixed texts, questions, answers, common words."""
    yield from [f"{SYSTEM} system\nuser\nassistant\n"] * SAMPLES
    yield from [" ".join(f"Frame{i}: Image-{i}: " for i in range(1, 9))] * (SAMPLES // 20)
    yield from [" ".join(english("train"))] * 2
    for number in range(SAMPLES):
        for turn in mixture(number, "train", difficulty=number / SAMPLES).turns:
            yield turn.question
            yield turn.answer


def config(image_token: int) -> InternVLConfig:
    """InternVL2's architecture in 14.5 million weights."""
    return InternVLConfig(
        vision=VisionConfig(hidden_size=256, num_layers=8, num_heads=4, intermediate_size=1024),
        decoder=DecoderConfig(
            kind="qwen2",
            vocab_size=VOCABULARY,
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
        image_token_id=image_token,
    )


def main(folder: Path) -> None:
    """Writes the files."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = train_vocabulary(texts(), characters() + BEYOND_ASCII, VOCABULARY)
    write_vocabulary(vocabulary, folder)
    ids = vocabulary.special
    tokens = TokenIds(ids[SPECIAL[0]], ids["<|im_end|>"], ids[SPECIAL[0]])
    write_config(config(ids["<IMG_CONTEXT>"]), folder, "opengvlab", tokens)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
