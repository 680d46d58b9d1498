"""Fine-tune on samples of one's own: `python examples/finetune.py [MODEL [NEW_FOLDER]]`."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from internvl2 import Engine, Message, Picture, SamplingParams
from internvl2.train.recipe import Recipe
from internvl2.train.trainer import Trainer

RECEIPTS = Path(__file__).parent / "receipts"


def samples() -> Iterator[dict[str, str]]:
    """Whatever is at hand: rows of a table, answers of a database, pictures drawn on the way."""
    for line in (RECEIPTS / "train.jsonl").read_text(encoding="utf-8").splitlines():
        written = json.loads(line)
        yield written | {"image": str(RECEIPTS / written["image"])}


def main(model: str = "nano", output: str = "tuned") -> None:
    """Trains adapters of the decoder, and asks about a picture that was not among the samples."""
    recipe = replace(Recipe.read("nano-lora"), model=model, output=output, workers=0)
    often = replace(recipe.schedule, epochs=14)  # there are eight samples, few for the projector
    recipe = replace(recipe, schedule=often, freeze=replace(recipe.freeze, projector=True))
    Trainer(recipe, records=samples()).run()
    with Engine.load(model, adapter=output) as engine:
        question = "Which shop is it, and what is the total?"
        asked = [Message.user(Picture(RECEIPTS / "09.jpg"), question)]
        print(engine.answer(asked, SamplingParams(max_tokens=32)).text)


if __name__ == "__main__":
    main(*sys.argv[1:])
