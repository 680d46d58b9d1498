"""Conversations from the forms in which they are stored or sent.

OpenAI-style messages, and the records of the official training files (also called ShareGPT form).
Only the latter know `<image>` and `<video>` as placeholders; here they become parts of a message.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internvl2.processing.conversation import Message, Part, Picture, Role, Text, Video

OPENAI_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
RECORD_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}
PLACEHOLDER = re.compile("<image>")


def from_openai(messages: Any) -> tuple[Message, ...]:
    """Messages as the OpenAI API writes them; what is not understood is an error that names it."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise ValueError(
            f"messages is a {type(messages).__name__}; a list of messages was expected"
        )
    return tuple(_openai_message(message, f"messages[{i}]") for i, message in enumerate(messages))


@dataclass(frozen=True, slots=True)
class RecordOptions:
    """How the official training records are read."""

    strip_turns: bool = False
    """Remove the whitespace around every turn, as the official code does for internlm2-chat."""
    keep_greeting: bool = False
    """Keep an answer before the first question; it is never learned."""
    num_frames: int = 8
    """How many frames a video gives."""
    max_tiles: int | None = None
    """Tile budget of a record, shared by its pictures; None leaves it to the encoder."""


def from_opengvlab(
    record: Mapping[str, Any], media_root: str | Path = "", options: RecordOptions | None = None
) -> tuple[Message, ...]:
    """The conversation of one record: `conversations`, and `image` (one or a list) or `video`."""
    options = options or RecordOptions()
    turns = _record_turns(record, options)
    if record.get("video") is not None:
        turns = _with_video(turns, _record_video(record, Path(media_root), options))
    pictures = _record_pictures(record, Path(media_root), options)
    return tuple(_with_pictures(turns, pictures) if pictures else turns)


def _openai_message(message: Any, where: str) -> Message:
    fields = _fields(message, where, required=("role", "content"))
    role = OPENAI_ROLES.get(fields["role"]) if isinstance(fields["role"], str) else None
    if role is None:
        raise ValueError(f"{where}.role is {fields['role']!r}; known: {', '.join(OPENAI_ROLES)}")
    content = fields["content"]
    if isinstance(content, str):
        return Message(role, (Text(content),))
    if isinstance(content, (bytes, Mapping)) or not isinstance(content, Sequence):
        raise ValueError(f"{where}.content is neither a text nor a list of parts: {content!r}")
    parts = [_openai_part(part, f"{where}.content[{i}]") for i, part in enumerate(content)]
    if role != "user" and any(not isinstance(part, Text) for part in parts):
        raise ValueError(f"{where} ({role}) holds pictures; only users send them")
    return Message(role, tuple(parts))


def _openai_part(part: Any, where: str) -> Part:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        text = _fields(part, where, required=("type", "text"))["text"]
        if not isinstance(text, str):
            raise ValueError(f"{where}.text is not a text: {text!r}")
        return Text(text)
    if kind == "image_url":
        return _openai_picture(part, where)
    if kind == "video_url":
        return _openai_video(part, where)
    shown = part if kind is None else kind
    raise ValueError(f"{where} has the type {shown!r}; known: text, image_url, video_url")


def _openai_picture(part: Mapping[str, Any], where: str) -> Picture:
    given = _fields(part, where, required=("type", "image_url"))["image_url"]
    where = f"{where}.image_url"
    link = _fields(_link(given), where, required=("url",), optional=("detail", "max_tiles"))
    detail = link.get("detail", "auto")
    if detail not in ("auto", "low", "high"):
        raise ValueError(f"{where}.detail is {detail!r}; known: auto, low, high")
    tiles = _number(link, "max_tiles", where, whole=True)
    return Picture(link["url"], max_tiles=1 if detail == "low" and tiles is None else tiles)


def _openai_video(part: Mapping[str, Any], where: str) -> Video:
    given = _fields(part, where, required=("type", "video_url"))["video_url"]
    where = f"{where}.video_url"
    names = ("num_frames", "start", "end", "max_tiles")
    link = _fields(_link(given), where, required=("url",), optional=names)
    frames = _number(link, "num_frames", where, whole=True)
    tiles = _number(link, "max_tiles", where, whole=True)
    return Video(
        link["url"],
        num_frames=8 if frames is None else frames,
        start=_number(link, "start", where),
        end=_number(link, "end", where),
        max_tiles=1 if tiles is None else tiles,
    )


def _link(given: Any) -> Any:
    """The object form of a link; a plain address or an opened picture stands for itself."""
    return given if isinstance(given, Mapping) else {"url": given}


def _fields(
    given: Any, where: str, required: Sequence[str], optional: Sequence[str] = ()
) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise ValueError(f"{where} is a {type(given).__name__}; an object was expected")
    for name in required:
        if given.get(name) is None:
            raise ValueError(f"{where} lacks the field {name!r}")
    known = (*required, *optional)
    for name in given:
        if name not in known:
            raise ValueError(f"{where} has the unknown field {name!r}; known: {', '.join(known)}")
    return given


def _number(link: Mapping[str, Any], name: str, where: str, whole: bool = False) -> Any:
    value = link.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise ValueError(f"{where}.{name} is {value!r}; it must be a {'whole ' * whole}number")
    if value < (1 if whole else 0):
        raise ValueError(f"{where}.{name} is {value!r}; it must be at least {int(whole)}")
    return value if whole else float(value)


def _record_turns(record: Mapping[str, Any], options: RecordOptions) -> list[Message]:
    conversations = record.get("conversations")
    if not isinstance(conversations, list) or not conversations:
        raise ValueError("the record has no list of turns under 'conversations'")
    turns = [_record_turn(turn, i, options) for i, turn in enumerate(conversations)]
    system = [turn for turn in turns[:1] if turn.role == "system"]
    rest = turns[len(system) :]
    if not options.keep_greeting:
        while rest and rest[0].role == "assistant":
            rest = rest[1:]
    return system + rest


def _record_turn(turn: Any, index: int, options: RecordOptions) -> Message:
    where = f"conversations[{index}]"
    if not isinstance(turn, Mapping) or "from" not in turn or "value" not in turn:
        raise ValueError(f"{where} lacks 'from' or 'value': {turn!r}")
    role = RECORD_ROLES.get(turn["from"]) if isinstance(turn["from"], str) else None
    if role is None:
        raise ValueError(f"{where}.from is {turn['from']!r}; known: {', '.join(RECORD_ROLES)}")
    if role == "system" and index:
        raise ValueError(f"{where} is a system turn; only the first may be one")
    if not isinstance(turn["value"], str):
        raise ValueError(f"{where}.value is not a text: {turn['value']!r}")
    return Message(role, (Text(turn["value"].strip() if options.strip_turns else turn["value"]),))


def _record_pictures(
    record: Mapping[str, Any], root: Path, options: RecordOptions
) -> list[Picture]:
    given = record.get("image")
    if given is None or given == []:
        return []
    if record.get("video") is not None:
        raise ValueError("the record has both 'image' and 'video'; one of them was expected")
    names = given if isinstance(given, list) else [given]
    if not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"'image' is neither a path nor a list of paths: {given!r}")
    share = options.max_tiles and max(1, options.max_tiles // len(names))
    return [Picture(root / name, max_tiles=share, inline=True) for name in names]


def _record_video(record: Mapping[str, Any], root: Path, options: RecordOptions) -> Video:
    name, clip = record["video"], record.get("clip")
    if not isinstance(name, str) or not name:
        raise ValueError(f"'video' is not a path: {name!r}")
    if clip is None:
        return Video(root / name, num_frames=options.num_frames, inline=True)
    numbers = isinstance(clip, list) and all(isinstance(value, (int, float)) for value in clip)
    if not numbers or len(clip) != 2:
        raise ValueError(f"'clip' is {clip!r}; [start, end] in seconds was expected")
    start, end = map(float, clip)
    return Video(root / name, num_frames=options.num_frames, start=start, end=end, inline=True)


def _with_video(turns: list[Message], video: Video) -> list[Message]:
    """The video where the first question has `<video>`, else on a line before it."""
    first = _first_question(turns)
    before, tag, after = turns[first].text.partition("<video>")
    if not tag:
        before, after = "", f"\n{turns[first].text}"
    if "<video>" in after:
        raise ValueError("the record has one video, but more than one <video>")
    question = Message("user", (*_texts(before), video, *_texts(after)))
    return [*turns[:first], question, *turns[first + 1 :]]


def _with_pictures(turns: list[Message], pictures: list[Picture]) -> list[Message]:
    """The pictures where the questions have `<image>`; a single one may go without."""
    tags = sum(len(PLACEHOLDER.findall(turn.text)) for turn in turns if turn.role == "user")
    if not tags and len(pictures) == 1:
        first = _first_question(turns)
        question = Message("user", (pictures[0], Text(f"\n{turns[first].text}")))
        return [*turns[:first], question, *turns[first + 1 :]]
    if tags != len(pictures):
        raise ValueError(f"the record has {len(pictures)} pictures, but {tags} <image>")
    remaining = iter(pictures)
    return [_replace_tags(turn, remaining) if turn.role == "user" else turn for turn in turns]


def _replace_tags(turn: Message, pictures: Iterator[Picture]) -> Message:
    texts = PLACEHOLDER.split(turn.text)
    parts: list[Part] = [*_texts(texts[0])]
    for text in texts[1:]:
        parts += [next(pictures), *_texts(text)]
    return Message("user", tuple(parts))


def _first_question(turns: list[Message]) -> int:
    for index, turn in enumerate(turns):
        if turn.role == "user":
            return index
    raise ValueError("the record has a picture or video, but no human turn for it")


def _texts(text: str) -> list[Text]:
    return [Text(text)] if text else []
