"""`--tensor-parallel`: what is refused at once, equal answers, and an end that leaves nothing."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from internvl2.cli import main

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "tests/data/official/A_internlm2/checkpoint"
PICTURE = ROOT / "tests/data/official/preprocessing/pictures/gray.png"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def run_main(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        code = main(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_main


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tensor-parallel", "0"), "--tensor-parallel is 0; it must be at least 1"),
        (("--tensor-parallel", "2", "--device", "cuda:1"), "--device cuda:1 is one device"),
        (("--tensor-parallel", "3", "--device", "cpu"), "tensor_parallel can be 1, 2, 4"),
    ],
)
def test_what_cannot_be_divided_is_one_line(run: Run, options: tuple[str, ...], message: str):
    code, _, said = run("chat", "--model", str(MODEL), *options, "Hello")
    assert (code, said.count("\n")) == (2, 1)
    assert message in said


def test_one_model_and_several_do_not_go_together(run: Run, tmp_path: Path):
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"question": "Hello"}\n')
    several = ("--tensor-parallel", "2", "--data-parallel", "2")
    code, _, said = run("generate", str(asked), str(tmp_path / "answers.jsonl"), *several)
    assert (code, "give one of the two" in said) == (2, True)


@pytest.mark.slow
def test_two_processes_answer_as_one_does(run: Run):
    asked = ("--device", "cpu", "--dtype", "float32", "--image", str(PICTURE), "--max-tokens", "8")
    command = ("chat", "--model", str(MODEL), *asked, "--json", "What is this?")
    alone, divided = (json.loads(run(*command, "--tensor-parallel", n)[1]) for n in "12")
    assert len(divided["token_ids"]) == 8
    assert divided["token_ids"] == alone["token_ids"]


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupted_run_leaves_no_process(tmp_path: Path, times: int):
    asked, answers = tmp_path / "asked.jsonl", tmp_path / "answers.jsonl"
    asked.write_text("".join(json.dumps({"question": "Hello " * n}) + "\n" for n in range(1, 61)))
    length = ["--max-tokens", "300", "--min-tokens", "299"]
    options = ["--model", str(MODEL), "--device", "cpu", "--tensor-parallel", "2", *length]
    command = [sys.executable, "-m", "internvl2", "generate", str(asked), str(answers), *options]
    own = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=os.environ | own, start_new_session=True) as process:
        wait_until(lambda: answers.exists() and bool(answers.read_text()))
        (follower,) = children(process.pid)
        for _ in range(times):
            os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 130
    wait_until(lambda: not Path(f"/proc/{follower}").exists())


def children(pid: int) -> list[int]:
    command = ["ps", "--ppid", str(pid), "-o", "pid="]
    return [int(n) for n in subprocess.run(command, capture_output=True, text=True).stdout.split()]


def wait_until(is_so: Callable[[], bool]) -> None:
    ends = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < ends
        time.sleep(0.05)
