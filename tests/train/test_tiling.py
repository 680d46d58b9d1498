"""A recipe may train a model for other tiles, and have pictures resized faster."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from internvl2.checkpoint.config_files import read_config
from internvl2.checkpoint.hub import resolve
from internvl2.checkpoint.store import load_model
from internvl2.processing.conversation import Message, Picture
from internvl2.processing.processor import EncodeOptions, Processor
from internvl2.train.planning.machine import known
from internvl2.train.planning.plan import make_plan
from internvl2.train.recipe import Optimizer, Packing, Recipe, Schedule, Synthetic
from internvl2.train.tiling import training_processor
from internvl2.train.trainer import Trainer

RUN = Recipe(
    model="given by a test",
    synthetic=(Synthetic(("shapes",), difficulty=(0.0, 0.1)),),
    optimizer=Optimizer(learning_rate=1e-3),
    schedule=Schedule(max_steps=1),
    packing=Packing(tokens=512, tiles=4, window=4, fill="in_order"),
    packs_per_step=1,
    max_tiles=1,
    workers=0,
    dtype="float32",
    device="cpu",
)


@pytest.fixture(scope="module")
def nano() -> Processor:
    directory = resolve("nano", weights=False)
    return Processor.from_directory(directory, read_config(directory))


def tiles_of(processor: Processor) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    question = Message.user(Picture(Image.fromarray(noise)), "What is it?")
    return processor.encode([question], options=EncodeOptions(max_tiles=1)).tiles


def test_pictures_are_cut_in_tiles_of_the_recipes_size(nano):
    processor = training_processor(nano, replace(RUN, tile_size=224))
    assert tiles_of(processor).shape == (1, 224, 224, 3)
    assert processor.config.tokens_per_tile == nano.config.tokens_per_tile // 4


def test_pictures_are_cut_in_at_least_as_many_tiles_as_the_recipe_says(nano):
    few, many = (
        training_processor(nano, replace(RUN, min_tiles=least, max_tiles=6)) for least in (1, 4)
    )
    square = Message.user(Picture(Image.new("RGB", (90, 90))), "What is it?")
    assert len(few.encode([square]).tiles) == 1
    assert len(many.encode([square]).tiles) == 5


def test_a_recipe_that_says_nothing_changes_no_pixel(nano):
    assert np.array_equal(tiles_of(training_processor(nano, RUN)), tiles_of(nano))


@pytest.mark.parametrize(("preprocess", "share"), [("fast", 0.003), ("rough", 0.03)])
def test_another_way_of_resizing_reaches_the_pictures_of_a_run(nano, preprocess, share):
    others = tiles_of(training_processor(nano, replace(RUN, preprocess=preprocess))).astype(int)
    differences = np.abs(others - tiles_of(nano))
    assert 0 < (differences > 0).mean() <= share
    assert differences.max() <= 2


def test_a_model_keeps_the_tiles_that_it_was_trained_for(data, tmp_path):
    official = data("official", "A_internlm2", "checkpoint")
    before = read_config(official)
    side = before.tile_size // 2
    given = replace(RUN, model=str(official), output=str(tmp_path / "run"), tile_size=side)
    folder = Trainer(replace(given, min_tiles=2, max_tiles=2)).run().folder
    trained = read_config(folder)
    assert (trained.tile_size, trained.vision.image_size) == (side, before.vision.image_size)
    assert (trained.min_tiles, trained.max_tiles) == (2, before.max_tiles)
    wanted = load_model(official).vision.position_embedding.shape
    assert load_model(folder).vision.position_embedding.shape == wanted


def test_a_plan_counts_the_tiles_of_the_recipes_size():
    recipe = replace(Recipe.read("nano"), tile_size=None)
    small, usual = (
        make_plan(replace(recipe, tile_size=side), known("h100")).given.memory.total
        for side in (224, None)
    )
    assert small < usual / 2


@pytest.mark.parametrize(
    ("side", "message"),
    [(0, "tile_size is 0; it must be at least 1"), (100, "tile_size 100")],
)
def test_a_size_that_no_tile_can_have_is_refused(nano, side, message):
    with pytest.raises(ValueError, match=message):
        training_processor(nano, replace(RUN, tile_size=side))
