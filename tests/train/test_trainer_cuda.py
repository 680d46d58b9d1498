"""With `deterministic` a run on a CUDA device goes on with the bits of one that never stopped."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from internvl2.checkpoint.store import load_model
from internvl2.train.monitoring.log import read_records
from internvl2.train.recipe import DataSource, Freeze, Optimizer, Packing, Recipe, Schedule
from internvl2.train.trainer import Trainer

pytestmark = pytest.mark.gpu


@pytest.fixture
def recipe(data, tmp_path) -> Recipe:
    pytest.importorskip("tokenizers")
    lines = []
    for number in range(12):
        Image.new("RGB", (112, 112), (20 * number, 0, 128)).save(tmp_path / f"{number}.png")
        turns = [
            {"from": "human", "value": "<image>\nWhat colour?"},
            {"from": "gpt", "value": f"colour {number}"},
        ]
        lines.append(json.dumps({"image": f"{number}.png", "conversations": turns}) + "\n")
    (tmp_path / "train.jsonl").write_text("".join(lines))
    return Recipe(
        model=str(data("official", "B_qwen2", "checkpoint")),
        output=str(tmp_path / "run"),
        data=(DataSource(str(tmp_path / "train.jsonl")),),
        from_scratch=True,
        freeze=Freeze(vision=False),
        drop_path=0.2,
        schedule=Schedule("constant", 0.0, max_steps=6),
        packing=Packing(tokens=256, tiles=8, window=8),
        packs_per_step=2,
        max_tiles=1,
        workers=0,
        dtype="bfloat16",
        device="cuda",
        deterministic=True,
    )


@pytest.fixture(autouse=True)
def _repeatable(monkeypatch):
    """As `internvl2 train` sets it; and what a run switches on is switched off again."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    "optimizer",
    [
        Optimizer(learning_rate=1e-3),
        Optimizer(learning_rate=1e-3, moments="8bit"),
        Optimizer("muon", learning_rate=1e-3),
    ],
    ids=["adamw", "8bit", "muon"],
)
def test_a_deterministic_run_on_a_gpu_goes_on_bit_by_bit(recipe, tmp_path, optimizer):
    recipe = replace(recipe, optimizer=optimizer)
    whole = replace(recipe, output=str(tmp_path / "whole"))
    Trainer(whole).run()
    Trainer(replace(recipe, schedule=Schedule("constant", 0.0, max_steps=3))).run()
    (Path(recipe.output) / "config.json").unlink()  # no longer a finished model
    Trainer(recipe).run()
    metrics = [read_records(Path(r.output) / "metrics.jsonl")[0] for r in (whole, recipe)]
    assert [r.loss for r in metrics[0]] == [r.loss for r in metrics[1]]
    expected = load_model(whole.output).state_dict()
    for name, tensor in load_model(recipe.output).state_dict().items():
        assert torch.equal(tensor, expected[name]), name
