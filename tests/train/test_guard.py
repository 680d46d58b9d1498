"""The guard measures how far a model has moved, and runs end early when that or a score says so."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from internvl2.checkpoint.store import load_model
from internvl2.train import guard as guard_module
from internvl2.train.guard import Likeliest, _divergence, _likeliest
from internvl2.train.monitoring.log import read_records
from internvl2.train.parallel import World
from internvl2.train.recipe import (
    DataSource,
    Guard,
    Optimizer,
    Packing,
    Recipe,
    Schedule,
    Validation,
)
from internvl2.train.run import Run
from internvl2.train.trainer import Trainer

ALONE = World(0, 1, torch.device("cpu"))


def texts(path: Path, words: list[str]) -> str:
    """Questions and answers in a file."""
    turns = [({"from": "human", "value": f"Say {w}"}, {"from": "gpt", "value": w}) for w in words]
    path.write_text("".join(json.dumps({"conversations": pair}) + "\n" for pair in turns))
    return str(path)


@pytest.fixture
def recipe(data, tmp_path) -> Recipe:
    return Recipe(
        model=str(data("official", "A_internlm2", "checkpoint")),
        output=str(tmp_path / "run"),
        data=(DataSource(texts(tmp_path / "train.jsonl", [f"word {n}" for n in range(12)])),),
        optimizer=Optimizer(learning_rate=1e-2),
        schedule=Schedule("constant", 0.0, max_steps=2),
        packing=Packing(tokens=64, tiles=1, window=4),
        guard=Guard((DataSource(texts(tmp_path / "probe.jsonl", ["yes", "no", "well"])),), every=2),
        packs_per_step=1,
        workers=0,
        dtype="float32",
        device="cpu",
        save_every=100,
    )


def opened(recipe: Recipe) -> Run:
    return Run(recipe, ALONE, Path(recipe.output) / "checkpoints")


def test_a_model_that_has_not_moved_diverges_by_nothing_and_a_trained_one_does(recipe):
    with opened(recipe) as run:
        assert run.divergence() == 0
        for _ in run.steps():
            pass
        moved = run.divergence()
        run.save()
    assert moved > 0.01
    with opened(recipe) as resumed:
        assert resumed.divergence() == moved
    changed = texts(Path(recipe.data[0].path).with_name("other.jsonl"), ["no", "yes", "well"])
    other = replace(recipe, guard=Guard((DataSource(changed),)))
    with pytest.raises(ValueError, match=r"guard\.data changed since"):
        opened(other)
    shutil.rmtree(Path(recipe.output) / "guard")
    with pytest.raises(ValueError, match="written before the first step"):
        opened(recipe)


@pytest.mark.parametrize("where", ["run", "features"])
def test_other_pictures_under_the_same_names_are_refused_and_rewritten_ones_are_not(
    recipe, tmp_path, where
):
    picture, cache = tmp_path / "shown.png", str(tmp_path / "features")
    Image.new("RGB", (60, 40), "red").save(picture)
    turns = [{"from": "human", "value": "<image>\nColour?"}, {"from": "gpt", "value": "red"}]
    line = json.dumps({"image": picture.name, "conversations": turns})
    (tmp_path / "shown.jsonl").write_text(line + "\n")
    shown = replace(
        recipe,
        guard=Guard((DataSource(str(tmp_path / "shown.jsonl")),)),
        packing=Packing(tokens=192, tiles=2, window=4),
        max_tiles=1,
        feature_cache=cache if where == "features" else None,
    )
    with opened(shown) as run:
        for _ in run.steps():
            pass
        run.save()
    Image.open(picture).save(picture, compress_level=0)
    for again in (shown, replace(shown, feature_cache=None), replace(shown, feature_cache=cache)):
        with opened(again) as run:
            assert run.divergence() > 0
    Image.new("RGB", (60, 40), "blue").save(picture)
    for again in (shown, replace(shown, feature_cache=None)):
        with pytest.raises(ValueError, match=r"the pictures of guard\.data.* changed since"):
            opened(again)


@pytest.mark.parametrize("chunk", [3, 100])
def test_the_divergence_is_that_over_the_vocabulary_or_less_where_fewer_are_kept(
    monkeypatch, chunk
):
    monkeypatch.setattr(guard_module, "CHUNK", chunk)
    before, after, head = torch.randn(7, 8), torch.randn(7, 8), torch.randn(20, 8)
    then, now = ((x @ head.T).log_softmax(1) for x in (before, after))
    whole = (then.exp() * (then - now)).sum()
    found = []
    for kept in (1, 5, 20, 50):
        first = Likeliest(*_likeliest(before, head, kept))
        found.append(_divergence(after, head, first)[0])
    assert found == sorted(found)
    assert 0 < found[0] < 0.9 * whole
    torch.testing.assert_close(found[-1], whole, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_run_that_moves_too_far_ends_with_a_whole_model(recipe):
    limited = replace(recipe, guard=replace(recipe.guard, max_kl=1e-4))
    ending = Trainer(limited).run()
    assert (ending.reason, ending.step) == ("early", 2)
    load_model(recipe.output)
    (record,) = read_records(Path(recipe.output) / "metrics.jsonl")[1]
    assert record.step == 2
    assert record.scores["guard.kl"] > 1e-4


@pytest.mark.slow
def test_a_run_ends_when_its_score_gets_no_better_also_when_it_was_stopped_between(recipe):
    patient = Validation(questions="asked.jsonl", every=1, stop_metric="exact_match", stop_after=3)
    recipe = replace(recipe, validation=patient, guard=Guard(), schedule=Schedule(max_steps=9))
    scores = {1: 0.1, 2: 0.5, 3: 0.4, 4: 0.5, 5: 0.3}

    def stopping(model, processor, step):
        first._stop = step == 3
        return {"exact_match": scores[step]}

    first = Trainer(recipe, stopping)
    assert first.run().reason == "stopped"
    ending = Trainer(recipe, lambda model, processor, step: {"exact_match": scores[step]}).run()
    assert (ending.reason, ending.step) == ("early", 5)
    best, last = load_model(ending.folder / "best"), load_model(ending.folder)
    assert not torch.equal(best.decoder.head.weight, last.decoder.head.weight)


@pytest.mark.slow
def test_a_run_that_is_stopped_where_it_ends_early_trains_no_further(recipe):
    limited = replace(recipe, guard=replace(recipe.guard, max_kl=1e-4))

    def stopping(model, processor, step):
        first._stop = True
        return {}

    first = Trainer(replace(limited, validation=Validation(every=2)), stopping)
    assert first.run().reason == "stopped"
    ending = Trainer(limited).run()
    assert (ending.reason, ending.step) == ("early", 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: Guard(max_kl=0.1), r"guard\.max_kl is 0\.1, but there is no guard\.data"),
        (lambda: Validation(stop_after=2), "it must be measured: give validation.data"),
        (
            lambda: Validation(questions="a", stop_metric="anls"),
            r"validation\.stop_metric is anls; it must be one of exact_match",
        ),
    ],
)
def test_what_can_never_end_a_run_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        change()
