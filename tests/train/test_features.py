"""Runs with a feature cache learn what runs without one learn, and run no vision twice."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from internvl2.model.vision import VisionTower
from internvl2.train.data.tile_store import TileStore
from internvl2.train.features import tower_fingerprint
from internvl2.train.monitoring.log import read_records
from internvl2.train.parallel import World
from internvl2.train.preparation import prepare
from internvl2.train.recipe import (
    DataSource,
    Freeze,
    Lora,
    Optimizer,
    Packing,
    Recipe,
    Schedule,
    Synthetic,
    Validation,
)
from internvl2.train.run import Run


@pytest.fixture
def samples(tmp_path) -> Path:
    """Pictures of one and of several tiles, and text alone."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(4):
        size = (56, 56) if number % 2 else (112, 56)
        pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        records.append(({"image": f"{number}.png"}, "<image>\nWhat?", f"number {number}"))
    records += [({}, f"Say {number}", f"well {number}") for number in range(2)]
    lines = []
    for image, question, answer in records:
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        lines.append(json.dumps(image | {"conversations": turns}) + "\n")
    (tmp_path / "train.jsonl").write_text("".join(lines))
    return tmp_path / "train.jsonl"


@pytest.fixture
def recipe(data, samples, tmp_path) -> Recipe:
    return Recipe(
        model=str(data("official", "A_internlm2", "checkpoint")),
        output=str(tmp_path / "run"),
        data=(DataSource(str(samples)),),
        optimizer=Optimizer(learning_rate=1e-2),
        schedule=Schedule("constant", 0.0, epochs=2),
        packing=Packing(tokens=192, tiles=6, window=4),
        validation=Validation((DataSource(str(samples)),)),
        packs_per_step=2,
        max_tiles=2,
        workers=0,
        dtype="float32",
        device="cpu",
        save_every=100,
        feature_cache=str(tmp_path / "features"),
    )


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """Tiles of each call of the tower, with those of buckets."""
    plain, calls = VisionTower.forward, []

    def watched(self, pixels, *others):
        calls.append(len(pixels))
        return plain(self, pixels, *others)

    monkeypatch.setattr(VisionTower, "forward", watched)
    return calls


def train(recipe: Recipe, name: str) -> list[float]:
    """Losses of a run, and in the end that of the validation data."""
    world = World(0, 1, torch.device("cpu"))
    with Run(recipe, world, Path(recipe.output) / name) as run:
        return [record.loss for record in run.steps()] + [run.validation_loss()]


def kept(recipe: Recipe) -> list[Path]:
    return sorted(path for path in Path(recipe.feature_cache or "").glob("*/??/*"))


def test_cached_runs_learn_the_same_and_encode_every_tile_once(recipe, encoded):
    plain = train(replace(recipe, feature_cache=None), "plain")
    whole = encoded.copy()
    encoded.clear()
    assert train(recipe, "first") == plain
    assert len(kept(recipe)) == 8
    assert len(encoded) < len(whole) / 2
    encoded.clear()
    assert train(recipe, "second") == plain
    assert encoded == []


@pytest.mark.slow
def test_a_changed_picture_and_a_damaged_file_are_encoded_again(recipe, samples, encoded):
    recipe = replace(recipe, packs_per_step=1)  # a step's packs are looked up before any is encoded
    first = train(recipe, "first")
    encoded.clear()
    damaged = kept(recipe)[0]
    damaged.write_bytes(b"x" + damaged.read_bytes()[1:])
    assert train(recipe, "second") == first
    assert encoded == [1]
    Image.new("RGB", (56, 56), "red").save(samples.parent / "1.png")
    assert train(recipe, "third") != first
    assert len(kept(recipe)) == 9


def test_other_weights_of_the_tower_are_another_name_and_those_never_run_are_not(recipe):
    model = prepare(recipe, World(0, 1, torch.device("cpu"))).model
    name = tower_fingerprint(model)
    with torch.no_grad():
        model.projector.linear1.weight[0, 0] += 1
        assert tower_fingerprint(model) == name
        next(model.vision.layers.parameters())[0] += 1
    assert tower_fingerprint(model) != name
    assert tower_fingerprint(model.bfloat16()) != name


def test_a_file_is_no_cache(recipe, samples):
    with pytest.raises(NotADirectoryError, match=r"train\.jsonl is a file; name a folder"):
        train(replace(recipe, feature_cache=str(samples)), "first")


def test_a_cache_that_does_not_fit_is_refused_with_its_size(recipe, monkeypatch):
    monkeypatch.setattr(TileStore, "free_bytes", lambda store: 3000)
    with pytest.raises(ValueError, match=r"features of 8 tiles take .* has 0\.00 GB free"):
        train(recipe, "first")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("freeze.vision = false", {"freeze": Freeze(vision=False)}),
        ("freeze.vision_last = 1", {"freeze": Freeze(vision_last=1)}),
        ("lora.vision_rank = 4", {"lora": Lora(vision_rank=4)}),
        ("[[synthetic]]", {"synthetic": (Synthetic(),)}),
        ("data.augment = true", {"data": (DataSource("a.jsonl", augment=True),)}),
    ],
)
def test_what_changes_tiles_or_tower_does_not_go_with_the_cache(recipe, name, change):
    with pytest.raises(ValueError, match=f"feature_cache does not go with {re.escape(name)}"):
        replace(recipe, **change)


@pytest.mark.slow
def test_augmentation_that_a_meta_file_asks_for_is_found_before_the_first_step(recipe, samples):
    entry = {"annotation": str(samples), "root": str(samples.parent), "data_augment": True}
    meta = samples.with_name("meta.json")
    meta.write_text(json.dumps({"pictures": entry}))
    with pytest.raises(ValueError, match=r"train\.jsonl.*is augmented"):
        train(replace(recipe, data=(DataSource(str(meta)),)), "first")


@pytest.mark.slow
def test_worker_processes_bring_the_features_that_are_kept(recipe, encoded):
    first = train(recipe, "first")
    encoded.clear()
    assert train(replace(recipe, workers=1), "second") == first
    assert encoded == []


@pytest.mark.slow
def test_two_processes_fill_one_cache_and_learn_what_one_learns(recipe, encoded):
    file = Path(recipe.output).with_suffix(".toml")
    recipe.write(file)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    source = str(Path(__file__).parents[2] / "src")
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "internvl2", "train", str(file)],
        env=os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "features of 8 tiles take" in done.stderr
    steps, validations = read_records(Path(recipe.output) / "metrics.jsonl")
    losses = [record.loss for record in steps] + [validations[-1].scores["loss"]]
    assert len(kept(recipe)) == 8
    assert train(recipe, "alone") == pytest.approx(losses, rel=1e-4)
    assert encoded == []
