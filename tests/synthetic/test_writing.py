"""Data sets on disk: the official format, going on after an interruption, and what is refused."""

import json
from pathlib import Path

import pytest

from internvl2.synthetic.writing import META, REQUEST, SAMPLES, Request, write_set


class Stopped(Exception):
    """The run ends here, as by a signal."""


def write(folder: Path, request: Request, stop_after: int | None = None) -> int:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if done == stop_after:
            raise Stopped

    return write_set(folder, request, advance)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / SAMPLES).read_text("utf-8").splitlines()]


def test_an_interrupted_set_goes_on_to_the_same_files(tmp_path: Path):
    request = Request(12, ("reading", "talk", "several", "video"), "test", seed=4)
    write(tmp_path / "whole", request)
    with pytest.raises(Stopped):
        write(tmp_path / "parts", request, stop_after=5)
    with (tmp_path / "parts" / SAMPLES).open("a") as file:
        file.write('{"id": 5, "ta')
    assert write(tmp_path / "parts", request) == 7
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_one_picture_is_named_with_its_size(tmp_path: Path):
    write(tmp_path, Request(3, ("reading",)))
    for record in records(tmp_path):
        assert (tmp_path / record["image"]).is_file()
        assert record["conversations"][0]["value"].startswith("<image>\n")
        assert isinstance(record["width"], int)


def test_several_pictures_are_numbered(tmp_path: Path):
    write(tmp_path, Request(3, ("several",)))
    for record in records(tmp_path):
        assert len(record["image"]) == len(record["width"]) >= 2
        assert record["conversations"][0]["value"].startswith(
            "Image-1: <image>\nImage-2: <image>\n"
        )


def test_a_video_is_a_folder_of_frames(tmp_path: Path):
    write(tmp_path, Request(2, ("video",)))
    for record in records(tmp_path):
        assert len(list((tmp_path / record["video"]).glob("*.png"))) >= 4
        assert record["conversations"][0]["value"].startswith("<video>\n")


def test_the_trainer_reads_what_was_written(tmp_path: Path):
    from internvl2.train.data.formats import SourceOptions, open_source

    write(tmp_path, Request(10, ("reading", "several", "video", "talk", "grounding")))
    source = open_source(tmp_path / META, SourceOptions())
    assert source is not None
    entry = json.loads((tmp_path / META).read_text())["synthetic-train"]
    assert entry["length"] == 10


def test_a_finished_set_is_left_alone(tmp_path: Path):
    write(tmp_path, Request(2, ("talk",)))
    with pytest.raises(ValueError, match="holds a finished set"):
        write(tmp_path, Request(2, ("talk",)))


def test_a_folder_with_other_files_is_refused(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty; give a new folder"):
        write(tmp_path, Request(2, ("talk",)))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_unfinished_set_of_other_options_is_refused(tmp_path: Path):
    with pytest.raises(Stopped):
        write(tmp_path, Request(4, ("talk",), seed=1), stop_after=2)
    with pytest.raises(ValueError, match="unfinished set with seed 1, not 2"):
        write(tmp_path, Request(4, ("talk",), seed=2))


def test_a_damaged_request_is_refused(tmp_path: Path):
    (tmp_path / REQUEST).write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        write(tmp_path, Request(4, ("talk",)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count is 0; give at least 1"),
        ({"difficulty": 1.5}, "difficulty is 1.5; give 0 to 1"),
        ({"seed": -1}, "seed is -1; give 0 or more"),
        ({"tasks": ("poems",)}, "unknown task 'poems'"),
    ],
)
def test_requests_that_make_no_sense_are_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Request(**({"count": 5, "tasks": ()} | options))


def test_seeds_share_no_sample():
    first, second = (Request(1, ("reading",), seed=seed).sample(0) for seed in (1, 2))
    assert first.turns != second.turns
