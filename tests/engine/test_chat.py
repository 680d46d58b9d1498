"""A conversation remembers its turns, and nothing of a turn that failed."""

import threading
import time

import pytest

from internvl2.engine.sequence import SamplingParams
from internvl2.processing.conversation import Message, Picture, Text, Video

FIVE = SamplingParams(max_tokens=5, ignore_eos=True)


def test_questions_and_answers_become_turns(make_engine):
    chat = make_engine().chat(system="be brief", params=FIVE)
    first = chat.ask("hello")
    second = "".join(output.text for output in chat.stream("more"))
    assert chat.messages == [
        Message.system("be brief"),
        Message("user", (Text("hello"),)),
        Message.assistant(first.text),
        Message("user", (Text("more"),)),
        Message.assistant(second),
    ]


def test_a_later_turn_finds_the_earlier_ones_in_the_cache(make_engine):
    chat = make_engine(block_size=4).chat(params=FIVE)
    chat.ask("hello there, this is long")
    assert chat.ask("and on").usage.cached_tokens >= 24


def test_a_turn_that_fails_or_is_left_is_not_remembered(make_engine):
    chat = make_engine().chat(params=FIVE)
    with pytest.raises(ValueError, match="cannot be read"):
        chat.ask("bad")
    stream = chat.stream("hello")
    next(stream)
    stream.close()
    assert chat.messages == []


def test_a_question_can_be_taken_back_and_all_be_forgotten(make_engine):
    chat = make_engine().chat(system="be brief", params=FIVE)
    assert chat.undo() is None
    chat.ask("one")
    chat.ask("two")
    assert chat.undo() == Message("user", (Text("two"),))
    assert len(chat.messages) == 3
    chat.clear()
    chat.set_system(None)
    assert chat.messages == []


def test_pictures_and_a_video_come_before_the_text(make_engine):
    chat = make_engine().chat(params=FIVE)
    chat.ask("what?", images=["a.jpg", Picture("b.jpg", max_tiles=2)], video="c.mp4")
    assert chat.messages[0].content == (
        Picture("a.jpg"),
        Picture("b.jpg", max_tiles=2),
        Video("c.mp4"),
        Text("what?"),
    )


def test_one_picture_without_a_list_is_refused(make_engine):
    with pytest.raises(ValueError, match="must be a list of pictures"):
        make_engine().chat().ask("what?", images="a.jpg")


def test_an_answer_that_closing_cut_off_is_not_remembered(make_engine, monkeypatch):
    engine = make_engine()
    chat = engine.chat(params=SamplingParams(max_tokens=300, ignore_eos=True))
    running = threading.Event()
    run = engine.runner.begin
    monkeypatch.setattr(
        engine.runner, "begin", lambda step: (running.set(), time.sleep(0.005), run(step))[2]
    )
    closing = threading.Thread(target=lambda: (running.wait(5), engine.close()))
    closing.start()
    assert chat.ask("hello").finish_reason == "abort"
    closing.join()
    assert chat.messages == []
