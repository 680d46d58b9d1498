"""Programs that run in processes of their own, with the fake Ascend device on their path."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PATHS = (HERE / "fake", HERE.parents[1] / "src", HERE.parent)

Started = Callable[..., subprocess.Popen[str]]


def started(
    *command: str | Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Python, running a module or a program, where `import torch_npu` finds the fake."""
    own = {"PYTHONPATH": os.pathsep.join(map(str, PATHS)), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=os.environ | own | dict(environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="session")
def start_on_npu() -> Started:
    return started


@pytest.fixture(scope="session")
def run_on_npu():
    """`run_on_npu("chat.py", ...)` is what the program of this folder prints, as JSON."""

    def run(program: str, *arguments: str | Path, **environment: str):
        process = started(HERE / "programs" / program, *arguments, environment=environment)
        output, messages = process.communicate(timeout=600)
        assert process.returncode == 0, messages
        return json.loads(output)

    return run
