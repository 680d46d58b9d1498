"""`internvl2 data make`: what it writes, what it says, what it refuses."""

import json
import subprocess
import sys
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


def test_drawing_needs_no_torch(tmp_path: Path):
    code = (
        "import sys\n"
        "from internvl2.cli import main\n"
        f"assert main(['data', 'make', {str(tmp_path / 'set')!r}, '--count', '3']) == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT / "src", capture_output=True)
