"""Ids and labels of training records against the official datasets."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
from PIL import Image

from internvl2.config import DecoderConfig, InternVLConfig, RotaryConfig, VisionConfig
from internvl2.processing.conversation import Video
from internvl2.processing.image import PictureOptions
from internvl2.processing.processor import EncodeOptions, Processor
from internvl2.processing.prompt import Prompt
from internvl2.processing.readers import RecordOptions, from_opengvlab
from internvl2.processing.tokenizer import Tokenizer

pytestmark = pytest.mark.parity

CASES = (
    "A_internlm2",
    "B_qwen2",
    "C_phi3",
    "D_llama3_vit6b",
    "E_qwen25_internvl2_5",
    "E2_internlm2_internvl2_5",
    "F_qwen3",
    "F2_qwen3_moe",
)
EQUAL = (
    "single_image_multiturn",
    "multi_image",
    "image_in_later_turn",
    "text_only",
    "single_turn",
    "auto_prefix",
    "whitespace",
    "video",
    "video_no_tag",
)
RECORDED_EQUAL = [
    (folder, name)
    for folder in CASES
    for name in EQUAL
    if not (folder[0] == "F" and name.startswith("video"))
]
"""The Qwen3 cases were recorded without videos."""
IGNORED = -100


@pytest.fixture(params=CASES)
def case(request, recording):
    return recording(request.param)


@lru_cache
def processor_of(directory: Path, template: str, tile_size: int) -> Processor:
    vision = VisionConfig(16, 1, 2, 32, image_size=tile_size)
    decoder = DecoderConfig("qwen2", 1000, 16, 1, 2, 2, 8, 32, 4096, RotaryConfig(1e4))
    return Processor(
        InternVLConfig(vision, decoder, template, tile_size=tile_size),
        Tokenizer.from_directory(directory),
        frame_label="Frame-{}",
        pictures=PictureOptions(official=True),
    )


def encode(case, name: str, data, **differences) -> Prompt:
    """Our prompt for a recorded item."""
    meta, item = case.expected["meta"], recorded(case, name)["item"]
    processor = processor_of(case.checkpoint, meta["template"], meta["image_size"])
    strip = meta["template"] == "internlm2-chat"
    options = RecordOptions(strip_turns=strip, max_tiles=case.train.get("max_dynamic_patch", 2))
    root = data("official", "pictures")
    messages = from_opengvlab(item, root, replace(options, **differences))
    frames = _frames(root, recorded(case, name).get("num_tiles"))
    messages = [replace(m, content=tuple(_decoded(p, frames) for p in m.content)) for m in messages]
    return processor.encode(messages, options=EncodeOptions(add_generation_prompt=False))


def recorded(case, name: str) -> dict:
    """The recorded item, its run lengths written out."""
    found = next(item for item in case.train["items"] if item["name"] == name)
    long = {key: found[f"{key}_rle"] for key in ("input_ids", "labels") if f"{key}_rle" in found}
    return found | {k: [v for v, count in runs for _ in range(count)] for k, runs in long.items()}


def labels(prompt: Prompt) -> list[int]:
    pairs = zip(prompt.token_ids, prompt.is_target, strict=True)
    return [token_id if is_target else IGNORED for token_id, is_target in pairs]


def end_of(case) -> int:
    return case.expected["special_ids"]["generation_eos"]


@pytest.mark.parametrize(("folder", "name"), RECORDED_EQUAL)
def test_ids_and_labels_of_a_record_are_the_official_ones(folder, name, recording, data):
    case = recording(folder)
    prompt, item = encode(case, name, data), recorded(case, name)
    assert prompt.token_ids == item["input_ids"]
    assert labels(prompt) == item["labels"]
    if prompt.media:
        tiles = item["num_tiles"]
        assert len(prompt.tiles) == (sum(tiles) if isinstance(tiles, list) else tiles)


def test_a_leading_answer_is_never_learned(case, data):
    item = recorded(case, "starts_with_gpt")
    newer = case.expected["meta"]["template"] == "internvl2_5"
    prompt = encode(case, "starts_with_gpt", data, keep_greeting=newer)
    assert prompt.token_ids == item["input_ids"]
    first_answer = item["input_ids"].index(end_of(case), 0) if newer else 0
    second = [i for i, token_id in enumerate(item["input_ids"]) if token_id == end_of(case)][1]
    learned_from = second + 1 if newer else first_answer
    assert labels(prompt)[:learned_from] == [IGNORED] * learned_from
    assert labels(prompt)[learned_from:] == item["labels"][learned_from:]


def test_a_system_turn_is_read_in_every_template(case, data):
    item, prompt = recorded(case, "system_turn"), encode(case, "system_turn", data)
    if "error" not in item:
        assert prompt.token_ids == item["input_ids"]
        assert labels(prompt) == item["labels"]
    text = recorded(case, "system_turn")["item"]["conversations"][0]["value"]
    processor = processor_of(
        case.checkpoint, case.expected["meta"]["template"], case.expected["meta"]["image_size"]
    )
    assert text in processor.tokenizer.decode(prompt.token_ids)


def test_a_trailing_question_is_never_learned(case, data):
    item, prompt = recorded(case, "ends_with_human"), encode(case, "ends_with_human", data)
    assert prompt.token_ids == item["input_ids"]
    single = encode(case, "starts_with_gpt", data)
    learned = [token_id for token_id in labels(prompt) if token_id != IGNORED]
    assert learned == [token_id for token_id in labels(single) if token_id != IGNORED]


def test_an_empty_answer_closes_its_turn(case, data):
    item, prompt = recorded(case, "empty_answer"), encode(case, "empty_answer", data)
    end = end_of(case)
    newer = case.expected["meta"]["template"] == "internvl2_5"
    assert prompt.token_ids.count(end) == item["input_ids"].count(end) + (not newer)
    assert [t for t in labels(prompt) if t != IGNORED].count(end) == 2


def test_a_closing_token_typed_in_an_answer_stays_text(case, data):
    item = recorded(case, "literal_sep_in_answer")
    prompt = encode(case, "literal_sep_in_answer", data)
    assert item["input_ids"].count(end_of(case)) == 4
    assert prompt.token_ids.count(end_of(case)) == 3


def test_more_tags_than_images_are_a_fault(case, data):
    with pytest.raises(ValueError, match="1 pictures, but 2 <image>"):
        encode(case, "more_tags_than_images", data)


def _frames(root: Path, count: int | list | None) -> tuple[Image.Image, ...]:
    """What the recorded loader gave for the video: the pictures, then the first one turned."""
    first, second = (
        Image.open(root / name).convert("RGB") for name in ("image1.jpg", "image3.jpg")
    )
    total = len(count) if isinstance(count, list) else count or 0
    return (first, second, first.rotate(90))[:total]


def _decoded(part, frames: tuple[Image.Image, ...]):
    if isinstance(part, Video):
        return replace(part, source=frames, num_frames=len(frames))
    return part
