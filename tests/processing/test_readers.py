"""Conversations from OpenAI-style messages and from training records."""

from pathlib import Path

import pytest

from internvl2.processing.conversation import Message, Picture, Text, Video
from internvl2.processing.readers import RecordOptions, from_openai, from_opengvlab


def turn(side: str, value: str) -> dict:
    return {"from": side, "value": value}


def record(*turns: dict, **fields) -> dict:
    return {"conversations": list(turns)} | fields


QUESTION = turn("human", "What is this?")
ANSWER = turn("gpt", "A dog.")


def test_openai_messages_become_parts_in_their_order():
    content = [
        {"type": "text", "text": "Look:"},
        {"type": "image_url", "image_url": {"url": "a.png", "max_tiles": 6}},
        {"type": "image_url", "image_url": {"url": "b.png", "detail": "low"}},
        {"type": "video_url", "video_url": {"url": "c.mp4", "num_frames": 4, "start": 1.5}},
    ]
    messages = from_openai(
        [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": content}]
    )
    parts = (
        Text("Look:"),
        Picture("a.png", max_tiles=6),
        Picture("b.png", max_tiles=1),
        Video("c.mp4", num_frames=4, start=1.5),
    )
    assert messages == (Message.system("Be brief."), Message("user", parts))


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ({"role": "tool", "content": ""}, r"messages\[0\].role is 'tool'"),
        ({"role": "user"}, r"messages\[0\] lacks the field 'content'"),
        ({"role": "user", "content": "", "name": "x"}, "unknown field 'name'"),
        ({"role": "user", "content": 3}, "neither a text nor a list"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "has the type 'input_audio'"),
        ({"role": "user", "content": ["hi"]}, r"content\[0\] has the type 'hi'"),
        ({"role": "user", "content": [{"type": "text", "text": 1}]}, "text is not a text: 1"),
        ("hi", r"messages\[0\] is a str"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a", "x": 1}}]},
            r"content\[0\].image_url has the unknown field 'x'; known: url, detail, max_tiles",
        ),
        (
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "a", "max_tiles": 0}}],
            },
            "max_tiles is 0; it must be at least 1",
        ),
        (
            {"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "a"}}]},
            "only users send them",
        ),
    ],
)
def test_what_openai_messages_must_not_hold_is_named(message, fault):
    with pytest.raises(ValueError, match=fault):
        from_openai([message])


def test_messages_must_be_a_list():
    with pytest.raises(ValueError, match="a list of messages was expected"):
        from_openai({"role": "user"})


def test_a_single_picture_without_tag_stands_before_the_first_question():
    messages = from_opengvlab(record(QUESTION, ANSWER, image="a.png"), "root")
    picture = Picture(Path("root/a.png"), inline=True)
    assert messages[0].content == (picture, Text("\nWhat is this?"))


def test_tags_take_the_pictures_in_order():
    both = turn("human", "Image-1: <image>\nImage-2: <image>\nCompare.")
    messages = from_opengvlab(record(both, ANSWER, image=["a.png", "b.png"]))
    sources = [p.source for p in messages[0].content if isinstance(p, Picture)]
    assert sources == [Path("a.png"), Path("b.png")]
    assert messages[0].text == "Image-1: \nImage-2: \nCompare."


def test_a_tag_in_an_answer_is_text():
    answer = turn("gpt", "the <image> tag")
    messages = from_opengvlab(record(turn("human", "<image>\nHi"), answer, image="a.png"))
    assert messages[1] == Message.assistant("the <image> tag")


def test_several_pictures_share_the_tile_budget():
    both = turn("human", "<image><image>")
    options = RecordOptions(max_tiles=12)
    messages = from_opengvlab(record(both, ANSWER, image=["a", "b"]), "", options)
    assert [part.max_tiles for part in messages[0].content] == [6, 6]


def test_a_video_stands_at_its_tag_or_before_the_first_question():
    clipped = record(turn("human", "<video>\nWhy?"), ANSWER, video="v.mp4", clip=[1, 2.5])
    video = Video(Path("v.mp4"), num_frames=8, start=1.0, end=2.5, inline=True)
    assert from_opengvlab(clipped)[0].content == (video, Text("\nWhy?"))
    messages = from_opengvlab(record(QUESTION, ANSWER, video="v.mp4"))
    assert messages[0].content[1] == Text("\nWhat is this?")


def test_a_system_turn_is_kept_and_a_greeting_dropped():
    turns = [turn("system", "Be brief."), turn("gpt", "Hi!"), QUESTION, ANSWER]
    roles = [message.role for message in from_opengvlab(record(*turns))]
    assert roles == ["system", "user", "assistant"]
    kept = from_opengvlab(record(*turns), "", RecordOptions(keep_greeting=True))
    assert [message.role for message in kept] == ["system", "assistant", "user", "assistant"]


def test_turns_are_stripped_on_request_only():
    padded = record(turn("human", "  Hi\n"), ANSWER)
    assert from_opengvlab(padded)[0].text == "  Hi\n"
    assert from_opengvlab(padded, "", RecordOptions(strip_turns=True))[0].text == "Hi"


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        ({}, "no list of turns under 'conversations'"),
        (record(turn("bot", "x")), r"conversations\[0\].from is 'bot'"),
        (record({"from": "human"}), "lacks 'from' or 'value'"),
        (record(turn("human", 3)), "value is not a text"),
        (record(QUESTION, turn("system", "x")), r"conversations\[1\] is a system turn"),
        (record(QUESTION, image=["a", "b"]), "2 pictures, but 0 <image>"),
        (record(turn("human", "<image> <image>"), image="a"), "1 pictures, but 2 <image>"),
        (record(QUESTION, image="a", video="b"), "both 'image' and 'video'"),
        (record(QUESTION, image=3), "neither a path nor a list"),
        (record(QUESTION, video=3), "'video' is not a path: 3"),
        (record(QUESTION, video="v", clip=3), "'clip' is 3"),
        (record(turn("human", "<video><video>"), video="v"), "more than one <video>"),
        (record(turn("system", "x"), image="a"), "no human turn"),
    ],
)
def test_what_is_wrong_with_a_record_is_said(broken, fault):
    with pytest.raises(ValueError, match=fault):
        from_opengvlab(broken)
