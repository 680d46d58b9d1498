"""On a CUDA device: runs go on with the bits of one that never stopped; memory does not grow."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from internvl2.checkpoint.store import load_model
from internvl2.train.data.packing import TrainBatch, pack_samples
from internvl2.train.data.transfer import Arrivals
from internvl2.train.monitoring.log import read_records
from internvl2.train.recipe import DataSource, Freeze, Lora, Optimizer, Packing, Recipe, Schedule
from internvl2.train.run_folder import ENDS
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
            {"from": "gpt", "value": f"colour {10 + number}"},  # as long each, compiled once
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
    whole, resumed = whole_and_resumed(replace(recipe, optimizer=optimizer), tmp_path)
    expected = load_model(whole).state_dict()
    for name, tensor in load_model(resumed).state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(
    ("lora", "compiled"),
    [(Lora(8, vision_rank=4), False), (Lora(8, dora=True), True)],
    ids=["LoRA of both parts", "compiled DoRA"],
)
def test_adapters_beside_4_bits_go_on_bit_by_bit_on_a_gpu(recipe, tmp_path, lora, compiled):
    recipe = replace(recipe, from_scratch=False, freeze=Freeze(), lora=lora, quantize="nf4")
    # Layers with 4 bits take longest to compile: once is enough.
    recipe = replace(recipe, compile=compiled)
    whole, resumed = whole_and_resumed(recipe, tmp_path)
    expected = load_model(recipe.model, adapter=whole).state_dict()
    for name, tensor in load_model(recipe.model, adapter=resumed).state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def whole_and_resumed(recipe: Recipe, tmp_path: Path) -> tuple[Path, Path]:
    """Folders of a run that never stopped and of one that did; their losses are the same."""
    whole = replace(recipe, output=str(tmp_path / "whole"))
    Trainer(whole).run()
    Trainer(replace(recipe, schedule=Schedule("constant", 0.0, max_steps=3))).run()
    for end in ENDS:  # no longer a finished model
        (Path(recipe.output) / end).unlink(missing_ok=True)
    Trainer(recipe).run()
    folders = Path(whole.output), Path(recipe.output)
    losses = [[r.loss for r in read_records(folder / "metrics.jsonl")[0]] for folder in folders]
    assert losses[0] == losses[1]
    return folders


def test_packs_on_their_way_take_the_same_memory_again_and_again():
    length = 64
    pack = pack_samples((), length)
    tiles = np.zeros((8, 448, 448, 3), np.uint8)
    batch = TrainBatch.of(replace(pack, tiles=tiles, num_tiles=8))
    arrivals, taken = Arrivals(torch.device("cuda")), []
    for _ in range(40):
        for arrived in arrivals.bring([batch, batch]):
            assert int(arrived.tiles.sum()) == 0
        taken.append(torch.cuda.memory_reserved())
    assert taken[-1] == taken[3]
