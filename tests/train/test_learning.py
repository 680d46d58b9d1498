"""A model from nothing learns what is drawn, and `chat` says it."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from internvl2.checkpoint.config_files import TokenIds, read_config, write_config
from internvl2.checkpoint.hub import resolve
from internvl2.engine.engine import Engine
from internvl2.engine.sequence import SamplingParams
from internvl2.processing.conversation import Message, Picture
from internvl2.train.data.order import mix
from internvl2.train.monitoring.log import read_records
from internvl2.train.recipe import (
    Freeze,
    Optimizer,
    Packing,
    Recipe,
    Recompute,
    Schedule,
    Synthetic,
)
from internvl2.train.trainer import Trainer

COLOURS = {"red": (220, 30, 30), "green": (30, 160, 50), "blue": (40, 60, 220), "black": (9, 9, 9)}
QUESTION = "What colour is it?"
SIDE = 112


@dataclass(frozen=True)
class Discs:
    """Coloured discs somewhere on white, drawn when they are asked for."""

    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Message, ...]:
        return Message.user(Picture(disc(index)), QUESTION), Message.assistant(colour(index))


def colour(index: int) -> str:
    return list(COLOURS)[mix(index) % len(COLOURS)]


def disc(index: int) -> Image.Image:
    picture = Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
    left, top, size = (low + mix(index, low) % 40 for low in (5, 6, 20))
    box = (left, top, left + size, top + size)
    ImageDraw.Draw(picture).ellipse(box, COLOURS[colour(index)])
    return picture


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    """Nano with its own vocabulary and template, in a twentieth of its weights."""
    folder = tmp_path / "beginning"
    shutil.copytree(resolve("nano"), folder)
    full = read_config(folder)
    sizes = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "intermediate_size": 192}
    config = replace(
        full,
        vision=replace(full.vision, image_size=SIDE, **sizes),
        decoder=replace(full.decoder, num_kv_heads=1, head_dim=32, **sizes),
        tile_size=SIDE,
        max_tiles=1,
        dtype="float32",
    )
    write_config(config, folder, "opengvlab", TokenIds())
    return Recipe(
        model=str(folder),
        output=str(tmp_path / "run"),
        freeze=Freeze(vision=False),
        optimizer=Optimizer("muon", learning_rate=4e-3, betas=(0.9, 0.95)),
        schedule=Schedule("linear", warmup_ratio=0.05, max_steps=30),
        packing=Packing(tokens=1024, tiles=16, window=16),
        packs_per_step=1,
        max_tiles=1,
        from_scratch=True,
        recompute=Recompute(0.0, 0.0),
        device="cpu",
        workers=0,
    )


def losses(recipe: Recipe) -> list[float]:
    return [record.loss for record in read_records(Path(recipe.output) / "metrics.jsonl")[0]]


@pytest.mark.slow
def test_a_drawn_task_is_begun_to_be_learned(recipe):
    drawn = replace(recipe, synthetic=(Synthetic(("shapes",), difficulty=(0.0, 0.0)),))
    Trainer(drawn).run()
    assert losses(drawn)[0] > 7
    assert sum(losses(drawn)[-5:]) / 5 < 4


@pytest.mark.slow
def test_a_stage_goes_on_from_the_weights_of_the_one_before(recipe):
    shapes = (Synthetic(("shapes",), difficulty=(0.0, 0.0)),)
    first = replace(recipe, synthetic=shapes)
    Trainer(first).run()
    second = replace(first, model=first.output, output=first.output + "2", from_scratch=False)
    second = replace(second, schedule=replace(second.schedule, max_steps=2), seed=1)
    Trainer(second).run()
    assert losses(second)[0] < losses(first)[0] / 2


@pytest.mark.slow
def test_colours_are_learned_in_a_minute(recipe):
    schedule = replace(recipe.schedule, max_steps=130)
    Trainer(replace(recipe, schedule=schedule), records=Discs(10**9 - 40)).run()
    unseen, right = range(10**9 - 40, 10**9), 0
    with Engine.load(recipe.output, device="cpu") as engine:
        for index in unseen:
            chat = engine.chat(params=SamplingParams(max_tokens=8))
            right += chat.ask(QUESTION, images=[disc(index)]).text == colour(index)
    assert right >= 38
