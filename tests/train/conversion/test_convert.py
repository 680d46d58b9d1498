"""Data sets from form to form: nothing lost, nothing silently changed, all or nothing there."""

import io
import json
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from internvl2.processing.conversation import Message, Picture, Video
from internvl2.train.conversion.convert import Conversion, Converted, convert
from internvl2.train.conversion.forms import FORMS, FormName
from internvl2.train.conversion.placing import inline
from internvl2.train.conversion.record_sets import BoxOptions
from internvl2.train.data.formats import SampleError, open_source

SIDE = 40


def said(question: str, answer: str = "A dog.") -> list[dict]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def official(question: str, answer: str = "A dog.", **fields) -> dict:
    return {**fields, "conversations": said(question, answer)}


RECORDS = {
    "single": official("<image>\nWhat is it?", image="in/a.png", id="one"),
    "within": official("Here: <image> What is it?", image="in/a.png"),
    "turns": {"image": "in/a.png", "conversations": said("<image>\nWhat?") + said("Why? 狗")},
    "text": official("Hello"),
    "system": {"conversations": [{"from": "system", "value": "Be brief."}, *said("Hello")]},
    "several": official(
        "Image-1: <image>\nImage-2: <image>\nBoth?", image=["in/a.png", "in/b.png"]
    ),
    "bare": official("<image><image>\nBoth?", image=["in/a.png", "in/b.png"]),
    "video": official("<video>\nWhat moves?", video="in/v.mp4"),
    "clip": official("<video>\nWhat moves?", video="in/v.mp4", clip=[1.0, 2.5]),
}
HELD = {
    "official": set(RECORDS),
    "llava": {"single", "within", "turns", "text"},
    "sharegpt": set(RECORDS) - {"clip"},
    "openai": set(RECORDS),
    "swift": set(RECORDS) - {"clip"},
    "parquet": set(RECORDS),
}
RELAID = {"within", "bare"}
"""As parts of a message these pictures get labels and line breaks."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (SIDE, SIDE // 2), colour).save(tmp_path / "in" / f"{name}.png")
    (tmp_path / "in/v.mp4").write_bytes(b"\0\0\0\x18ftypisom")
    return tmp_path


def lines(path: Path, *records: dict) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


def run(source: Path, name: str, form: FormName, **options) -> Converted:
    return convert(Conversion(source, source.parent / name, form, **options))


def read(path: Path) -> list[tuple[Message, ...]]:
    source = open_source(path)
    return [normal(source[index].messages) for index in range(len(source))]


def normal(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """A conversation as its prompt is, wherever the files of its media are named from."""
    return tuple(
        Message(
            message.role,
            tuple(
                replace(part, source=os.path.realpath(part.source))
                if isinstance(part, Picture | Video) and isinstance(part.source, Path)
                else part
                for part in message.content
            ),
        )
        for message in inline(messages)
    )


@pytest.mark.parametrize(
    "first", [pytest.param(f, marks=() if f == "official" else pytest.mark.slow) for f in FORMS]
)
def test_a_set_says_the_same_in_every_form(folder: Path, first: FormName):
    if first == "parquet":
        pytest.importorskip("pyarrow")
    for second in FORMS:
        names = HELD[first] & HELD[second] - (RELAID if "openai" in (first, second) else set())
        original = [record for name, record in RECORDS.items() if name in names]
        wanted = read(lines(folder / "wanted.jsonl", *original))
        base = folder / f"{first}-{second}"
        base.mkdir()
        source = convert(Conversion(folder / "wanted.jsonl", base / "a", first)).main
        done = convert(Conversion(source, base / "b", second))
        assert read(done.main) == wanted
        assert done.samples == len(names)


@pytest.mark.parametrize("form", FORMS)
def test_what_a_form_cannot_hold_names_the_sample_and_a_form_that_can(folder: Path, form: FormName):
    for name in sorted(RECORDS.keys() - HELD[form]):
        source = lines(folder / "one.jsonl", RECORDS["text"], RECORDS[name])
        with pytest.raises(SampleError, match=f"one.jsonl:2: {form} cannot hold .*openai") as error:
            run(source, "out", form)
        assert (
            "several pictures" in str(error.value)
            or "video" in str(error.value)
            or "system" in str(error.value)
        )
    assert not (folder / "out").exists()


def test_settings_that_only_openai_has_are_not_dropped(folder: Path):
    link = {"url": "in/a.png", "detail": "low"}
    parts = [{"type": "image_url", "image_url": link}, {"type": "text", "text": "What?"}]
    chat = [{"role": "user", "content": parts}, {"role": "assistant", "content": "A dog."}]
    source = lines(folder / "chat.jsonl", {"messages": chat})
    with pytest.raises(SampleError, match=r"official cannot hold a tile budget.*; openai can"):
        run(source, "out", "official")
    assert read(run(source, "out", "openai").main)[0][0].content[0] == Picture(
        str(folder / "in/a.png"), max_tiles=1, inline=True
    )


def test_the_word_image_stays_a_word(folder: Path):
    parts = [{"type": "text", "text": "What is an <image>?"}]
    chat = [{"role": "user", "content": parts}, {"role": "assistant", "content": "A tag."}]
    source = lines(folder / "chat.jsonl", {"messages": chat})
    with pytest.raises(
        SampleError, match="swift cannot hold the words <image> or <video> as plain"
    ):
        run(source, "out", "swift")
    assert read(run(source, "out", "openai").main) == read(source)


def test_pictures_that_stand_bare_are_counted_where_they_cannot(folder: Path):
    source = lines(folder / "set.jsonl", *(RECORDS[name] for name in ("single", "within", "bare")))
    done = run(source, "out", "openai")
    assert "samples whose pictures get the labels and line breaks of a prompt: 2" in done.notes


def test_the_official_form_has_a_meta_file_with_lengths(folder: Path):
    source = lines(folder / "set.jsonl", RECORDS["single"], RECORDS["text"])
    done = run(source, "out", "official")
    assert done.main == folder / "out/meta.json"
    told = {"data_augment": False, "repeat_time": 1.0, "length": 2}
    wanted = {"set": {"root": "", "annotation": "set.jsonl"} | told}
    assert json.loads(done.main.read_text()) == wanted
    first = json.loads((folder / "out/set.jsonl").read_text().splitlines()[0])
    assert (first["id"], first["image"]) == ("one", "../in/a.png")


def test_sets_of_a_meta_file_keep_what_it_says_of_them(folder: Path):
    lines(folder / "x.jsonl", RECORDS["text"], RECORDS["text"])
    lines(folder / "y.jsonl", RECORDS["single"])
    meta = {
        "a/b": {"annotation": "x.jsonl", "repeat_time": 0.5, "max_dynamic_patch": 6},
        "a b": {"annotation": "y.jsonl", "data_augment": True},
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(
        ValueError, match=r"'a/b' has repeats.* which swift cannot hold; official can"
    ):
        run(folder / "meta.json", "out", "swift")
    done = run(folder / "meta.json", "out", "official")
    found = json.loads(done.main.read_text())
    assert (found["a/b"]["repeat_time"], found["a/b"]["max_dynamic_patch"]) == (0.5, 6)
    assert (found["a/b"]["length"], found["a b"]["data_augment"]) == (2, True)
    assert found["a/b"]["annotation"] != found["a b"]["annotation"]
    assert read(done.main) == read(folder / "meta.json")


def test_bytes_in_parquet_become_files_and_go_back_into_rows(folder: Path):
    pytest.importorskip("pyarrow")
    names = [RECORDS[name] for name in ("single", "several", "video")]
    source = lines(folder / "set.jsonl", *names)
    packed = run(source, "packed", "parquet", copy_media=True).main
    picture = open_source(packed)[0].messages[0].content[0]
    assert isinstance(picture, Picture)
    assert picture.source == (folder / "in/a.png").read_bytes()
    assert [path.suffix for path in (folder / "packed/media").rglob("*.*")] == [".mp4"]
    done = run(packed, "../unpacked", "official")
    first = json.loads((folder / "unpacked/samples.jsonl").read_text().splitlines()[0])
    assert (folder / "unpacked" / first["image"]).read_bytes() == (folder / "in/a.png").read_bytes()
    assert len(list((done.main.parent / "media").rglob("*.png"))) == 2


def test_copied_media_make_a_set_that_can_be_moved(folder: Path):
    done = run(lines(folder / "set.jsonl", *RECORDS.values()), "out", "official", copy_media=True)
    (folder / "out").rename(folder / "moved")
    (folder / "in").rename(folder / "gone")
    for messages in (record.messages for record in iter_records(folder / "moved/meta.json")):
        media = [part for m in messages for part in m.content if isinstance(part, Picture | Video)]
        assert all(Path(str(part.source)).is_file() for part in media)
    assert done.samples == len(RECORDS)
    assert len(list((folder / "moved/media").rglob("*.*"))) == 3


def iter_records(path: Path):
    source = open_source(path)
    return (source[index] for index in range(len(source)))


def test_paths_lead_to_their_media_from_a_folder_behind_a_link(folder: Path):
    (folder / "deep/er").mkdir(parents=True)
    (folder / "link").symlink_to(folder / "deep/er")
    source = lines(folder / "set.jsonl", RECORDS["single"])
    done = convert(Conversion(source, folder / "link/out", "swift"))
    picture = open_source(done.main)[0].messages[0].content[0]
    assert isinstance(picture, Picture)
    assert Path(str(picture.source)).is_file()


def test_a_missing_picture_is_a_fault_with_file_and_line(folder: Path):
    lost = official("<image>\nWhat?", image="in/lost.png")
    source = lines(folder / "set.jsonl", RECORDS["text"], lost)
    with pytest.raises(SampleError, match=r"set.jsonl:2: picture .*lost.png does not exist"):
        run(source, "out", "official")
    assert sorted(path.name for path in folder.iterdir()) == ["in", "set.jsonl"]


def test_a_file_that_cannot_be_copied_is_a_fault_of_its_sample(folder: Path, monkeypatch):
    source = lines(folder / "set.jsonl", RECORDS["single"], RECORDS["text"])
    opened = Path.open

    def locked(path: Path, *arguments, **options):
        if path.name == "a.png":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", locked)
    with pytest.raises(SampleError, match=r"set.jsonl:1: .*a.png cannot be read: Permission"):
        run(source, "out", "official", copy_media=True)
    assert run(source, "out", "official", copy_media=True, skip_bad=1).left_out == 1


def test_faults_are_left_out_up_to_a_number_and_written_down(folder: Path):
    bad = official("<image>\nWhat?", image="in/lost.png")
    source = lines(folder / "set.jsonl", bad, RECORDS["text"], official("Hi", " "), RECORDS["text"])
    done = run(source, "out", "sharegpt", skip_bad=2)
    assert (done.samples, done.left_out) == (2, 2)
    faults = [json.loads(line) for line in (folder / "out/bad_samples.jsonl").open()]
    assert [fault["where"].rpartition(":")[2] for fault in faults] == ["1", "3"]
    assert faults[1]["reason"] == "turn 2 is an empty answer"
    with pytest.raises(SampleError, match=r"set\.jsonl:3"):
        run(source, "fewer", "sharegpt", skip_bad=1)


def test_nothing_is_overwritten(folder: Path):
    source = lines(folder / "set.jsonl", RECORDS["text"])
    (folder / "out").mkdir()
    (folder / "out/mine").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        run(source, "out", "official")
    with pytest.raises(ValueError, match=r"out/mine is a file; .*out/mine/x cannot be made in it"):
        run(source, "out/mine/x", "official")
    with pytest.raises(ValueError, match=r"samples.json is named like a file; give a folder"):
        run(source, "samples.json", "llava")


def test_fields_that_are_not_carried_over_are_counted(folder: Path):
    source = lines(folder / "set.jsonl", RECORDS["text"] | {"rejected": "No."}, RECORDS["text"])
    assert run(source, "out", "swift").notes == (
        "samples whose field 'rejected' is not carried over: 1",
    )


@pytest.mark.slow
def test_memory_does_not_grow_with_the_set(folder: Path):
    record = json.dumps(official("Hello " * 3000))
    (folder / "set.jsonl").write_text(f"{record}\n" * 250)
    run(folder / "set.jsonl", "before", "llava")  # imports what is imported once
    tracemalloc.start()
    run(folder / "set.jsonl", "out", "llava")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_500_000 < (folder / "set.jsonl").stat().st_size


def boxed(*boxes: str, **fields) -> dict:
    answer = "".join(f"<ref>dog</ref><box>{box}</box>" for box in boxes)
    return official("<image>\nWhere?", answer, image="in/a.png", **fields)


def answers(path: Path) -> list[str]:
    return [messages[-1].text for messages in read(path)]


@pytest.mark.parametrize(
    ("unit", "box"),
    [("pixel", "[[4, 5, 20, 20]]"), ("unit", "[0.1, 0.25, 0.5, 1.0]"),
     ("thousand", "[[100, 250, 500, 1000]]"), ("auto", "[[0.1, 0.25, 0.5, 1]]")],
)  # fmt: skip
def test_boxes_of_every_unit_become_thousandths(folder: Path, unit, box: str):
    done = run(lines(folder / "set.jsonl", boxed(box)), "out", "official", boxes=BoxOptions(unit))
    assert answers(done.main) == ["<ref>dog</ref><box>[[100, 250, 500, 1000]]</box>"]


def test_lists_of_four_numbers_are_boxes_only_if_that_is_said(folder: Path):
    record = official("<image>\nWhere?", "At [0.1, 0.2, 0.3, 0.4].", image="in/a.png")
    source = lines(folder / "set.jsonl", record, boxed("[0, 0, 1, 0.5]"))
    left = run(source, "left", "official", boxes=BoxOptions("unit"))
    assert answers(left.main)[0] == "At [0.1, 0.2, 0.3, 0.4]."
    assert "lists of four numbers without <box>, left alone (--bare-boxes): 1" in left.notes
    done = run(source, "done", "official", boxes=BoxOptions("unit", bare=True))
    assert answers(done.main)[0] == "At <box>[[100, 200, 300, 400]]</box>."


@pytest.mark.parametrize(
    ("unit", "box", "note"),
    [
        (None, "[[0.1, 0.2, 0.3, 0.4]]", "boxes of shares from 0 to 1, left as they are"),
        ("pixel", "[[4, 5, 4, 20]]", "boxes without width or height in thousandths: 1"),
        ("auto", "[[100, 250, 500, 1000]]</box> [1, 2, 3, 4]<box>[[1, 2, 3, 4]]",
         "lists of four numbers without <box>, left alone"),
    ],
)  # fmt: skip
def test_boxes_that_may_be_in_another_unit_are_noted(folder: Path, unit, box: str, note: str):
    source = lines(folder / "set.jsonl", boxed(box))
    notes = run(source, "out", "official", boxes=BoxOptions(unit)).notes
    assert any(found.startswith(note) for found in notes), notes


def test_auto_counts_lists_where_no_box_has_tags(folder: Path):
    record = official("<image>\nWhere?", "At [1, 2, 3, 4].", image="in/a.png")
    source = lines(folder / "set.jsonl", record)
    notes = run(source, "out", "official", boxes=BoxOptions("auto")).notes
    assert "set has no boxes" in notes
    assert "lists of four numbers without <box>, left alone (--bare-boxes): 1" in notes


def test_objects_of_ms_swift_are_in_the_unit_that_is_said(folder: Path):
    def swift(*box: float, **kind: str) -> dict:
        turns = [("user", "<image>Find the <ref-object>."), ("assistant", "<bbox>")]
        messages = [{"role": role, "content": text} for role, text in turns]
        objects = {"ref": ["dog"], "bbox": [list(box)]} | kind
        return {"messages": messages, "images": ["in/a.png"], "objects": objects}

    wanted = "<box>[[100, 250, 500, 1000]]</box>"
    shares = lines(folder / "shares.jsonl", swift(0.1, 0.25, 0.5, 1.0))
    for unit in ("unit", "auto"):
        done = run(shares, f"{unit}-out", "official", boxes=BoxOptions(unit))
        assert answers(done.main) == [wanted]
    told = swift(100, 250, 500, 1000, bbox_type="norm1000")
    pixels = lines(folder / "pixels.jsonl", swift(4, 5, 20, 20), told)
    for options in (BoxOptions("auto"), BoxOptions("pixel"), BoxOptions()):
        done = run(pixels, f"{options.unit}-pixels", "official", boxes=options)
        assert answers(done.main) == [wanted] * 2


def test_objects_are_of_the_picture_that_they_name_and_as_it_was_drawn_on(folder: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # what is stored at the left is shown at the top
    Image.new("RGB", (SIDE, SIDE // 2)).save(folder / "in/b.jpg", exif=exif)
    turns = [("user", "<image><image>Where?"), ("assistant", "<bbox>")]
    record = {
        "messages": [{"role": role, "content": text} for role, text in turns],
        "images": ["in/a.png", "in/b.jpg"],
        "objects": {"bbox": [[4, 5, 20, 10]], "image_id": [1]},
    }
    source = lines(folder / "set.jsonl", record)
    stored = run(source, "stored", "official", boxes=BoxOptions("auto", drawn_on="stored"))
    assert answers(stored.main) == ["<box>[[500, 100, 750, 500]]</box>"]
    shown = run(source, "shown", "official", boxes=BoxOptions("pixel"))
    assert answers(shown.main) == ["<box>[[200, 125, 1000, 250]]</box>"]


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (["[[4, 5, 20, 20]]"], "its 1 boxes can be pixels as well as thousandths; give --boxes"),
        (["[[0.1, 0.2, 0.3, 0.4]]", "[[4, 5, 20, 20]]"], "boxes in several units: of 2 boxes, 1"),
        (["[[4, 5, 20, 200]]", "[[4, 5, 20, 2000]]"], "several units: .* 1 beyond 1000, 1 within"),
    ],
)  # fmt: skip
def test_auto_never_guesses(folder: Path, boxes: list[str], message: str):
    source = lines(folder / "set.jsonl", *map(boxed, boxes))
    with pytest.raises(ValueError, match=message):
        run(source, "out", "official", boxes=BoxOptions("auto"))


def test_auto_decides_for_a_set_and_says_what_it_found(folder: Path):
    source = lines(
        folder / "set.jsonl", boxed("[[4, 5, 20, 20]]"), boxed("[[100, 250, 500, 1000]]")
    )
    done = run(source, "out", "official", boxes=BoxOptions("auto"))
    assert answers(done.main)[0] == "<ref>dog</ref><box>[[4, 5, 20, 20]]</box>"
    assert any(
        note.startswith("boxes of set are thousandths of the sides: of 2") for note in done.notes
    )


@pytest.mark.parametrize(
    ("unit", "box", "message"),
    [
        ("unit", "[[0, 0, 1.2, 1]]", r"\[0, 0, 1.2, 1\] has numbers outside of 0 to 1$"),
        ("pixel", "[[0, 0, 42, 20]]", r"\[0, 0, 42, 20\] reaches beyond .* 40 wide and 20 high"),
        ("pixel", "[[9, 0, 3, 20]]", "corners the wrong way round"),
        ("thousand", "[[1, 2, 3]]", r"the box \[1, 2, 3\] was expected to be four numbers"),
        ("unit", "[[1, ,2]]", "malformed box"),
        ("pixel", "(4,5),(20,20)", r"malformed box '<box>\(4,5\),\(20,20\)</box>'; \[left, top"),
        ("auto", "(4,5),(20,20)", r"malformed box '<box>\(4,5\),\(20,20\)</box>'; \[left, top"),
        (None, "[[0, 0, 1001, 4]]", r"turn 2 has the box \[0, 0, 1001, 4\]; .*; --boxes says"),
    ],
)  # fmt: skip
def test_a_box_outside_of_its_picture_is_a_fault(folder: Path, unit, box: str, message: str):
    source = lines(folder / "set.jsonl", boxed(box))
    with pytest.raises(SampleError, match=f"set.jsonl:1: .*{message}"):
        run(source, "out", "official", boxes=BoxOptions(unit))


def test_pixels_of_several_pictures_need_them_to_be_of_one_size(folder: Path):
    two = official(
        "<image><image>Where?", "<box>[[4, 5, 20, 20]]</box>", image=["in/a.png", "in/b.png"]
    )
    source = lines(folder / "set.jsonl", two)
    assert answers(run(source, "out", "official", boxes=BoxOptions("pixel")).main) == [
        "<box>[[100, 250, 500, 1000]]</box>"
    ]
    Image.new("RGB", (SIDE, SIDE)).save(folder / "in/b.png")
    with pytest.raises(SampleError, match="2 of 2 sizes"):
        run(source, "other", "official", boxes=BoxOptions("pixel"))


def test_data_urls_are_kept_or_copied(folder: Path):
    import base64

    content = io.BytesIO()
    Image.new("RGB", (2, 2)).save(content, "png")
    url = f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
    remote = official("<image>\nWhat?", image="https://example.org/a.png")
    source = lines(folder / "set.jsonl", official("<image>\nWhat?", image=url), remote)
    assert read(run(source, "kept", "swift").main) == read(source)
    done = run(source, "copied", "swift", copy_media=True)
    assert "hosts whose media are left where they are: 1" in done.notes
    assert len(list((folder / "copied/media").rglob("*.png"))) == 1
