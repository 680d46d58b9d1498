"""What carries a checkpoint's name is whole, whatever happens while one is written."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from internvl2.train import checkpointer
from internvl2.train.checkpointer import MANIFEST, Checkpointer, Progress
from internvl2.train.parallel import World

ALONE = World(0, 1, torch.device("cpu"))


def tensors(step: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(step)
    half = torch.randn(8).bfloat16()
    return {"weight": torch.randn(64, 32), "half": half, "n": torch.tensor(step)}


def save(folder: Path, *steps: int, keep: int = 2) -> None:
    writer = Checkpointer(folder, ALONE, keep)
    for step in steps:
        writer.save(Progress(step, {"sample": step * 10}), tensors(step))
    writer.finish()
    writer.close()


@dataclass
class Saved:
    progress: Progress
    tensors: dict[str, torch.Tensor]


def load(folder: Path) -> Saved | None:
    tensors = {}

    def places(stored):
        tensors.update({n: torch.empty(t.shape, dtype=t.dtype) for n, t in stored.items()})
        return tensors

    progress = Checkpointer(folder, ALONE, 2).load(places)
    return None if progress is None else Saved(progress, tensors)


def test_the_last_checkpoint_comes_back_bit_by_bit(tmp_path):
    save(tmp_path, 1, 2)
    saved = load(tmp_path)
    assert saved.progress == Progress(2, {"sample": 20})
    assert all(torch.equal(saved.tensors[n], t) for n, t in tensors(2).items())
    assert {n: t.dtype for n, t in saved.tensors.items()} == {
        n: t.dtype for n, t in tensors(2).items()
    }


def test_a_folder_without_checkpoints_has_none(tmp_path):
    assert load(tmp_path / "new") is None


def test_only_the_last_ones_are_kept(tmp_path):
    save(tmp_path, 1, 2, 3, 4, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


def test_what_is_saved_does_not_change_with_the_tensor(tmp_path):
    writer = Checkpointer(tmp_path, ALONE, 1)
    weight = torch.zeros(1000)
    writer.save(Progress(1, {}), {"weight": weight})
    weight.fill_(1)
    writer.finish()
    assert load(tmp_path).tensors["weight"].sum() == 0


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "manifest"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(tmp_path, damage, monkeypatch):
    save(tmp_path, 1, 2)
    newest = tmp_path / "step-00000002"
    file = max(newest.glob("*.distcp"), key=lambda p: p.stat().st_size)
    content = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(content[:-10])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "missing":
        file.unlink()
    else:
        (newest / MANIFEST).write_text("{")
    said = []
    monkeypatch.setattr(checkpointer.logger, "warning", lambda *words: said.append(words))
    assert load(tmp_path).progress.step == 1
    assert said[0][1].name == "step-00000002"


def test_only_damaged_checkpoints_are_an_error(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "step-00000001" / MANIFEST).unlink()
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged"):
        load(tmp_path)


def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(tmp_path):
    save(tmp_path, 1)
    writer = Checkpointer(tmp_path, ALONE, 2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    try:
        writer.save(Progress(2, {}), {"weight": torch.zeros(2**20)})
        with pytest.raises(
            OSError, match=r"step-00000002 was not written.*File too large"
        ) as caught:
            writer.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert load(tmp_path).progress.step == 1
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


SAVES_FOR_EVER = """
import sys, torch
from dataclasses import dataclass
from pathlib import Path
from internvl2.train import checkpointer
from internvl2.train.checkpointer import Checkpointer, Progress
from internvl2.train.parallel import World
writer = Checkpointer(Path(sys.argv[1]), World(0, 1, torch.device("cpu")), 2)
for step in range(1, 10**6):
    writer.save(Progress(step, {}), {"weight": torch.full((2**20,), float(step))})
    print(step, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.013, 0.04])
def test_a_kill_while_writing_leaves_a_whole_checkpoint(tmp_path, delay):
    source = str(Path(__file__).parents[2] / "src")
    child = subprocess.Popen(
        [sys.executable, "-c", SAVES_FOR_EVER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": source},
    )
    with child:
        begun = 0
        while begun < 4:
            begun = int(child.stdout.readline())
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
    saved = load(tmp_path)
    assert saved.progress.step >= begun - 2
    assert (saved.tensors["weight"] == saved.progress.step).all()
    assert not list(tmp_path.glob(".step-*"))
