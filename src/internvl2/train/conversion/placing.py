"""Where pictures and videos stand in a conversation: as parts of it, or as tags in its text.

As a part of its own, a picture gets its label and line break when a prompt is laid out; a tag
stands bare in text that has both. What is written in one way and read in the other must give the
same prompt.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from internvl2.processing.conversation import Message, Part, Picture, Text, Video
from internvl2.processing.layout import picture_labels

_LABEL = re.compile(r"Image-\d+: $")


@dataclass(frozen=True, slots=True)
class Tagged:
    """A conversation whose texts hold `<image>` and `<video>`, and what these stand for."""

    turns: tuple[tuple[str, str], ...]
    """Role and text."""
    pictures: tuple[Picture, ...]
    videos: tuple[Video, ...]


def tagged(messages: Sequence[Message]) -> Tagged:
    """The conversation with tags in its text, laid out as its prompt."""
    placed = inline(messages)
    media = [part for message in placed for part in message.content]
    return Tagged(
        tuple((message.role, "".join(map(_tag, message.content))) for message in placed),
        tuple(part for part in media if isinstance(part, Picture)),
        tuple(part for part in media if isinstance(part, Video)),
    )


def inline(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation with the labels and line breaks of its media in its text, texts joined."""
    labels = iter(picture_labels(messages))
    return tuple(_joined(message.role, _placed(message.content, labels)) for message in messages)


def as_parts(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation with its media as parts, without what a prompt puts around these anyway.

    Its prompt is the same (`inline` says so) only where that is all that stood around them.
    """
    media = [part for message in messages for part in message.content]
    if not any(isinstance(part, Picture | Video) and part.inline for part in media):
        return tuple(messages)
    labelled = sum(isinstance(part, Picture) for part in media) > 1
    return tuple(_stripped(message, labelled) for message in inline(messages))


def _stripped(message: Message, labelled: bool) -> Message:
    parts: list[Part] = []
    for part in message.content:
        if not isinstance(part, Text):
            if parts and isinstance(before := parts[-1], Text) and labelled:
                parts[-1] = Text(_LABEL.sub("", before.text))
            parts.append(replace(part, inline=False))
        elif parts:
            parts.append(Text(part.text.removeprefix("\n")))
        else:
            parts.append(part)
    return _joined(message.role, parts)


def _placed(content: Sequence[Part], labels: Iterator[str]) -> Iterator[Part]:
    before = ""
    for part in content:
        if isinstance(part, Text):
            yield part
            before = part.text
            continue
        if not part.inline:
            if before[-1:] not in ("", "\n"):
                yield Text("\n")
            if isinstance(part, Picture):
                yield Text(next(labels))
        yield replace(part, inline=True)
        if not part.inline:
            yield Text("\n")
        before = ""


def _joined(role: str, parts: Sequence[Part] | Iterator[Part]) -> Message:
    """A message whose neighbouring texts are one, and none of them empty."""
    found: list[Part] = []
    for part in parts:
        if isinstance(part, Text) and found and isinstance(before := found[-1], Text):
            found[-1] = Text(before.text + part.text)
        elif not isinstance(part, Text) or part.text:
            found.append(part)
    return Message(role, tuple(found))


def _tag(part: Part) -> str:
    if isinstance(part, Text):
        return part.text
    return "<image>" if isinstance(part, Picture) else "<video>"
