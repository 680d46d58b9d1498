"""A run's prediction beside what it took."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from internvl2.checkpoint.config_files import read_config
from internvl2.checkpoint.hub import resolve
from internvl2.train.monitoring.log import StepRecord
from internvl2.train.parallel import World
from internvl2.train.planning.forecast import Forecast, predict
from internvl2.train.planning.machine import GIB
from internvl2.train.preparation import without_memory
from internvl2.train.recipe import DataSource, Packing, Recipe, Schedule
from internvl2.train.trainer import Trainer

RECIPE = replace(Recipe.read("nano"), compile=False)
MODEL = without_memory(RECIPE, read_config(resolve("nano")), torch.bfloat16)


def record(step: int, gib: float) -> StepRecord:
    return StepRecord(
        step=step,
        loss=1.0,
        learning_rate=0.1,
        grad_norm={"total": 1.0},
        tokens=1,
        tiles=1,
        samples=1,
        seconds=1.0,
        tokens_per_second=1.0,
        tiles_per_second=1.0,
        data_wait=0.0,
        memory_gib=gib,
        tflops_vision=0.0,
        tflops_decoder=0.0,
    )


def test_after_the_second_step_of_a_run_the_peak_is_compared_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    world = World(0, 1, torch.device("cuda"))
    predicted = predict(RECIPE, MODEL, world).total / GIB
    forecast = Forecast(RECIPE, MODEL, world, tmp_path)
    with caplog.at_level(logging.INFO):
        for step in (7, 8, 9):  # of a resumed run
            forecast.see(record(step, predicted * step / 10))
    assert [message.split(",")[1] for message in caplog.messages] == [
        f" {0.8 * predicted:.1f} GiB measured (+25.0 %)"
    ]
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["error"] == pytest.approx(0.25)
    assert sum(written["parts_gib"].values()) == pytest.approx(written["predicted_gib"], abs=0.01)


@pytest.mark.parametrize(("rank", "device"), [(0, "cpu"), (1, "cuda")])
def test_nothing_is_compared_where_no_peak_is_told_or_by_other_processes(
    rank: int, device: str, tmp_path: Path
):
    forecast = Forecast(RECIPE, MODEL, World(rank, 2, torch.device(device)), tmp_path)
    for step in (1, 2):
        forecast.see(record(step, 1.0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_run_that_is_told_its_memory_compares_after_its_second_step(
    data: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setattr("internvl2.train.planning.forecast.COUNTING", ("cpu",))
    monkeypatch.setattr("internvl2.train.monitoring.measure._memory", lambda device: 3 * GIB)
    turns = [{"from": "human", "value": "Say 1"}, {"from": "gpt", "value": "1"}]
    (tmp_path / "train.jsonl").write_text((json.dumps({"conversations": turns}) + "\n") * 8)
    recipe = Recipe(
        model=str(data("official", "A_internlm2", "checkpoint")),
        output=str(tmp_path / "run"),
        data=(DataSource(str(tmp_path / "train.jsonl")),),
        schedule=Schedule(max_steps=3),
        packing=Packing(tokens=64),
        packs_per_step=1,
        workers=0,
        dtype="float32",
        device="cpu",
    )
    with caplog.at_level(logging.INFO):
        Trainer(recipe).run()
    found = [m for m in caplog.messages if m.startswith("memory: ")]
    assert len(found) == 1
    assert "3.0 GiB measured" in found[0]
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["measured_gib"] == 3
