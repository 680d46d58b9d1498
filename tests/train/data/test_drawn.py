"""Drawn samples join a run as records that are made when they are asked for."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from internvl2.config import DecoderConfig, InternVLConfig, RotaryConfig, VisionConfig
from internvl2.processing.conversation import Message, Picture, Video
from internvl2.processing.processor import Processor
from internvl2.synthetic.catalogue import sample
from internvl2.train.data.drawn import DrawnSource, conversation, task_weights
from internvl2.train.data.formats import from_records, indexed
from internvl2.train.data.mixture import training_loader, validation_loader
from internvl2.train.parallel import World
from internvl2.train.recipe import Packing, Recipe, Synthetic, Validation

SIDE = 56
WORLD = World(rank=0, size=1, device=torch.device("cpu"))
SHAPES = Synthetic(("shapes", "talk"), (3.0, 1.0), samples=12)


@pytest.fixture(scope="module")
def processor(data) -> Processor:
    vision = VisionConfig(16, 1, 2, 32, image_size=SIDE)
    decoder = DecoderConfig("qwen2", 1000, 16, 1, 2, 2, 8, 32, 4096, RotaryConfig(1e4))
    config = InternVLConfig(vision, decoder, "Hermes-2", tile_size=SIDE, max_tiles=4)
    return Processor.from_directory(data("official", "B_qwen2", "checkpoint"), config)


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    packing = Packing(tokens=512, tiles=8, window=4)
    return Recipe("x", str(tmp_path), synthetic=(SHAPES,), packing=packing, packs_per_step=1)


class Counted:
    """Records that note when they are asked for."""

    def __init__(self):
        self.asked: list[int] = []

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, index: int) -> dict:
        self.asked.append(index)
        return {"query": str(index), "response": "yes"}


def test_a_sample_follows_from_its_number_alone():
    source = DrawnSource(100, task_weights((), ()), (0.0, 1.0), first=7)
    again = pickle.loads(pickle.dumps(source))
    for index in range(8):
        one, other = source[index], again[index]
        assert one.where == other.where
        assert [m.text for m in one.messages] == [m.text for m in other.messages]
    assert source[3].where == replace(source, first=10)[0].where


def test_a_billion_samples_cost_nothing():
    source = DrawnSource(10**9, task_weights(("shapes",), ()), (0.5, 0.5))
    assert source[10**9 - 1].where == "synthetic/train/shapes:999999999"
    with pytest.raises(IndexError):
        source[10**9]


def test_pictures_stand_in_the_first_question_and_frames_are_a_video():
    several = conversation(sample("several", 1, "train"))
    moving = conversation(sample("video", 1, "train"))
    assert [type(part) for part in several[0].content][:2] == [Picture, Picture]
    assert all(not m.content[:-1] for m in several[1:])
    assert isinstance(moving[0].content[0], Video)


def test_without_pictures_the_words_are_left():
    source = DrawnSource(100, task_weights(("video",), ()), (0.0, 1.0))
    blind = replace(source, pictures=False)[4].messages
    assert [m.text for m in blind] == [m.text for m in source[4].messages]
    assert all(len(message.content) == 1 for message in blind)


def test_a_drawn_run_has_samples_of_its_tasks(recipe, processor):
    loader = training_loader(recipe, processor, WORLD, None)
    where = [place for step in loader for batch in step.batches for place in batch.where]
    loader.close()
    assert len(where) == len(set(where)) == 12
    assert {place.split(":")[0] for place in where} == {
        "synthetic/train/shapes",
        "synthetic/train/talk",
    }


@pytest.mark.slow
def test_workers_make_the_packs_that_one_process_makes(recipe, processor):
    packs = []
    for workers in (0, 2):
        loader = training_loader(replace(recipe, workers=workers), processor, WORLD, None)
        packs.append([batch for step in loader for batch in step.batches])
        loader.close()
    for alone, beside in zip(*packs, strict=True):
        assert np.array_equal(alone.tokens, beside.tokens)
        assert np.array_equal(alone.tiles, beside.tiles)


def test_validation_draws_what_training_never_has(recipe, processor):
    validated = replace(recipe, validation=Validation(synthetic=(SHAPES,)))
    loaders = [
        training_loader(recipe, processor, WORLD, None),
        validation_loader(validated, processor, WORLD),
    ]
    trained, validated = (loader.dataset.source[0] for loader in loaders)
    assert trained.where == validated.where.replace("test", "train")
    assert trained.messages != validated.messages


def test_records_of_a_lazy_sequence_are_asked_for_one_by_one():
    records = Counted()
    assert indexed(records) is records
    source = from_records(records)
    assert source[5].messages[0] == Message.user("5")
    assert records.asked == [5]


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        ('tasks = ["shapes"]\nweights = [1, 2]', "as many as the 1 tasks"),
        ("weights = [1]", "given with tasks"),
        ("difficulty = [0.5, 0.2]", "two rising numbers"),
        ("task = []", "did you mean `tasks`"),
    ],
)
def test_a_faulty_table_is_an_error(table: str, fault: str, tmp_path: Path):
    file = tmp_path / "recipe.toml"
    file.write_text(f'model = "x"\n[[synthetic]]\n{table}\n')
    with pytest.raises(ValueError, match=fault):
        Recipe.read(file)


def test_an_unknown_task_is_an_error():
    with pytest.raises(ValueError, match="unknown task 'shape'"):
        task_weights(("shape",), ())


def test_a_recipe_with_drawn_samples_is_read_as_it_was_written(recipe, tmp_path):
    recipe.write(tmp_path / "recipe.toml")
    assert Recipe.read(tmp_path / "recipe.toml") == recipe


def test_endless_validation_is_an_error():
    with pytest.raises(ValueError, match=r"validation\.synthetic\.samples"):
        Validation(synthetic=(Synthetic(),))
