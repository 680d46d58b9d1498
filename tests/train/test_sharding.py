"""Weights divided over two processes learn what one process learns, and go back into one."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from internvl2.checkpoint.store import load_model
from internvl2.train import preparation
from internvl2.train.monitoring.log import StepRecord, read_records
from internvl2.train.recipe import (
    DataSource,
    Freeze,
    Guard,
    Lora,
    Optimizer,
    Packing,
    Recipe,
    Schedule,
    Validation,
)
from internvl2.train.run_folder import ENDS
from internvl2.train.trainer import Trainer

sys.path.append(str(Path(__file__).parent))
from divided import total

SOURCE = Path(__file__).parents[2] / "src"
PROCESS = Path(__file__).with_name("divided.py")
CHECKPOINT = ("official", "A_internlm2", "checkpoint")

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Pack:
    tiles: int
    num_tiles: int
    num_tokens: int
    num_encoded: int


def samples(folder: Path) -> Path:
    """Pictures that share packs, and long texts that leave no room for one."""
    records = []
    for number in range(12):
        colour = (20 * number, 255 - 20 * number, 128)
        Image.new("RGB", (112, 112), colour).save(folder / f"{number}.png")
        records.append((f"{number}.png", "<image>\nWhat?", f"colour {number}"))
    words = " ".join(str(n) for n in range(48))
    records += [(None, f"Say {number} {words}", f"well {number}") for number in range(5)]
    lines = []
    for image, question, answer in records:
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        picture = {} if image is None else {"image": image}
        lines.append(json.dumps(picture | {"conversations": turns}) + "\n")
    (folder / "train.jsonl").write_text("".join(lines))
    return folder / "train.jsonl"


def recipe_of(model: Path, data: Path, output: Path) -> Recipe:
    return Recipe(
        model=str(model),
        output=str(output),
        data=(DataSource(str(data)),),
        freeze=Freeze(vision=False),
        optimizer=Optimizer(learning_rate=1e-3),
        schedule=Schedule("constant", 0.0, epochs=1.7),
        packing=Packing(tokens=192, tiles=4, window=4),
        packs_per_step=4,
        max_tiles=1,
        drop_path=0.2,
        workers=0,
        dtype="float32",
        device="cpu",
        save_every=100,
    )


def in_two_processes(folder: Path, *recipes: Recipe) -> None:
    """Runs recipes one after the other in the same two processes."""
    files = [f"{recipe.output}.toml" for recipe in recipes]
    for recipe, file in zip(recipes, files, strict=True):
        recipe.write(Path(file))
    ports = ",".join(str(free_port()) for _ in range(len(recipes) + 1))
    own = {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(PROCESS), ports, str(folder), *files],
            env=os.environ | own | {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    messages = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(messages)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def in_one_process(recipe: Recipe) -> None:
    Trainer(recipe, total).run()


def unfinished(recipe: Recipe, steps: int) -> Recipe:
    """The recipe of so many steps, in a folder that can go on."""
    for end in ENDS:
        (Path(recipe.output) / end).unlink(missing_ok=True)
    return replace(recipe, schedule=Schedule("constant", 0.0, max_steps=steps))


def packs(recipe: Recipe, rank: int) -> list[Pack]:
    """What a process ran."""
    return [Pack(*pack) for pack in json.loads(Path(f"{recipe.output}.toml.{rank}").read_text())]


def records(recipe: Recipe) -> list[StepRecord]:
    return read_records(Path(recipe.output) / "metrics.jsonl")[0]


def losses(recipe: Recipe) -> list[float]:
    return [record.loss for record in records(recipe)]


def scores(recipe: Recipe, name: str) -> list[float]:
    found = read_records(Path(recipe.output) / "metrics.jsonl")[1]
    return [record.scores[name] for record in found if name in record.scores]


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_model(folder).state_dict()


def distance(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
    """Length of the difference of all weights."""
    return sum((t - others[name]).square().sum().item() for name, t in some.items()) ** 0.5


@dataclass(frozen=True)
class Twins:
    """The same run in one process and in two."""

    alone: Recipe
    divided: Recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("divided")


@pytest.fixture(scope="module")
def base(data, folder) -> Recipe:
    return recipe_of(data(*CHECKPOINT), samples(folder), folder / "run")


@pytest.fixture(scope="module")
def exact(base, folder) -> Twins:
    """What two processes do in the tests that are always run; starting them takes most of it."""
    measured = replace(
        base,
        optimizer=Optimizer(learning_rate=2e-4),  # Adam turns rounding into steps of this size
        validation=Validation(base.data, every=2),
        guard=Guard(base.data, every=3, top_k=8),
    )
    runs = twins(measured, folder, "exact")
    in_two_processes(folder, runs.divided)
    in_one_process(runs.alone)
    return runs


def twins(recipe: Recipe, folder: Path, name: str) -> Twins:
    return Twins(
        replace(recipe, output=str(folder / f"{name}-alone")),
        replace(recipe, output=str(folder / f"{name}-divided"), shard=True),
    )


def test_two_processes_with_divided_weights_have_the_losses_of_one(exact):
    alone, divided = records(exact.alone), records(exact.divided)
    assert [r.loss for r in divided] == pytest.approx([r.loss for r in alone], rel=1e-6)
    for one, two in zip(alone, divided, strict=True):
        assert two.grad_norm == pytest.approx(one.grad_norm, rel=1e-5)
        assert (two.tokens, two.tiles, two.samples) == (one.tokens, one.tiles, one.samples)
        assert one.grad_norm["total"] > 1  # and so clipped


def test_the_divided_run_met_every_kind_of_pack(exact):
    found = [pack for rank in (0, 1) for pack in packs(exact.divided, rank)]
    assert any(not pack.tiles for pack in found)
    assert any(pack.tiles and not pack.num_tiles for pack in found)
    assert any(not pack.num_tokens for pack in found)


def test_both_processes_run_vision_in_the_same_packs(exact):
    ran = [[bool(pack.tiles) for pack in packs(exact.divided, rank)] for rank in (0, 1)]
    assert ran[0] == ran[1]


def test_divided_weights_become_a_whole_model_in_the_end(exact):
    start = weights(exact.alone.model)
    alone, divided = (weights(r.output) for r in (exact.alone, exact.divided))
    assert distance(divided, alone) < 1e-2 * distance(alone, start)


def test_validation_of_divided_weights_is_that_of_whole_ones(exact):
    for name in ("loss", "total"):
        alone, divided = scores(exact.alone, name), scores(exact.divided, name)
        assert divided == pytest.approx(alone, rel=1e-5)
    best, last = (weights(Path(exact.divided.output) / name) for name in ("best", ""))
    assert distance(best, last) == 0  # the loss fell to the end


def test_the_guard_of_divided_weights_is_that_of_whole_ones(exact):
    alone, divided = scores(exact.alone, "guard.kl"), scores(exact.divided, "guard.kl")
    assert divided == pytest.approx(alone, rel=1e-3)
    assert min(alone) > 0


BYTES = Optimizer(learning_rate=1e-3, moments="8bit")
OTHERS = {
    "frozen": ({"freeze": Freeze()}, 1e-6),
    "last-layer": ({"freeze": Freeze(vision_last=1)}, 1e-6),
    "scratch": ({"from_scratch": True}, 1e-6),
    "bf16": ({"dtype": "bfloat16"}, 1e-2),
    "8bit": ({"dtype": "bfloat16", "freeze": Freeze(), "optimizer": BYTES}, 1e-2),
    "lora": ({"freeze": Freeze(), "lora": Lora(8, vision_rank=4, dropout=0.0, dora=True)}, 1e-6),
    "qlora": ({"freeze": Freeze(), "lora": Lora(8), "quantize": "nf4"}, 1e-6),
    "muon": ({"optimizer": Optimizer("muon", learning_rate=1e-3)}, 1e-4),
}
"""What a recipe changes, and how far losses may be from those of one process."""


@pytest.fixture(scope="module")
def other_runs(base, folder) -> dict[str, Twins]:
    """Each goes on in one process after half of the steps in two; one was begun in one."""
    runs = {}
    for name, (changes, _) in OTHERS.items():
        runs[name] = twins(replace(base, **changes), folder, name)
    in_one_process(unfinished(replace(runs["frozen"].divided, shard=False), 1))
    in_two_processes(folder, *(unfinished(run.divided, 3) for run in runs.values()))
    for run in runs.values():
        in_one_process(unfinished(replace(run.divided, shard=False), 6))
        in_one_process(unfinished(run.alone, 6))
    return runs


@pytest.mark.parametrize("name", OTHERS)
def test_every_optimizer_learns_the_same_from_divided_weights(other_runs, name):
    alone, divided = other_runs[name].alone, other_runs[name].divided
    assert len(losses(alone)) == 6
    assert losses(divided) == pytest.approx(losses(alone), rel=OTHERS[name][1])


def test_a_divided_tower_runs_in_all_processes_where_one_lacks_features(base, folder):
    plain = replace(base, freeze=Freeze(), output=str(folder / "uncached"))
    cached = replace(
        plain, feature_cache=str(folder / "features"), output=str(folder / "cached"), shard=True
    )
    in_one_process(unfinished(plain, 6))
    in_one_process(unfinished(replace(cached, output=str(folder / "first"), shard=False), 1))
    again = replace(cached, output=str(folder / "again"))
    in_two_processes(folder, unfinished(cached, 6), unfinished(again, 6))
    for recipe in (cached, again):
        assert losses(recipe) == pytest.approx(losses(plain), rel=1e-6)
    some, none = ([pack.num_encoded for pack in packs(r, 0)] for r in (cached, again))
    assert any(some)
    assert not any(none)


def test_one_process_divides_nothing_and_says_so(base, folder, monkeypatch):
    said = []
    monkeypatch.setattr(preparation.logger, "info", lambda *words: said.append(words[0]))
    in_one_process(unfinished(replace(base, output=str(folder / "one"), shard=True), 1))
    assert any("nothing is divided" in words for words in said)


def test_each_process_writes_its_part_of_a_checkpoint(exact):
    (newest,) = (Path(exact.divided.output) / "checkpoints").iterdir()
    sizes = [(newest / f"__{rank}_0.distcp").stat().st_size for rank in (0, 1)]
    assert max(sizes) < 1.1 * min(sizes)
