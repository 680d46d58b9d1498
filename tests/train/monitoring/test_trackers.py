"""TensorBoard and Weights & Biases get each record once, and learn how a run ended."""

import json
import os
import signal
import sys
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from internvl2.train.monitoring.log import StepRecord, ValidationRecord
from internvl2.train.monitoring.trackers import TensorBoard, Wandb, open_trackers
from internvl2.train.recipe import DataSource, Freeze, Packing, Recipe, Schedule, Validation
from internvl2.train.trainer import Trainer

WANDB = """
class Error(Exception): pass
calls = []
class Run:
    def __init__(self, id): self.id = id or f"fresh{len(calls)}"
    def log(self, values, step): calls.append(("log", values, step))
    def finish(self, exit_code): calls.append(("finish", exit_code))
def init(**options):
    if options["project"] == "refused": raise Error("no key")
    calls.append(("init", options))
    return Run(options["id"])
"""


@pytest.fixture
def wandb(tmp_path, monkeypatch) -> ModuleType:
    """A module of that name that writes down what it is told."""
    (tmp_path / "wandb.py").write_text(WANDB)
    spec = spec_from_file_location("wandb", tmp_path / "wandb.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.fixture
def recipe(data, tmp_path) -> Recipe:
    turns = [{"from": "human", "value": "Say 1"}, {"from": "gpt", "value": "1"}]
    (tmp_path / "train.jsonl").write_text((json.dumps({"conversations": turns}) + "\n") * 64)
    return Recipe(
        model=str(data("official", "A_internlm2", "checkpoint")),
        output=str(tmp_path / "run"),
        data=(DataSource(str(tmp_path / "train.jsonl")),),
        freeze=Freeze(projector=True),
        schedule=Schedule(max_steps=3),
        packing=Packing(tokens=128, tiles=1, window=8),
        validation=Validation(every=1),
        packs_per_step=1,
        save_every=1,
        workers=0,
        dtype="float32",
        device="cpu",
    )


def record(step: int) -> StepRecord:
    norms = {"total": 2.0, "decoder": 1.5}
    return StepRecord(step, 0.5, 1e-3, norms, 10, 1, 2, 0.5, 20.0, 2.0, 0.0, 0.1, 0.1, 0.2)


@pytest.mark.parametrize("option", [{"tensorboard": True}, {"wandb": "colours"}])
def test_a_missing_package_is_named_before_anything_is_loaded(option, tmp_path, monkeypatch):
    (package,) = option
    (tmp_path / package).mkdir()  # such as wandb itself leaves where it ran
    monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ValueError, match=rf"pip install 'internvl2\[{package}\]'"):
        Trainer(Recipe(model="no such model", **option))


def test_wandb_gets_every_record_and_the_recipe(recipe, wandb, tmp_path):
    tracker = Wandb(recipe, "colours", tmp_path, 0)
    tracker.step(record(1))
    tracker.validation(ValidationRecord(1, {"exact_match": 0.5}))
    tracker.close(failed=False)
    (_, options), (_, step, _), validation, end = wandb.calls
    assert (options["project"], options["dir"], options["id"]) == ("colours", tmp_path, None)
    assert options["config"]["packing"]["tokens"] == 128
    assert (step["train/loss"], step["train/grad_norm/decoder"]) == (0.5, 1.5)
    assert "train/mfu" not in step  # a CPU has none
    assert validation == ("log", {"validation/exact_match": 0.5}, 1)
    assert end == ("finish", 0)


@pytest.mark.slow
def test_wandb_is_told_of_a_run_that_failed_and_that_went_on(recipe, wandb):
    def validate(model, processor, step):
        if step == 2 and len(wandb.calls) < 6:
            raise KeyboardInterrupt
        return {"exact_match": 0.5}

    recipe = replace(recipe, wandb="colours")
    with pytest.raises(KeyboardInterrupt):
        Trainer(recipe, validate).run()
    Trainer(recipe, validate).run()
    begins = [call[1] for call in wandb.calls if call[0] == "init"]
    assert [call[1] for call in wandb.calls if call[0] == "finish"] == [1, 0]
    assert (begins[0]["id"], begins[0]["resume"]) == (None, None)
    assert (begins[1]["id"], begins[1]["resume"]) == ("fresh1", "allow")
    assert {call[2] for call in wandb.calls if call[0] == "log"} == {1, 2, 3}


def test_a_run_that_begins_anew_is_a_new_one_for_wandb(recipe, wandb, tmp_path):
    for _ in range(2):
        Wandb(recipe, "colours", tmp_path, 0).close(failed=True)
    assert [call[1]["id"] for call in wandb.calls if call[0] == "init"] == [None, None]


def test_wandb_s_own_complaint_is_one_line(recipe, wandb, tmp_path):
    with pytest.raises(ValueError, match="wandb did not begin: no key"):
        open_trackers(replace(recipe, wandb="refused"), tmp_path, 0)


def test_tensorboard_hides_steps_that_are_done_again(tmp_path, monkeypatch):
    told = []
    writer = SimpleNamespace(
        add_scalar=lambda *what: told.append(what), close=lambda: told.append("closed")
    )

    def make(folder: Path, **options: int) -> SimpleNamespace:
        told.append((folder, options["purge_step"]))
        return writer

    own = SimpleNamespace(SummaryWriter=make)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", own)
    tracker = TensorBoard(tmp_path, 7)
    tracker.validation(ValidationRecord(8, {"loss": 1.0}))
    tracker.close(failed=False)
    assert told == [(tmp_path / "tensorboard", 8), ("validation/loss", 1.0, 8), "closed"]


def test_a_run_stopped_by_sigterm_has_its_curves(recipe):
    def validate(model, processor, step):
        os.kill(os.getpid(), signal.SIGTERM)
        return {"exact_match": 0.5}

    ending = Trainer(recipe, validate).run()
    assert (ending.reason, ending.step) == ("stopped", 1)
    assert (ending.folder / "loss.png").exists()
