"""Data sets in every form, and every fault of a record with file, line and reason."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from internvl2.processing.conversation import Message, Picture, Text, Video
from internvl2.train.data.formats import SampleError, SourceOptions, from_records, join, open_source
from internvl2.train.data.line_index import index_array, index_lines

QUESTION = {"from": "human", "value": "<image>\nWhat?"}
ANSWER = {"from": "gpt", "value": "A dog."}


def record(*turns: dict, **fields) -> dict:
    return {"conversations": list(turns or (QUESTION, ANSWER))} | fields


def lines(folder: Path, *records, name: str = "set.jsonl") -> Path:
    texts = [one if isinstance(one, str) else json.dumps(one) for one in records]
    (folder / name).write_text("\n".join(texts) + "\n")
    return folder / name


def asked(*content) -> tuple[Message, ...]:
    return (Message.user(*content), Message.assistant("A dog."))


def test_a_record_of_the_official_form_has_its_picture_at_the_tag(tmp_path):
    source = open_source(lines(tmp_path, record(image="a/b.jpg")))
    picture = Picture(tmp_path / "a/b.jpg", inline=True)
    assert source[0].messages == asked(picture, "\nWhat?")
    assert source[0].where == f"{tmp_path / 'set.jsonl'}:1"


def test_pictures_and_video_are_seen_from_the_given_root(tmp_path):
    clip = record({"from": "human", "value": "<video>\nWhy?"}, ANSWER, video="v.mp4", clip=[1, 2])
    source = open_source(lines(tmp_path, clip), SourceOptions(root="media", num_frames=4))
    video = Video(Path("media/v.mp4"), num_frames=4, start=1.0, end=2.0, inline=True)
    assert source[0].messages == asked(video, "\nWhy?")


def test_an_array_of_records_is_the_same_as_lines(tmp_path):
    records = [record({"from": "human", "value": f'[{{"{i}\\'}, ANSWER) for i in range(5)]
    (tmp_path / "one.json").write_text(json.dumps(records))
    (tmp_path / "many.json").write_text(json.dumps(records, indent=2))
    wanted = [one.messages for one in open_source(lines(tmp_path, *records))]
    for name in ("one.json", "many.json"):
        assert [one.messages for one in open_source(tmp_path / name)] == wanted
    assert open_source(tmp_path / "many.json")[1].where.endswith("many.json:14 (entry 2)")


@pytest.mark.parametrize("key", ["image", "images"])
def test_share_gpt_and_ms_swift_list_pictures_beside_messages(tmp_path, key):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<image>\nWhat?"},
        {"role": "assistant", "content": "A dog."},
    ]
    source = open_source(lines(tmp_path, {"messages": messages, key: ["a.jpg"]}))
    picture = Picture(tmp_path / "a.jpg", inline=True)
    assert source[0].messages == (Message.system("Be brief."), *asked(picture, "\nWhat?"))


def test_openai_messages_keep_their_parts_and_urls(tmp_path):
    parts = [
        {"type": "image_url", "image_url": {"url": "a.jpg"}},
        {"type": "image_url", "image_url": {"url": "https://example.org/b.jpg"}},
        {"type": "text", "text": "What is an <image>?"},
    ]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "A dog."}]
    source = open_source(lines(tmp_path, {"messages": messages}))
    near, far = Picture(tmp_path / "a.jpg"), Picture("https://example.org/b.jpg")
    assert source[0].messages == asked(near, far, "What is an <image>?")


def test_texts_and_pairs_have_their_pictures_first(tmp_path):
    texts = {"images": ["a.jpg"], "texts": [{"user": "What?", "assistant": "A dog."}]}
    pair = {"image": "a.jpg", "question": "What?", "answer": "A dog."}
    swift = {"images": ["a.jpg"], "query": "What?", "response": "A dog.", "history": []}
    source = open_source(lines(tmp_path, texts, pair, swift))
    wanted = asked(Picture(tmp_path / "a.jpg"), "What?")
    assert [one.messages for one in source] == [wanted] * 3


def test_boxes_of_ms_swift_become_thousandths_of_the_picture(tmp_path):
    Image.new("RGB", (200, 100)).save(tmp_path / "a.png")
    messages = [
        {"role": "user", "content": "<image>Find the <ref-object>."},
        {"role": "assistant", "content": "Here: <bbox>"},
    ]
    objects = {"ref": ["dog"], "bbox": [[20, 10, 100, 100]]}
    found = {"messages": messages, "images": ["a.png"], "objects": objects}
    source = open_source(lines(tmp_path, found))
    assert source[0].messages[0].text == "Find the <ref>dog</ref>."
    assert source[0].messages[1].text == "Here: <box>[[100, 100, 500, 1000]]</box>"


def test_a_meta_file_names_sets_with_repeats_and_budgets(tmp_path):
    lines(tmp_path, *[record(image=f"{i}.jpg") for i in range(4)], name="a.jsonl")
    lines(tmp_path, record({"from": "human", "value": "Hi"}, ANSWER), name="b.jsonl")
    (tmp_path / "pictures").mkdir()
    meta = {
        "a": {"root": "pictures", "annotation": "a.jsonl", "data_augment": True,
              "repeat_time": 0.5, "length": 4, "max_dynamic_patch": 6},
        "b": {"root": "", "annotation": "b.jsonl", "data_augment": False, "repeat_time": 3},
    }  # fmt: skip
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    source = open_source(tmp_path / "meta.json")
    assert len(source) == 2 + 3
    assert (source[0].max_tiles, source[0].augment) == (6, True)
    assert source[1].messages[0].content[0] == Picture(tmp_path / "pictures/1.jpg", inline=True)
    assert source[4].messages == (Message.user("Hi"), Message.assistant("A dog."))


def meta_of(folder: Path, **entry) -> Path:
    lines(folder, *[record(image=f"{i}.jpg") for i in range(4)], name="a.jsonl")
    (folder / "meta.json").write_text(json.dumps({"a": {"annotation": "a.jsonl"} | entry}))
    return folder / "meta.json"


def test_what_a_recipe_gives_goes_before_what_a_meta_file_says(tmp_path):
    path = meta_of(tmp_path, data_augment=True, max_dynamic_patch=6, repeat_time=0.5, root="x")
    given = SourceOptions(root="y", repeat=4.0, max_tiles=3, augment=False)
    source = open_source(path, given)
    assert len(source) == 4 * 0.5 * 4
    assert (source[0].max_tiles, source[0].augment) == (3, False)
    assert source[0].messages[0].content[0] == Picture(Path("y/0.jpg"), inline=True)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"repeat_times": 2}, "'a' has the unknown key 'repeat_times'; did you mean 'repeat_time'"),
        ({"colour": 2}, "unknown key 'colour'; known: root, annotation"),
        ({"data_augment": "yes"}, "data_augment is 'yes'; true or false was expected"),
        ({"root": 3}, "root is 3; a folder was expected"),
        ({"repeat_time": 0}, "repeat_time is 0; a number above 0"),
        ({"max_dynamic_patch": 1.5}, "max_dynamic_patch is 1.5; a whole number"),
        ({"repeat_time": 0.1}, "0.1 of 4 records is none"),
    ],
)
def test_a_mistake_in_a_meta_file_is_named(tmp_path, entry, reason):
    with pytest.raises(ValueError, match=reason):
        open_source(meta_of(tmp_path, **entry))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x1f\x8b\x08....", r"compressed \(gzip\); unpack it"),
        (b"PK\x03\x04....", r"compressed \(zip\)"),
        ("{}".encode("utf-16"), "is UTF-16; save it as UTF-8"),
    ],
)
def test_a_file_of_another_kind_is_refused_by_name(tmp_path, content, reason):
    (tmp_path / "set.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        open_source(tmp_path / "set.jsonl")


def test_marks_line_ends_and_blank_lines_of_editors_do_no_harm(tmp_path):
    hello = json.dumps(record({"from": "human", "value": "Hi"}, ANSWER))
    (tmp_path / "set.jsonl").write_bytes(f"\ufeff{hello}\r\n \t \r\n{hello}\r\n\r\n".encode())
    assert [found.messages[0].text for found in open_source(tmp_path / "set.jsonl")] == ["Hi"] * 2


def test_a_folder_of_parquet_files_is_one_data_set(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    for name in ("b", "a"):
        rows = [{"query": f"{name}{i}", "response": "A"} for i in range(2)]
        write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    texts = [found.messages[0].text for found in open_source(tmp_path)]
    assert texts == ["a0", "a1", "b0", "b1"]


def test_rows_of_parquet_hold_pictures_as_bytes(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    rows = [
        {
            "images": [{"bytes": bytes([i]), "path": None}],
            "texts": [{"user": "Q", "assistant": "A"}],
        }
        for i in range(1, 6)
    ]
    write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet", row_group_size=2)
    source = open_source(tmp_path / "rows.parquet")
    found = [source[i].messages[0].content for i in (4, 0, 3)]
    assert found == [(Picture(bytes([i])), Text("Q")) for i in (5, 1, 4)]


def test_chats_in_parquet_place_the_pictures_that_are_listed_beside_them(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    parts = [{"type": "text", "text": "What?", "index": None}, {"type": "image", "index": 0}]
    said = [{"type": "text", "text": "A dog."}]
    chat = [{"role": "user", "content": parts}, {"role": "assistant", "content": said}]
    rows = [{"images": [{"bytes": b"x", "path": None}], "messages": chat}]
    write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    found = open_source(tmp_path / "rows.parquet")[0].messages
    assert found == asked("What?", Picture(b"x"))


def test_parts_and_listed_media_must_agree():
    def chat(*kinds: str, **fields) -> dict:
        parts = [{"type": kind} for kind in kinds]
        said = {"role": "assistant", "content": "A dog."}
        return {"messages": [{"role": "user", "content": parts}, said]} | fields

    good = from_records([chat("video", video="v.mp4")], SourceOptions(num_frames=3))[0]
    assert good.messages == asked(Video(Path("v.mp4"), num_frames=3))
    with pytest.raises(SampleError, match="more parts of type 'image' than the record lists"):
        from_records([chat("image", "image", images=["a"])])[0]
    with pytest.raises(SampleError, match="1 of the listed pictures and videos are placed by no"):
        from_records([chat("image", images=["a", "b"])])[0]


def test_row_groups_are_kept_up_to_a_size(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    from internvl2.train.data import parquet

    rows = [{"query": "Q" * 1000, "response": str(i)} for i in range(40)]
    table = pyarrow.Table.from_pylist(rows)
    write_table(table, tmp_path / "rows.parquet", row_group_size=4)
    monkeypatch.setattr(parquet, "KEPT_BYTES", 9_000)
    opened = parquet.open_parquet(tmp_path / "rows.parquet")
    assert [opened.read(i)["response"] for i in (39, 0, 7, 38)] == ["39", "0", "7", "38"]
    assert list(opened._groups) == [1, 9]


def test_records_come_from_python_as_well():
    conversation = asked(Picture("a.jpg"), "What?")
    source = from_records(iter([record(image="a.jpg"), conversation, 3]))
    assert source[0].messages[0].content[0] == Picture(Path("a.jpg"), inline=True)
    assert source[1].messages == conversation
    with pytest.raises(SampleError, match="records:3: a record or messages were expected"):
        source[2]


def test_joined_sources_follow_each_other():
    hello = [record({"from": "human", "value": str(i)}, ANSWER) for i in range(5)]
    source = join([from_records(hello[:2]), from_records(hello[2:], SourceOptions(repeat=2.0))])
    assert [source[i].messages[0].text for i in range(len(source))] == list("01234234")


def test_turns_are_stripped_for_the_template_that_does_so():
    padded = record({"from": "human", "value": " Hi\n"}, {"from": "gpt", "value": " Yes. "})
    plain, stripped = (
        from_records([padded], SourceOptions(template=name))[0].messages
        for name in ("Hermes-2", "internlm2-chat")
    )
    assert [message.text for message in plain] == [" Hi\n", " Yes. "]
    assert [message.text for message in stripped] == ["Hi", "Yes."]


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ('{"conversations": [', "not JSON"),
        ('{"image": "a", "image": "b"}', "the key 'image' is given twice"),
        ("[1, 2]", "a JSON object was expected, not a list"),
        ({"text": "Hi"}, "unknown form with the keys 'text'; known: conversations"),
        (record(), "0 pictures, but 1 <image>"),
        (record(image=["a.jpg", "b.jpg"]), "2 pictures, but 1 <image>"),
        (record({"from": "human", "value": "<video>"}, ANSWER), "0 videos, but more <video>"),
        (record(QUESTION, {"from": "gpt", "value": " \n"}, image="a"), "turn 2 is an empty answer"),
        (record({"from": "human", "value": "Hi"}), "no answer to learn"),
        (record({"from": "robot", "value": "Hi"}), r"conversations\[0\].from is 'robot'"),
        ({"messages": [{"role": "tool", "content": "Hi"}]}, "'tool'"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\] lacks 'role' or 'content'"),
        ({"query": "a", "response": "b", "history": 5}, "'history' is 5; a list"),
        (record(ANSWER, QUESTION, QUESTION, image=["a", "b"]), "are both of the user"),
        (record(images=["a"], image="a"), "both 'image' and 'images' are given"),
        (record(image=[3]), "3 is neither a path, a URL nor the bytes"),
        (record(videos=["a", "b"]), "2 videos; one was expected"),
        (record(audios=["a"]), "the field 'audios' cannot be read"),
        (record(picture="a.jpg"), "the field 'picture' is not read; known: image, images, video"),
        ({"question": "How many?", "answer": 5}, "'answer' is 5; a text was expected"),
    ],
)  # fmt: skip
def test_a_fault_names_file_line_and_reason(tmp_path, broken, reason):
    path = lines(tmp_path, record({"from": "human", "value": "Hi"}, ANSWER), broken)
    with pytest.raises(SampleError, match=rf"set\.jsonl:2: .*{reason}"):
        open_source(path)[1]


@pytest.mark.parametrize("box", ["[[0, 0, 1001, 5]]", "[-1, 0, 5, 5]", "[[0, 0, 5]]", "[[a]]"])
def test_a_box_outside_of_the_picture_is_a_fault(tmp_path, box):
    answer = {"from": "gpt", "value": f"<ref>dog</ref><box>{box}</box>"}
    path = lines(tmp_path, record({"from": "human", "value": "Where?"}, answer))
    with pytest.raises(SampleError, match=r"set\.jsonl:1: turn 2 has the (malformed )?box"):
        open_source(path)[0]


def test_boxes_inside_of_the_picture_pass():
    answer = {"from": "gpt", "value": "<box>[[0, 0, 1000, 1000], [1, 2.5, 3, 4]]</box>"}
    assert (
        len(from_records([record({"from": "human", "value": "Where?"}, answer)])[0].messages) == 2
    )


def test_a_byte_that_is_no_text_is_shown(tmp_path):
    (tmp_path / "set.jsonl").write_bytes(b'{"conversations": "caf\xe9"}\n')
    with pytest.raises(SampleError, match=r":1: not UTF-8: byte 23 of the record is 0xe9"):
        open_source(tmp_path / "set.jsonl")[0]


def test_lines_are_counted_through_empty_ones(tmp_path):
    path = tmp_path / "set.jsonl"
    hello = json.dumps(record({"from": "human", "value": "Hi"}, ANSWER))
    path.write_bytes(f"{hello}\r\n\r\n{hello}\n\nnot json".encode())
    source = open_source(path)
    assert len(source) == 3
    assert source[1].where == f"{path}:3"
    with pytest.raises(SampleError, match=r":5: not JSON"):
        source[2]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"b": {}, "a": {"annotation": "a.jsonl"}}', "data set 'b' lacks an 'annotation'"),
        ('{"a": {"annotation": "a"},\n "a": {}}', "the key 'a' is given twice"),
        ('{"a": {\n"annotation": "a",}}', r"set\.json:2: not JSON"),
        ('{"data":\n []}', "is one object with the keys 'data'"),
        ('[{"a": 1}', ":1: the JSON array is not closed"),
        ('[{"a": 1}]\n x', ":1: the JSON array ends before the file does"),
        ('[{"a": 1}\n {"b": 2}]', ":2: found '' between two objects"),
        ('[{"a": 1}, 3,\n {"b": 2}]', ":2: found ', 3,' between two objects"),
        ("[]", "has no record"),
        ("\n ", "is empty"),
    ],
)
def test_a_file_that_holds_no_data_set_is_refused_at_once(tmp_path, text, reason):
    (tmp_path / "set.json").write_text(text)
    with pytest.raises(ValueError, match=reason):
        open_source(tmp_path / "set.json")


def test_an_absent_data_set_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.jsonl is absent"):
        open_source(tmp_path / "gone.jsonl")
    with pytest.raises(ValueError, match="is a folder without Parquet files"):
        open_source(tmp_path)
    (tmp_path / "meta.json").write_text('{"a": {"annotation": "gone.jsonl"}}')
    with pytest.raises(FileNotFoundError, match=r"data set 'a': the annotation gone\.jsonl"):
        open_source(tmp_path / "meta.json")


@pytest.mark.parametrize("as_array", [False, True])
def test_memory_stays_flat_however_large_the_file_is(tmp_path, as_array):
    line = json.dumps(record({"from": "human", "value": "x" * 20_000}, ANSWER)).encode()
    path = tmp_path / "large.json"
    with path.open("wb") as file:
        file.write(b"[" * as_array)
        for number in range(3_000):
            file.write((b",\n" if as_array else b"\n") * bool(number) + line)
        file.write(b"]" * as_array)
    tracemalloc.start()
    index = (index_array if as_array else index_lines)(path)
    index.read(2_999)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(index) == 3_000
    assert path.stat().st_size > 60_000_000
    assert used < 4_000_000


def test_a_line_costs_few_bytes_of_memory(tmp_path):
    path = tmp_path / "many.jsonl"
    path.write_bytes(b"{}\n" * 200_000)
    index = index_lines(path)
    assert len(index) == 200_000
    assert np.shares_memory(index.starts, index.stops)  # 8 bytes a line, not 16
    assert index.starts.dtype == np.int64


@pytest.mark.parametrize(
    ("content", "objects", "reason"),
    [
        ([{"type": "text", "text": "<bbox>"}], {"bbox": [[1, 2, 3, 4]]}, "goes with plain texts"),
        ("<bbox>", {"bbox": 3}, "objects.bbox is 3; a list was expected"),
        ([{"type": ["text"]}], None, "known: text, image_url"),
    ],
)
def test_objects_that_nothing_takes_are_a_fault(content, objects, reason):
    said = {"role": "assistant", "content": "A dog."}
    chat = {"messages": [{"role": "user", "content": content}, said], "objects": objects}
    with pytest.raises(SampleError, match=reason):
        from_records([chat])[0]
