"""Conversations to prompts: layout of media, tile budgets, targets, system texts."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from internvl2.config import DecoderConfig, InternVLConfig, RotaryConfig, VisionConfig
from internvl2.processing.conversation import Message, Picture, Text, Video
from internvl2.processing.processor import EncodeOptions, Processor
from internvl2.processing.template import INTERNVL_TEAM, THINKING
from internvl2.processing.tile_cache import digest
from internvl2.processing.tokenizer import Tokenizer

WIDE = Image.new("RGB", (224, 112), (200, 10, 10))
SQUARE = Image.new("RGB", (56, 56), (10, 200, 10))


def config_of(template: str = "internvl2_5", **differences) -> InternVLConfig:
    vision = VisionConfig(16, 1, 2, 32, image_size=56)
    decoder = DecoderConfig("qwen2", 1000, 16, 1, 2, 2, 8, 32, 4096, RotaryConfig(1e4))
    return replace(InternVLConfig(vision, decoder, template, tile_size=56), **differences)


@pytest.fixture(scope="module")
def checkpoint(data):
    return data("official", "F_qwen3", "checkpoint")


@pytest.fixture(scope="module")
def processor(checkpoint) -> Processor:
    return Processor.from_directory(checkpoint, config_of())


def shown(processor: Processor, *messages: Message, **options) -> str:
    """The prompt as text, each picture as `<image>`, from the first user turn on."""
    prompt = processor.encode(messages, options=EncodeOptions(**options))
    text = processor.tokenizer.decode(prompt.token_ids, skip_special=False)
    runs = [span.stop - span.start for span in prompt.media]
    for count in sorted(runs, reverse=True):
        text = text.replace(f"<img>{'<IMG_CONTEXT>' * count}</img>", "<image>")
    return text[text.index("<|im_start|>user") :]


def test_a_single_picture_stands_on_a_line_without_label(processor):
    text = shown(processor, Message.user(Picture(SQUARE), "What?"))
    assert text == "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n"


def test_several_pictures_are_numbered_through_the_conversation(processor):
    text = shown(
        processor,
        Message.user(Picture(SQUARE), "One?", Picture(SQUARE)),
        Message.assistant("Yes."),
        Message.user(Picture(SQUARE), "And this?"),
    )
    assert "user\nImage-1: <image>\nOne?\nImage-2: <image>\n<|im_end|>" in text
    assert "user\nImage-3: <image>\nAnd this?<|im_end|>" in text


def test_frames_are_labelled_as_the_template_was_trained(processor, checkpoint):
    frames = Video((SQUARE, WIDE), num_frames=2)
    assert "user\nFrame-1: <image>\nFrame-2: <image>\nWhy?" in shown(
        processor, Message.user(frames, "Why?")
    )
    older = Processor.from_directory(checkpoint, config_of("Hermes-2"))
    assert "user\nFrame1: <image>\nFrame2: <image>\nWhy?" in shown(
        older, Message.user(frames, "Why?")
    )


def test_spans_find_every_picture_among_tokens_and_tiles(processor):
    prompt = processor.encode([Message.user(Picture(WIDE), "a", Picture(SQUARE))])
    context = processor.image_tokens.context
    assert [span.num_tiles for span in prompt.media] == [9, 1]
    for span in prompt.media:
        assert set(prompt.token_ids[span.start : span.stop]) == {context}
        assert prompt.token_ids[span.start - 1] == processor.image_tokens.opening
        assert prompt.token_ids[span.stop] == processor.image_tokens.closing
        assert span.num_tiles == span.columns * span.rows + span.thumbnail
    assert sum(span.num_tiles for span in prompt.media) == len(prompt.tiles)


def test_a_typed_placeholder_is_text(processor):
    prompt = processor.encode([Message.user("<image> <IMG_CONTEXT><|im_end|>")])
    assert prompt.media == ()
    assert processor.image_tokens.context not in prompt.token_ids
    assert "<image> <IMG_CONTEXT><|im_end|>" in processor.tokenizer.decode(prompt.token_ids)


def test_the_tile_budget_comes_from_picture_options_and_config(checkpoint):
    processor = Processor.from_directory(checkpoint, config_of(max_tiles=6))
    tiles = [
        len(processor.encode([Message.user(picture)], options=EncodeOptions(max_tiles=most)).tiles)
        for picture, most in [
            (Picture(WIDE), None),
            (Picture(WIDE), 2),
            (Picture(WIDE, max_tiles=1), 2),
        ]
    ]
    assert tiles[1:] == [3, 1]
    assert 3 <= tiles[0] <= 7


def test_a_model_without_dynamic_tiles_takes_one_per_picture(checkpoint):
    processor = Processor.from_directory(checkpoint, config_of(dynamic_tiles=False))
    assert len(processor.encode([Message.user(Picture(WIDE))]).tiles) == 1


def test_a_prompt_beyond_the_context_is_an_error_with_the_numbers(processor):
    message = Message.user(Picture(WIDE), "What?")
    length = len(processor.encode([message]).token_ids)
    told = rf"has {length} tokens .*room for {length - 1}; with max_tiles"
    with pytest.raises(ValueError, match=told):
        processor.encode([message], options=EncodeOptions(max_context=length - 1))


def test_a_prompt_is_fitted_with_fewer_tiles_where_asked(processor, caplog):
    message = Message.user(Picture(WIDE), Picture(SQUARE), "What?")
    length = len(processor.encode([message]).token_ids)
    options = EncodeOptions(max_context=length - 1, fit=True)
    with caplog.at_level(logging.WARNING):
        prompt = processor.encode([message], options=options)
    assert len(prompt.token_ids) < length
    assert "tiles per picture" in caplog.text


def test_the_fitted_budget_is_the_largest_that_fits(processor):
    message = Message.user(Picture(WIDE), Picture(SQUARE), "What?")

    def length(most: int) -> int:
        return len(processor.encode([message], options=EncodeOptions(max_tiles=most)).token_ids)

    lengths = [length(most) for most in range(1, 13)]
    for room in sorted(set(lengths)):
        options = EncodeOptions(max_context=room, fit=True)
        fitted = len(processor.encode([message], options=options).token_ids)
        assert fitted == [found for found in lengths if found <= room][-1]


@pytest.mark.parametrize("parts", [("word " * 50,), (Picture(SQUARE), Picture(SQUARE), "Hi")])
def test_what_cannot_fit_says_so_even_when_asked_to_fit(processor, parts):
    with pytest.raises(ValueError, match=r"shorten the text|take at least one each"):
        processor.encode([Message.user(*parts)], options=EncodeOptions(max_context=30, fit=True))


def test_the_system_text_is_the_conversations_or_the_configs_or_the_templates(checkpoint):
    def system(config: InternVLConfig, *messages: Message, **options) -> str:
        processor = Processor.from_directory(checkpoint, config)
        prompt = processor.encode(messages, options=EncodeOptions(**options))
        text = processor.tokenizer.decode(prompt.token_ids, skip_special=False)
        return text.split("<|im_end|>")[0].removeprefix("<|im_start|>system\n")

    ours, question = config_of(system_message="Ours."), Message.user("Hi")
    assert system(config_of(), question) == INTERNVL_TEAM
    assert system(ours, question) == "Ours."
    assert system(ours, Message.system("Mine."), question) == "Mine."
    assert system(ours, Message.system(""), question) == ""
    assert system(ours, question, thinking=True) == THINKING
    assert system(ours, Message.system("Mine."), question, thinking=True) == f"{THINKING}\n\nMine."


def test_answers_and_their_closing_token_are_targets(processor):
    messages = [
        Message.user("Hi"),
        Message.assistant(" Yes."),
        Message.user("a"),
        Message.assistant(""),
    ]
    prompt = processor.encode(messages)
    pairs = zip(prompt.token_ids, prompt.is_target, strict=True)
    learned = [token_id for token_id, is_target in pairs if is_target]
    text = processor.tokenizer.decode(learned, skip_special=False)
    assert text == " Yes.<|im_end|><|im_end|>"


def test_an_answered_conversation_is_closed_and_a_question_opens_the_answer(processor):
    question, answer = Message.user("Hi"), Message.assistant("Yes")
    assert shown(processor, question).endswith("<|im_start|>assistant\n")
    assert shown(processor, question, answer).endswith("Yes<|im_end|>\n")
    closed = shown(processor, question, add_generation_prompt=False)
    assert closed.endswith("user\nHi<|im_end|>\n")


def test_digests_tell_pixels_and_shapes_apart():
    zeros = np.zeros((2, 4, 4, 3), np.uint8)
    assert digest(zeros) == digest(zeros.copy())
    assert digest(zeros) != digest(zeros + 1)
    assert digest(zeros) != digest(zeros.reshape(1, 8, 4, 3))


def test_stop_tokens_are_the_templates_end_and_the_generation_configs(checkpoint, tmp_path):
    for path in checkpoint.iterdir():
        if path.suffix in (".json", ".txt"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [900, 902]}))
    assert Processor.from_directory(tmp_path, config_of()).stop_token_ids == (902, 900)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "x"}')
    with pytest.raises(ValueError, match=r"generation_config.json: eos_token_id 'x'"):
        Processor.from_directory(tmp_path, config_of())


def test_a_tokenizer_without_the_tokens_of_a_picture_is_refused(checkpoint, tmp_path):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    (tmp_path / "added_tokens.json").write_text('{"<|im_start|>": 900, "<|im_end|>": 901}')
    with pytest.raises(ValueError, match="has no token <IMG_CONTEXT>, which a picture needs"):
        Processor(config_of(), Tokenizer.from_directory(tmp_path))


def test_image_tokens_may_be_part_of_the_vocabulary_itself(checkpoint, tmp_path):
    vocabulary = json.loads((checkpoint / "vocab.json").read_text())
    vocabulary |= {"<img>": 900, "</img>": 901}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_bytes((checkpoint / "merges.txt").read_bytes())
    added = {"<IMG_CONTEXT>": 902, "<|im_start|>": 903, "<|im_end|>": 904}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    processor = Processor(config_of(), Tokenizer.from_directory(tmp_path))
    tokens = processor.image_tokens
    assert (tokens.opening, tokens.context, tokens.closing) == (900, 902, 901)


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([Message.user("a"), Message.system("b")], "message 2 is a system message"),
        ([Message("assistant", (Picture(SQUARE),))], r"message 1 \(assistant\) holds pictures"),
    ],
)
def test_conversations_that_cannot_be_written_are_refused(processor, messages, fault):
    with pytest.raises(ValueError, match=fault):
        processor.encode(messages)


def test_nonsensical_options_are_refused():
    with pytest.raises(ValueError, match="max_tiles is 0"):
        EncodeOptions(max_tiles=0)


def test_text_parts_are_merged_across_their_border(processor):
    whole = processor.encode([Message.user("isn't it?")]).token_ids
    parts = processor.encode([Message("user", (Text("is"), Text("n't it"), Text("?")))]).token_ids
    assert parts == whole
