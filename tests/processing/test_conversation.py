"""Messages and what they may hold."""

import pytest

from internvl2.processing.conversation import Message, Picture, Text, Video


def test_strings_become_text_parts():
    message = Message.user(Picture("a.png"), "What is this?")
    assert message.content == (Picture("a.png"), Text("What is this?"))
    assert message.text == "What is this?"


def test_an_unknown_role_is_named():
    with pytest.raises(ValueError, match="unknown role 'tool'; known: system, user, assistant"):
        Message("tool", ())


def test_a_system_message_holds_text_only():
    with pytest.raises(ValueError, match="text only"):
        Message("system", (Picture("a.png"),))


def test_a_string_without_its_list_is_not_taken_apart():
    assert Message.user("abc").content == (Text("abc"),)
    assert Video("a.mp4").max_tiles == 1
