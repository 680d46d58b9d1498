"""Recorded data: where it lies, how it is read, and who may use it."""

import json
import os
import signal
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.util import find_spec
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import pytest
import torch

from internvl2.processing.tokenizer import Tokenizer

# The tests' models are tiny: threads would cost more than they bring.
torch.set_num_threads(1)
# What a shell starts in the background ignores Ctrl-C, and so would the programs that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

if not torch.cuda.is_available():
    # Kernels in Triton run in its interpreter then, which is decided when it is first imported.
    os.environ["TRITON_INTERPRET"] = "1"

HAS_TRITON = find_spec("triton") is not None
NEEDS = {
    "tyro": ["test_cli*.py", "test_docs_training.py", "test_nano.py"],
    "av": ["*/test_video.py", "*/test_preprocessing.py"],
    "rapidfuzz": ["*/test_metrics.py", "*/test_evaluate.py"],
    "triton": ["*/triton_kernels/test_*.py"],
}
"""Tests of what a machine may lack: with PyTorch for GPUs alone, or with PyTorch for CPUs."""
collect_ignore_glob = [
    pattern for package, tests in NEEDS.items() if find_spec(package) is None for pattern in tests
]

if find_spec("hypothesis"):
    from hypothesis import settings

    # The same examples on every machine; a busy one is not a fault.
    settings.register_profile("repeatable", deadline=None, derandomize=True)
    settings.load_profile("repeatable")

CORE = Path(__file__).parent / "data"
NANO = Path(__file__).parents[1] / "src" / "internvl2" / "assets" / "nano"
SHARED = Path(__file__).parents[2] / "shared"


def pytest_report_header() -> str | None:
    """Says what is left out, and why."""
    missing = [package for package in NEEDS if find_spec(package) is None]
    return f"left out, without {missing}: {collect_ignore_glob}" if missing else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what asks the trained nano, or Triton, where there is none."""
    is_there = {"trained": (NANO / "model.safetensors").is_file(), "triton": HAS_TRITON}
    absent = [marker for marker, found in is_there.items() if not found]
    asking = [item for item in items if any(map(item.get_closest_marker, absent))]
    items[:] = [item for item in items if item not in asking]
    if asking:
        config.hook.pytest_deselected(items=asking)


def recorded(*parts: str) -> Path:
    """A file or folder of recorded data: the project's own core, else ../shared, else skip."""
    for root in (CORE, SHARED / "fixtures", SHARED):
        if root.joinpath(*parts).exists():
            return root.joinpath(*parts)
    pytest.skip(f"recorded data {'/'.join(parts)} is not here: ../shared is absent")


@dataclass(frozen=True)
class Recording:
    """What the official code computed from one small random checkpoint."""

    folder: Path

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    @cached_property
    def expected(self) -> dict:
        return json.loads((self.folder / "expected.json").read_text())

    @cached_property
    def train(self) -> dict:
        return json.loads((self.folder / "train.json").read_text())

    @cached_property
    def arrays(self) -> dict[str, torch.Tensor]:
        return _tensors(self.folder / "expected.npz")

    @cached_property
    def train_arrays(self) -> dict[str, torch.Tensor]:
        return _tensors(self.folder / "train.npz")


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    with np.load(path) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@lru_cache
def _recording(case: str) -> Recording:
    return Recording(recorded("official", case))


@lru_cache
def _tokenizer(directory: Path) -> Tokenizer:
    return Tokenizer.from_directory(directory)


def _expand(run_lengths: list) -> list:
    return list(chain.from_iterable(repeat(value, count) for value, count in run_lengths))


@pytest.fixture(scope="session")
def data():
    """`data("official", "A_internlm2")` is the path of that recording; skips where it is absent."""
    return recorded


@pytest.fixture(scope="session")
def recording():
    """`recording("A_internlm2")` reads what the official code computed; skips where absent."""
    return _recording


@pytest.fixture(scope="session")
def expand():
    """`expand([[7, 3]])` is `[7, 7, 7]`: the run-length lists of the recordings."""
    return _expand


@pytest.fixture(scope="session")
def tokenizer_of():
    """The tokenizer in a directory, read once."""
    return _tokenizer
