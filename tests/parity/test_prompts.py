"""Rendered conversations against the official chat templates, their ids and their labels."""

import json
from itertools import groupby
from pathlib import Path

import pytest

from internvl2.config import DecoderConfig, InternVLConfig, RotaryConfig, VisionConfig
from internvl2.processing.conversation import Message, Picture, Text
from internvl2.processing.layout import MediumSize
from internvl2.processing.processor import Processor

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
ON_PURPOSE = {
    "tricky_2": "a typed <|im_end|> is plain text",
    "tricky_text_2": "a typed <|im_end|> is plain text",
    "empty_answer_history": "an empty answer closes its turn",
    "more_patches_than_tags": "the call gives more tiles than the prompt has places",
    "no_tag_with_empty_history": "the call gives a picture without a place for it",
}


@pytest.fixture
def processor_of(tokenizer_of):
    """A processor with the tokenizer in a directory."""

    def make(directory: Path, template: str, tile_size: int) -> Processor:
        return Processor(config_of(template, tile_size), tokenizer_of(directory))

    return make


def config_of(template: str, tile_size: int = 448) -> InternVLConfig:
    vision = VisionConfig(16, 1, 2, 32, image_size=tile_size)
    decoder = DecoderConfig("qwen2", 1000, 16, 1, 2, 2, 8, 32, 4096, RotaryConfig(1e4))
    return InternVLConfig(vision, decoder, template, tile_size=tile_size)


@pytest.fixture(params=CASES)
def case(request, recording):
    return recording(request.param)


@pytest.fixture(
    params=("internlm2", pytest.param("qwen2", marks=pytest.mark.slow), "qwen2.5", "phi3")
)
def golden(request, data):
    recorded = json.loads(data("tokenizers", "golden.json").read_text())[request.param]
    return data("tokenizers", request.param), recorded["prompts"]


def test_recorded_prompts_have_the_same_ids(processor_of, case, expand):
    meta = case.expected["meta"]
    processor = processor_of(case.checkpoint, meta["template"], meta["image_size"])
    for prompt in case.expected["prompts"]:
        if prompt["name"] in ON_PURPOSE:
            continue
        expected = prompt.get("input_ids") or expand(prompt["input_ids_rle"])
        assert render(processor, prompt, meta["num_image_token"]) == expected, prompt["name"]


def test_prompts_that_differ_on_purpose_do_differ(processor_of, case, expand):
    meta = case.expected["meta"]
    processor = processor_of(case.checkpoint, meta["template"], meta["image_size"])
    for name in ("tricky_2", "tricky_text_2", "empty_answer_history"):
        prompt = next(p for p in case.expected["prompts"] if p["name"] == name)
        expected = prompt.get("input_ids") or expand(prompt["input_ids_rle"])
        ours = render(processor, prompt, meta["num_image_token"])
        end = processor.stop_token_ids[0]
        assert ours.count(end) - expected.count(end) == (1 if "empty" in name else typed_ends(case))


def test_golden_prompts_have_the_same_ids(processor_of, golden):
    directory, prompts = golden
    for prompt in prompts:
        processor = processor_of(directory, prompt["template"], 448)
        messages = [
            message for question, answer in prompt["turns"] for message in _turn(question, answer)
        ]
        sizes = [MediumSize((256 * tiles,)) for tiles in prompt["tiles"]]
        ids = encode(processor, processor.template.default_system, messages, sizes)
        assert [[key, len(list(group))] for key, group in groupby(ids)] == prompt["ids_rle"]


def render(processor: Processor, prompt: dict, tokens_per_tile: int) -> list[int]:
    """The ids of a recorded call, its placeholders taken as pictures left to right."""
    question, history = prompt["question"], prompt["history"]
    tiles = prompt["num_patches_list"] or ([prompt["num_tiles"]] if prompt["num_tiles"] else [])
    if history is None and tiles and "<image>" not in question:
        question = f"<image>\n{question}"
    turns = [*(history or []), [question, None]]
    messages = []
    places = len(tiles)
    for asked, answered in turns:
        messages += _turn(asked, answered, places - _pictures(messages))
    sizes = [MediumSize((count * tokens_per_tile,)) for count in tiles]
    return encode(processor, str(prompt["system_message"]), messages, sizes)


def encode(processor: Processor, system: str, messages: list, sizes: list) -> list[int]:
    pieces = processor.layout.pieces(system, messages, sizes, open_answer=True)
    return processor.tokenizer.encode_pieces(pieces).token_ids


def typed_ends(case) -> int:
    """How many closing tokens the official code makes of the typed `<|im_end|>`."""
    return 0 if case.expected["meta"]["template"] == "phi3-chat" else -1


def _turn(question: str, answer: str | None, places: int = 99) -> list[Message]:
    texts = question.split("<image>", places)
    parts = [Text(texts[0])]
    for text in texts[1:]:
        parts += [Picture("unused.png", inline=True), Text(text)]
    answers = [] if answer is None else [Message.assistant(answer)]
    return [Message("user", tuple(parts)), *answers]


def _pictures(messages: list[Message]) -> int:
    return sum(isinstance(part, Picture) for message in messages for part in message.content)
