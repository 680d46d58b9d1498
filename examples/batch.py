"""Ask about every picture of a folder in one batch: `python examples/batch.py [MODEL [FOLDER]]`."""

import sys
from pathlib import Path

from internvl2 import Engine, Message, Picture, SamplingParams

RECEIPTS = Path(__file__).parent / "receipts"


def main(model: str = "nano", folder: str = str(RECEIPTS)) -> None:
    """Answers come in the order in which they are complete; a broken picture spoils no other."""
    pictures = sorted(Path(folder).glob("*.jpg"))
    requests = ([Message.user(Picture(path), "What is the total?")] for path in pictures)
    with Engine.load(model) as engine:
        for answered in engine.answers(requests, SamplingParams(max_tokens=16)):
            name = pictures[answered.index].name
            print(name, "->", answered.error if answered.answer is None else answered.answer.text)


if __name__ == "__main__":
    main(*sys.argv[1:])
