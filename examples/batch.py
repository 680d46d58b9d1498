"""Describe every picture of a folder in one batch: `python examples/batch.py [MODEL [FOLDER]]`."""

import sys
from pathlib import Path

from internvl2 import Engine, Message, Picture, SamplingParams

RECORDED = Path(__file__).parents[1] / "tests" / "data" / "official"


def main(
    model: str = str(RECORDED / "A_internlm2" / "checkpoint"),
    folder: str = str(RECORDED / "preprocessing" / "pictures"),
) -> None:
    """Answers come in the order in which they are complete; a broken picture spoils no other."""
    pictures = sorted(path for path in Path(folder).iterdir() if path.is_file())
    requests = ([Message.user(Picture(path), "Describe the picture.")] for path in pictures)
    with Engine.load(model) as engine:
        for answered in engine.answers(requests, SamplingParams(max_tokens=16)):
            name = pictures[answered.index].name
            print(name, "->", answered.error if answered.answer is None else answered.answer.text)


if __name__ == "__main__":
    main(*sys.argv[1:])
