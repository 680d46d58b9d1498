"""`internvl2 data make`: what it writes, what it says, what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from internvl2.cli import main

ROOT = Path(__file__).parents[1]


def test_it_writes_pictures_and_the_official_jsonl(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "new" / "set"
    assert main(["data", "make", str(folder), "--count", "5", "--tasks", "reading", "talk"]) == 0
    lines = (folder / "samples.jsonl").read_text("utf-8").splitlines()
    assert {json.loads(line)["task"] for line in lines} <= {"reading", "talk"}
    assert len(lines) == 5
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "meta.json" in shown.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "poems"], "unknown task 'poems'; known: reading"),
        (["--count", "0"], "count is 0; give at least 1"),
        (["--split", "all"], "invalid choice 'all' for argument '--split'"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["data", "make", str(tmp_path / "set"), *arguments]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert not (tmp_path / "set").exists()


def test_a_file_instead_of_a_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "set").write_text("")
    assert main(["data", "make", str(tmp_path / "set")]) == 2
    assert "is a file; give a folder" in capsys.readouterr().err


def test_another_action_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["data", "mend", str(tmp_path / "set")]) == 2
    assert "known" in capsys.readouterr().err


@pytest.mark.slow
def test_drawing_needs_no_torch(tmp_path: Path):
    code = (
        "import sys\n"
        "from internvl2.cli import main\n"
        f"assert main(['data', 'make', {str(tmp_path / 'set')!r}, '--count', '3']) == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT / "src", capture_output=True)


def checked(
    arguments: list[str], capsys: pytest.CaptureFixture[str], answer: str = "a word"
) -> tuple[int, str]:
    """What `data check` says of a set of one sample, in the current folder."""
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": answer}]
    Path("set.jsonl").write_text(json.dumps({"conversations": turns}) + "\n", "utf-8")
    Path("nano.toml").write_text('model = "nano"\n[[data]]\npath = "set.jsonl"\n')
    code = main(["data", "check", "nano.toml", *arguments])
    return code, capsys.readouterr().out


def test_a_check_says_what_is_learned_and_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    code, out = checked(["--preview", "page.html"], capsys)
    assert code == 0
    assert "samples  1, 1 usable" in out
    assert "{+a word<|im_end|>+}" in out
    assert "the run: 1 step of 32 packs; so few change little: lower --packs-per-step" in out
    assert out.splitlines()[-1] == "no faults, 0 warnings"
    assert "<mark>a word" in Path("page.html").read_text("utf-8")


def test_a_run_of_few_short_steps_is_told_to_take_more_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    _, out = checked(["--packs-per-step", "1"], capsys)
    assert "the run: 1 step of 1 pack; so few change little: lengthen the schedule\n" in out


def test_faults_make_the_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    code, out = checked(["--json"], capsys, answer=" ")
    found = json.loads(out)
    assert code == 1
    assert found["has_faults"]
    assert found["sets"][0]["found"][0]["first"][0]["where"] == "set.jsonl:1"


def test_a_check_takes_the_options_of_a_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    code, out = checked(["--packing.tokens", "8", "--show", "0"], capsys)
    assert code == 1
    assert "a pack holds 8 (packing.tokens)" in out


def test_questions_and_the_guard_are_looked_at_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    asked = [
        {"question": "What?", "answer": "a word"},
        {"question": "Who?", "answer": "<box>[[9, 9, 1, 1]]</box>"},
        {"question": "Where?", "answer": "there", "image": "gone.png"},
    ]
    Path("asked.jsonl").write_text("\n".join(map(json.dumps, asked)), "utf-8")
    others = ["--validation.questions", "asked.jsonl", "--guard.data", "gone.jsonl", "--json"]
    code, out = checked(others, capsys)
    _, questions, guard = json.loads(out)["sets"]
    assert code == 1
    found = {each["kind"]: each["first"] for each in questions["found"]}
    assert found["unreadable media"][0]["where"] == "asked.jsonl:3"
    assert found["also trained on"][0]["where"] == "asked.jsonl:1"
    assert len(found) == 2
    assert (questions["usable"], guard["use"]) == (2, "guard")
    assert "absent" in guard["closed"]


def test_questions_that_cannot_be_read_are_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    Path("asked.jsonl").write_text('{"question": "What?"}\n')
    code, out = checked(["--validation.questions", "asked.jsonl"], capsys)
    assert code == 1
    assert "cannot be opened: asked.jsonl:1: the record has no right answer" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "0"], "limit is 0; it must be at least 1"),
        (["--preview", "no/folder/page.html"], "there is no folder"),
    ],
)
def test_mistakes_in_a_check_are_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nano.toml").write_text('model = "nano"\n')
    assert main(["data", "check", "nano.toml", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_an_interrupted_check_says_what_it_has_found(tmp_path: Path):
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "word " * 600}]
    line = json.dumps({"conversations": turns}) + "\n"
    (tmp_path / "set.jsonl").write_text(line * 20_000, "utf-8")
    (tmp_path / "nano.toml").write_text('model = "nano"\n[[data]]\npath = "set.jsonl"\n')
    command = [sys.executable, "-m", "internvl2", "data", "check", "nano.toml", "--workers", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(
        [*command, "--packing.tokens", "4096"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    began = time.monotonic()
    while len(children.read_text().split()) < 3 and time.monotonic() - began < 60:
        time.sleep(0.1)  # until both workers and the tracker of their locks are there
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert out.splitlines()[-1].startswith("interrupted")
    assert process.returncode == 130
