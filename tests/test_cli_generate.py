"""`internvl2 generate`: which requests are answered, skipped or left out; what stays on disk."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from internvl2.cli import main
from internvl2.cli.options import MediaOptions
from internvl2.cli.request_file import read_requests, resume
from internvl2.processing.conversation import Picture

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "tests/data/official/A_internlm2/checkpoint"
PICTURE = ROOT / "tests/data/official/preprocessing/pictures/gray.png"
QUESTION = {"question": "Hello"}


@dataclass(frozen=True)
class Job:
    """A folder with requests, and what running them gave."""

    source: Path
    target: Path

    def answers(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.target.read_text().splitlines()]


Write = Callable[..., Job]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_requests(*requests: Any) -> Job:
        lines = [item if isinstance(item, str) else json.dumps(item) for item in requests]
        job = Job(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
        job.source.write_text("".join(line + "\n" for line in lines))
        return job

    return write_requests


@pytest.fixture
def generate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str]]:
    """Runs the command; its exit code and what it said on standard error."""

    def run(job: Job, *options: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        paths = (str(job.source), str(job.target), "--model", str(MODEL))
        code = main(["generate", *paths, "--max-tokens", "3", *options])
        captured = capsys.readouterr()
        assert captured.out == ""
        return code, captured.err

    return run


def test_every_request_is_answered(write: Write, generate: Callable[..., tuple[int, str]]):
    shutil.copy(PICTURE, write().source.parent / "a.png")
    content = [
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "text", "text": "What is this?"},
    ]
    job = write(
        {"id": "x", "question": "Hello"},
        {"image": "a.png", "question": "What is this?"},
        {"messages": [{"role": "user", "content": content}]},
    )
    code, _ = generate(job)
    answers = {answer["line"]: answer for answer in job.answers()}
    assert code == 0
    assert answers[1]["id"] == "x"
    assert answers[2]["text"] == answers[3]["text"]
    assert answers[2]["usage"]["image_tokens"] > 0


def test_a_line_that_cannot_be_answered_is_named_and_the_rest_is_answered(
    write: Write, generate: Callable[..., tuple[int, str]]
):
    job = write("{broken", {"image": "missing.png", **QUESTION}, QUESTION, {"quest": "x"}, "[1]")
    code, said = generate(job)
    assert code == 1
    assert [answer["line"] for answer in job.answers()] == [3]
    for line in (1, 2, 4, 5):
        assert f"{job.source}:{line}: " in said


def test_a_second_run_answers_only_what_is_missing(
    write: Write, generate: Callable[..., tuple[int, str]]
):
    job = write(QUESTION, {"id": 7, "question": "Hi"})
    generate(job)
    before = job.target.read_text()
    job = write(QUESTION, {"id": 7, "question": "Hi"}, {"id": "new", "question": "And you?"})
    code, _ = generate(job)
    assert code == 0
    assert job.target.read_text().startswith(before)
    assert [answer["line"] for answer in job.answers()[2:]] == [3]


def test_a_half_written_last_line_is_answered_again(
    write: Write, generate: Callable[..., tuple[int, str]]
):
    job = write(QUESTION, QUESTION)
    generate(job)
    whole = {answer["line"]: answer["text"] for answer in job.answers()}
    job.target.write_bytes(job.target.read_bytes()[:-20])
    assert generate(job)[0] == 0
    assert {answer["line"]: answer["text"] for answer in job.answers()} == whole


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path: Path):
    answers = tmp_path / "out.jsonl"
    answers.write_text('{"line": 1, "text": "a"}\n{"line": 2, "text": "b"}')
    assert resume(answers) == {"line 1", "line 2"}
    assert answers.read_text().endswith('"b"}\n')


def test_a_file_of_something_else_is_never_touched(
    write: Write, capsys: pytest.CaptureFixture[str]
):
    job = write(QUESTION)
    for content in ("my notes", "my notes\n", '{"a": 1}\n{"b'):
        job.target.write_text(content)
        assert main(["generate", str(job.source), str(job.target), "--model", str(MODEL)]) == 2
        assert job.target.read_text() == content
        assert str(job.target) in capsys.readouterr().err


def test_an_id_that_comes_twice_is_skipped(tmp_path: Path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"id": "a", "question": "x"}\n' * 2)
    skipped: list[int] = []
    requests = read_requests(source, set(), MediaOptions(), lambda line, _: skipped.append(line))
    assert [request.line for request in requests] == [1]
    assert skipped == [2]


def test_paths_are_relative_to_the_file_of_requests(tmp_path: Path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"images": ["a.png", "/b.png", "https://c/d.png"], "question": "x"}\n')
    (request,) = read_requests(source, set(), MediaOptions(), lambda *_: None)
    parts = request.messages[0].content
    found = [part.source for part in parts if isinstance(part, Picture)]
    assert found == [tmp_path / "a.png", Path("/b.png"), "https://c/d.png"]


def test_requests_are_read_only_when_they_are_wanted(tmp_path: Path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"question": "x"}\n' * 2 + "{broken\n")
    faults: list[int] = []
    requests = read_requests(source, set(), MediaOptions(), lambda line, _: faults.append(line))
    next(requests)
    assert faults == []


def test_numbers_of_engines_that_cannot_be_are_refused_early(
    write: Write, generate: Callable[..., tuple[int, str]]
):
    code, said = generate(write(QUESTION), "--data-parallel", "0")
    assert (code, "--data-parallel is 0" in said) == (2, True)
    code, said = generate(write(QUESTION), "--data-parallel", "2", "--device", "cuda:1")
    assert (code, "is one device" in said) == (2, True)


@pytest.mark.slow
def test_two_processes_answer_as_one_engine_does(
    write: Write, generate: Callable[..., tuple[int, str]]
):
    requests = [{"id": n, "question": "Tell me about " + "it " * n} for n in range(6)]
    job = write(
        *requests, {"image": "missing.png", **QUESTION}, {"image": str(PICTURE), **QUESTION}
    )
    assert generate(job, "--device", "cpu")[0] == 1
    alone = {answer["line"]: answer for answer in job.answers()}
    job.target.write_text(job.target.read_text().splitlines(keepends=True)[0])
    code, said = generate(job, "--device", "cpu", "--data-parallel", "2")
    assert code == 1
    assert "missing.png" in said
    assert "2 x cpu" in said
    assert {answer["line"]: answer for answer in job.answers()} == alone


@pytest.mark.slow
def test_an_interrupted_run_of_several_engines_leaves_no_process_and_goes_on(
    write: Write, generate: Callable[..., tuple[int, str]]
):
    job = write(*({"question": "Hello " * n} for n in range(1, 61)))
    paths = [str(job.source), str(job.target), "--model", str(MODEL)]
    options = [
        "--device",
        "cpu",
        "--data-parallel",
        "2",
        "--max-tokens",
        "400",
        "--min-tokens",
        "399",
    ]
    command = [sys.executable, "-m", "internvl2", "generate", *paths, *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen(command, env=environment, start_new_session=True) as process:
        wait_until(lambda: job.target.exists() and len(job.answers()) > 0)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=30) == 130
    wait_until(lambda: running_in(process.pid) == [])
    before = len(job.answers())
    assert before < 60
    assert generate(job, "--device", "cpu")[0] == 0
    assert len(job.answers()) == 60


def running_in(session: int) -> list[str]:
    """States of the processes of a session; those that nobody has taken leave of do not count."""
    command = ["ps", "-s", str(session), "-o", "stat="]
    listed = subprocess.run(command, capture_output=True, text=True).stdout.split()
    return [state for state in listed if not state.startswith("Z")]


def wait_until(is_so: Callable[[], bool]) -> None:
    ends = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < ends
        time.sleep(0.05)
