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
from internvl2.train.log import StepRecord, read_records
from internvl2.train.recipe import DataSource, Freeze, Optimizer, Packing, Recipe, Schedule
from internvl2.train.recipe import Validation
from internvl2.train.trainer import Trainer

SOURCE = Path(__file__).parents[2] / "src"
STEPS = 6
PROCESS = """
import json, os, sys
from pathlib import Path
from internvl2.train import step_loss
from internvl2.train.recipe import Recipe
from internvl2.train.trainer import Trainer

plain, seen = step_loss.pack_loss, []

def watched(model, batch, scale):
    seen.append([len(batch.tiles), batch.num_tiles, batch.num_tokens])
    return plain(model, batch, scale)

step_loss.pack_loss = watched
for port, file in zip(sys.argv[1].split(","), sys.argv[2:]):
    os.environ["MASTER_PORT"] = port
    seen.clear()
    Trainer(Recipe.read(file)).run()
    Path(f"{file}.{os.environ['RANK']}").write_text(json.dumps(seen))
"""


@dataclass(frozen=True)
class Pack:
    tiles: int
    num_tiles: int
    num_tokens: int


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
        schedule=Schedule("constant", 0.0, epochs=2),
        packing=Packing(tokens=192, tiles=4, window=4),
        packs_per_step=4,
        max_tiles=1,
        drop_path=0.2,
        workers=0,
        dtype="float32",
        device="cpu",
        save_every=100,
    )


def in_two_processes(*recipes: Recipe) -> None:
    """Runs recipes one after the other in the same two processes."""
    files, ports = [], []
    for recipe in recipes:
        files.append(f"{recipe.output}.toml")
        recipe.write(Path(files[-1]))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(str(free.getsockname()[1]))
    own = {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, ",".join(ports), *files],
            env=os.environ | own | {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    messages = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], messages


def packs(recipe: Recipe, rank: int) -> list[Pack]:
    """What a process ran."""
    return [Pack(*pack) for pack in json.loads(Path(f"{recipe.output}.toml.{rank}").read_text())]


def records(recipe: Recipe) -> list[StepRecord]:
    return read_records(Path(recipe.output) / "metrics.jsonl")[0]


def losses(recipe: Recipe) -> list[float]:
    return [record.loss for record in records(recipe)]
