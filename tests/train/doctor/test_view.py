"""What people see of a sample: the words that are learned, and the page with its pictures."""

import json
import re
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from internvl2.config import DecoderConfig, InternVLConfig, RotaryConfig, VisionConfig
from internvl2.processing.conversation import Message, Picture
from internvl2.processing.processor import EncodeOptions, Processor
from internvl2.train.doctor.examination import Examination
from internvl2.train.doctor.findings import marked_boxes, text_findings
from internvl2.train.doctor.page import page
from internvl2.train.doctor.sets import open_sets
from internvl2.train.doctor.view import GREEN, Stretch, lines_of, stretches
from internvl2.train.recipe import DataSource, Packing, Recipe

SIDE = 56


@pytest.fixture(scope="module")
def processor(data) -> Processor:
    vision = VisionConfig(16, 1, 2, 32, image_size=SIDE)
    decoder = DecoderConfig("qwen2", 1000, 16, 1, 2, 2, 8, 32, 4096, RotaryConfig(1e4))
    config = InternVLConfig(vision, decoder, "Hermes-2", tile_size=SIDE, max_tiles=4)
    return Processor.from_directory(data("official", "B_qwen2", "checkpoint"), config)


def html(folder: Path, processor: Processor, *records: dict) -> str:
    path = folder / "set.jsonl"
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    recipe = Recipe(model="tiny", data=(DataSource(str(path)),), packing=Packing(tokens=2000))
    examination = Examination(recipe, processor, open_sets(recipe, "Hermes-2", None))
    examination.run(0, lambda done: None)
    return page(examination.report("recipe", 0), examination.examples(4))


def asked(answer: str, *images: str) -> dict:
    turns = [{"from": "human", "value": "<image>\n" * len(images) + "Where is Image-2?"}]
    return {"image": list(images), "conversations": [*turns, {"from": "gpt", "value": answer}]}


def test_pictures_are_a_word_and_what_is_learned_is_marked(processor: Processor):
    messages = (
        Message.user(Picture(Image.new("RGB", (SIDE * 2, SIDE))), "a 猫?"),
        Message.assistant("yes, 是"),
    )
    prompt = processor.encode(messages, options=EncodeOptions(add_generation_prompt=False))
    found = stretches(prompt, processor.tokenizer)
    assert [s.kind for s in found][:3] == ["read", "picture", "read"]
    assert found[1].text == "<img 3 tiles>"
    assert found[2].text.startswith("\na 猫?<|im_end|>")
    learned = [s.text for s in found if s.kind == "learned"]
    assert learned == ["yes, 是<|im_end|>"]
    assert "{+yes, 是<|im_end|>+}" in lines_of(found, colour=False)[-1]
    assert GREEN in lines_of(found, colour=True)[-1]


def test_nothing_in_a_text_steers_the_terminal():
    (line,) = lines_of([Stretch("read", "a\x1b[2Jb\u202e\x07")], colour=False)
    assert line == "a\\x1b[2Jb\\u202e\\x07"


def test_long_texts_lose_their_middle_where_people_read_them():
    (line,) = lines_of([Stretch("learned", "a" * 5000 + "z" * 5000)], colour=False)
    assert "9,000 characters" in line
    assert line.endswith("zz+}")


@pytest.mark.parametrize("tag", ["<box>[", "<ref>", "<box>[<"])
def test_tags_that_never_close_take_no_time(tag: str):
    message = Message.assistant(tag * 20_000)
    began = time.perf_counter()
    list(marked_boxes(message.text))
    list(text_findings([Message.user("?"), message], re.compile("a^")))
    assert time.perf_counter() - began < 2


def test_boxes_know_their_label_and_picture():
    text = "In Image-2 <ref>a\ncat</ref><box>[[1, 2, 3, 4], [9, 9, 5, 5]]</box><box>[2,2,3,3]</box>"
    boxes = list(marked_boxes(text))
    assert [box.label for box in boxes] == ["a cat"] * 3
    assert [box.is_meant for box in boxes] == [True, False, True]
    assert {box.picture for box in boxes} == {2}


def test_the_page_is_one_file_that_loads_nothing(processor: Processor, tmp_path: Path):
    Image.new("RGB", (SIDE * 2, SIDE), "red").save(tmp_path / "a.png")
    Image.new("RGB", (SIDE, SIDE), "blue").save(tmp_path / "b.png")
    answer = '<ref>"<b>" & co</ref><box>[[100, 200, 300, 400]]</box><script>alert(1)</script>'
    text = html(tmp_path, processor, asked(answer, "a.png", "b.png"))
    assert not re.search(r"(src|href)=\"(?!data:image/jpeg;base64,)", text)
    assert "<script" not in text
    assert "&lt;b&gt;&quot; &amp; co" in text
    assert text.count("<figure>") == 2
    body = text[text.index("<body>") : text.index("</html>")]
    ElementTree.fromstring(body.replace("<details open>", "<details>"))  # every tag is closed


def test_boxes_and_tiles_are_drawn_where_they_are(processor: Processor, tmp_path: Path):
    Image.new("RGB", (SIDE * 2, SIDE), "red").save(tmp_path / "a.png")
    Image.new("RGB", (SIDE, SIDE), "blue").save(tmp_path / "b.png")
    answer = "<ref>it</ref><box>[[100, 200, 300, 400]]</box>"
    first, second = html(tmp_path, processor, asked(answer, "a.png", "b.png")).split("<figure>")[1:]
    assert 'x1="500.0" y1="0.0" x2="500.0" y2="1000.0"' in first
    assert "<rect" not in first
    assert 'x="100.0" y="200.0" width="200.0" height="200.0"' in second
    assert ">it</span>" in second


def test_a_box_outside_is_drawn_as_wrong(processor: Processor, tmp_path: Path):
    Image.new("RGB", (SIDE, SIDE), "red").save(tmp_path / "a.png")
    text = html(tmp_path, processor, asked("<box>[[100, 200, 1300, 400]]</box>", "a.png"))
    assert 'class="box wrong"' in text
    assert 'width="900.0"' in text
    assert '<div class="reason fault">turn 2 has the box' in text
