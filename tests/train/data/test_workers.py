"""Worker processes outlive a signal to the whole run, and are missed when they die."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Container
from dataclasses import replace

import pytest
from PIL import Image

from internvl2.config import DecoderConfig, InternVLConfig, RotaryConfig, VisionConfig
from internvl2.processing.conversation import Message, Picture
from internvl2.processing.processor import Processor
from internvl2.train.data import workers as workers_module
from internvl2.train.data.dataset import Dataset
from internvl2.train.data.filling import Limits
from internvl2.train.data.formats import from_records
from internvl2.train.data.workers import Make, Measure, Workers

UNGUARDED = """
import pickle
from pathlib import Path
from internvl2.train.data.workers import Measure, Workers
workers = Workers(pickle.loads(Path("dataset.pickle").read_bytes()), 2)
workers.submit(Measure(0, 1))()
"""
"""Each process that it starts begins it anew, which Python ends with an error."""


@pytest.fixture
def dataset(data) -> Dataset:
    vision = VisionConfig(16, 1, 2, 32, image_size=56)
    decoder = DecoderConfig("qwen2", 1000, 16, 1, 2, 2, 8, 32, 4096, RotaryConfig(1e4))
    config = InternVLConfig(vision, decoder, "Hermes-2", tile_size=56)
    processor = Processor.from_directory(data("official", "B_qwen2", "checkpoint"), config)
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    return Dataset(from_records([{"conversations": turns}] * 4), processor, Limits(256, 0))


@pytest.fixture
def workers(dataset):
    workers = Workers(dataset, 1)
    yield workers
    workers.close()


@pytest.fixture
def pictures(dataset) -> Dataset:
    turns = (Message.user(Picture(Image.new("RGB", (56, 56), "red")), "?"), Message.assistant("a"))
    return replace(dataset, source=from_records([turns] * 2), limits=Limits(256, 2))


def own_children(before: Container[int | None]) -> list[int]:
    pids = [child.pid for child in multiprocessing.active_children()]
    return [pid for pid in pids if pid is not None and pid not in before]


def test_workers_finish_their_packs_after_a_signal_to_all(dataset, workers):
    before = {child.pid for child in multiprocessing.active_children()}
    assert workers.submit(Measure(0, 2))() == Measure(0, 2)(dataset)
    for pid in own_children(before):
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    made = workers.submit(Make((0, 1), "evenly", "token", (0,)))()
    assert len(made.pack.where) == 2


def test_a_worker_that_died_is_one_clear_error(workers):
    before = {child.pid for child in multiprocessing.active_children()}
    workers.submit(Measure(0, 1))()
    for pid in own_children(before):
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(ChildProcessError, match="a worker process of the data set died"):
        deque(workers.submit(Measure(0, 1))() for _ in range(100))


@pytest.mark.slow
def test_a_worker_that_dies_while_it_starts_is_one_clear_error(dataset, tmp_path):
    turns = [Message.user("word " * (1 << 16)), Message.assistant("more than a pipe holds")]
    large = replace(dataset, source=from_records([turns]))
    (tmp_path / "dataset.pickle").write_bytes(pickle.dumps(large))
    program = tmp_path / "program.py"
    program.write_text(UNGUARDED)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, str(program)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        timeout=60,
    )
    assert run.returncode == 1
    assert b"a worker process of the data set died" in run.stderr


def test_memory_that_others_need_is_left_to_them(pictures, tmp_path, monkeypatch):
    made = Make((0, 1), "evenly", "token", (0, 2))(pictures)
    assert workers_module._laid_down(made, tmp_path) is not made
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(workers_module, "SPARE", 1 << 60)
    assert workers_module._laid_down(made, tmp_path) is made
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("has_room", [True, False])
def test_tiles_pass_through_memory_or_a_pipe_and_nothing_is_left(
    pictures, tmp_path, monkeypatch, has_room
):
    monkeypatch.setattr(workers_module, "MEMORY", tmp_path)
    workers = Workers(pictures, 1)
    (folder,) = tmp_path.iterdir()
    if not has_room:
        folder.rmdir()
    task = Make((0, 1), "evenly", "token", (0, 2))
    tiles = workers.submit(task)().pack.tiles
    assert (tiles == task(pictures).pack.tiles).all()
    assert tiles.any()
    assert not has_room or not list(folder.iterdir())
    workers.close()
    assert not list(tmp_path.iterdir())


def test_a_negative_number_of_workers_is_refused(dataset):
    with pytest.raises(ValueError, match="-1 worker processes"):
        Workers(dataset, -1)
