"""`internvl2 data convert`: files in, files out, one line for a mistake."""

import json
from pathlib import Path

import pytest
from PIL import Image

from internvl2.cli import main
from internvl2.processing.conversation import Message, Picture
from internvl2.train.data.formats import open_source


def drawn(folder: Path) -> Path:
    assert main(["data", "make", str(folder / "made"), "--count", "4", "--tasks", "reading"]) == 0
    return folder / "made/meta.json"


def coco(folder: Path) -> Path:
    Image.new("RGB", (200, 100)).save(folder / "street.jpg")
    content = {
        "images": [{"id": 1, "file_name": "street.jpg", "width": 200, "height": 100}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 2, "bbox": [20, 10, 40, 30]}],
        "categories": [{"id": 2, "name": "car"}],
    }
    (folder / "coco.json").write_text(json.dumps(content))
    return folder / "coco.json"


def messages(path: Path) -> list[tuple[Message, ...]]:
    source = open_source(path)
    return [source[index].messages for index in range(len(source))]


def test_a_drawn_set_goes_to_another_form_and_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    made, swift, back = drawn(tmp_path), tmp_path / "swift", tmp_path / "back"
    assert main(["data", "convert", str(made), str(swift), "--to", "swift"]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"wrote 4 samples; train with --data {swift / 'samples.jsonl'}" in shown.err
    lines = str(swift / "samples.jsonl")
    assert main(["data", "convert", lines, str(back), "--to", "official", "--copy-media"]) == 0
    found = messages(back / "meta.json")
    for old, new in zip(messages(made), found, strict=True):
        assert [message.text for message in old] == [message.text for message in new]
        pictures = [part for part in new[0].content if isinstance(part, Picture)]
        assert all(Path(str(part.source)).is_file() for part in pictures)


def test_coco_is_recognised_and_asked_about_in_given_words(tmp_path: Path):
    source, out = coco(tmp_path), tmp_path / "out"
    options = [
        "--to",
        "official",
        "--samples",
        "category",
        "--question",
        "Where is the {category}?",
    ]
    assert main(["data", "convert", str(source), str(out), *options]) == 0
    question, answer = messages(out / "meta.json")[0]
    assert question.text == "\nWhere is the car?"
    assert answer.text == "<ref>car</ref><box>[[100, 100, 300, 400]]</box>"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "csv"], "--to is 'csv'; known: 'official', 'llava'"),
        (["--to", "swift", "--boxes", "inch"], "--boxes is 'inch'; known: 'pixel', 'unit'"),
        (["--to", "swift", "--bare-boxes"], "--bare-boxes needs to know what they are in"),
        (["--to", "swift", "--drawn-on", "stored"], "--drawn-on needs to know what boxes are in"),
        (["--to", "swift", "--empty"], "--samples, --question and --empty are for coco"),
        (["--to", "swift", "--root", "nowhere"], "the root nowhere is no folder"),
        (["--to", "swift", "--skip-bad", "-1"], "--skip-bad is -1; give 0 or more"),
        (["--to", "swift", "--from", "coco"], "'images' is no list of objects"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]
    (tmp_path / "set.jsonl").write_text(json.dumps({"conversations": turns}) + "\n")
    source = str(tmp_path / "set.jsonl")
    assert main(["data", "convert", source, str(tmp_path / "out"), *options]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["set.jsonl"]


def test_boxes_of_coco_need_no_unit(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = ["--to", "official", "--boxes", "pixel"]
    assert main(["data", "convert", str(coco(tmp_path)), str(tmp_path / "out"), *options]) == 2
    assert "--boxes is for records; coco has its boxes in pixels" in capsys.readouterr().err
