"""Directories that are being written: one's own stays, what killed processes left goes."""

import fcntl
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from internvl2.checkpoint.partial import partial_directory

KILLED = """
import os, signal, sys
from pathlib import Path
from internvl2.checkpoint.partial import partial_directory
with partial_directory(Path(sys.argv[1])) as partial:
    (partial / "weights").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_directory_goes_away_unless_it_is_renamed(tmp_path: Path):
    with partial_directory(tmp_path / "new") as partial:
        assert partial.parent == tmp_path
        assert partial.name.startswith(".new.")
    assert names(tmp_path) == []
    with partial_directory(tmp_path / "new") as partial:
        (partial / "weights").write_text("whole")
        partial.rename(tmp_path / "new")
    assert names(tmp_path) == ["new"]
    assert (tmp_path / "new" / "weights").read_text() == "whole"


def test_what_a_killed_process_left_goes_away_when_the_next_begins(tmp_path: Path):
    command = [sys.executable, "-c", KILLED, tmp_path / "n[e]w"]
    killed = subprocess.run(command, env=os.environ | {"PYTHONPATH": "src"}, check=False)
    assert killed.returncode == -9
    (left,) = names(tmp_path)
    assert left.startswith(".n[e]w.")
    with partial_directory(tmp_path / "other"):
        assert left in names(tmp_path)
    with partial_directory(tmp_path / "n[e]w") as partial:
        assert names(tmp_path) == [partial.name] != [left]


def test_what_is_being_written_elsewhere_for_the_same_place_stays(tmp_path: Path):
    with partial_directory(tmp_path / "new") as one, partial_directory(tmp_path / "new") as other:
        assert names(tmp_path) == sorted([one.name, other.name])


def test_a_directory_that_another_process_takes_for_left_over_is_begun_anew(tmp_path, monkeypatch):
    made, make = [], tempfile.mkdtemp

    def mkdtemp(**options: str) -> str:
        made.append(make(**options))
        if len(made) == 1:
            Path(made[0]).rmdir()
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
    with partial_directory(tmp_path / "new") as partial:
        assert [str(partial)] == made[1:]
        assert partial.is_dir()


def test_a_lock_on_the_folder_above_holds_nobody_up(tmp_path: Path):
    above = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(above, fcntl.LOCK_EX)
    with partial_directory(tmp_path / "new") as partial:
        assert partial.is_dir()
    os.close(above)
