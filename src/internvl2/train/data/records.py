"""From one stored record, in any known form, to a conversation that is fit to be learned.

Which form a record has is found out from its keys. `<image>` and `<video>` are placeholders where
media are listed beside the text, and nowhere else. What a model must not learn from is a fault.
"""

import json
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from internvl2.processing.conversation import Message, Part, Picture, Text, Video
from internvl2.processing.image import picture_size
from internvl2.processing.readers import RecordOptions, from_openai, from_opengvlab

FORMS = (
    "conversations (OpenGVLab, LLaVA, ShareGPT)",
    "messages (OpenAI, ms-swift)",
    "texts (Hugging Face)",
    "question and answer",
    "query and response",
)
SCALE = 1000
"""Boxes are in thousandths of a picture's sides."""
BOX = re.compile(r"<box>\s*(\[[^<]*(?:<(?!/?box>)[^<]*)*\])\s*</box>")
"""A list of boxes, or one box, in a text; looks at each character once, for texts may be long."""

_URL = re.compile(r"(https?://|data:)", re.IGNORECASE)
_UNREAD = ("audio", "audios", "tools")
"""Fields that change what a record means, and that the family cannot read."""
_MISTAKEN = ("picture", "pictures", "photo", "img", "image_path", "image_file", "video_path")
"""Fields that hold media in other programs; unread, a model would learn to answer blindly."""

Source = str | Path | bytes


@dataclass(frozen=True, slots=True)
class Reading:
    """How records become conversations."""

    root: Path = Path()
    """Folder that relative paths of media start from."""
    template: str = ""
    """Name of the chat template; the official code treats white space and greetings by it."""
    num_frames: int = 8
    """How many frames a video gives."""

    def options(self) -> RecordOptions:
        """As the official data sets do for this template."""
        return RecordOptions(
            strip_turns=self.template == "internlm2-chat",
            keep_greeting=self.template == "internvl2_5",
            num_frames=self.num_frames,
        )


@dataclass(frozen=True, slots=True)
class _Listed:
    """A conversation whose media are listed beside it."""

    turns: list[Any]
    pictures: list[Source]
    video: Source | None
    clip: Any = None


def read_record(record: Mapping[str, Any], reading: Reading) -> tuple[Message, ...]:
    """The conversation of a record, which `check_conversation` has yet to look at."""
    for name in _UNREAD:
        if record.get(name):
            raise ValueError(f"the field {name!r} cannot be read")
    if not record.keys() & {"image", "images", "video", "videos"}:
        for name in filter(record.get, _MISTAKEN):
            raise ValueError(f"the field {name!r} is not read; known: image, images, video")
    return _conversation(record, reading)


@dataclass(frozen=True, slots=True)
class Flaw:
    """Something in a conversation that a model must not learn."""

    kind: Literal["turns", "empty answer", "box", "no answer"]
    reason: str


def check_conversation(messages: Sequence[Message]) -> None:
    """Raise for what a model must not learn from: nothing to learn, or a box outside."""
    for flaw in conversation_flaws(messages):
        raise ValueError(flaw.reason)


def conversation_flaws(messages: Sequence[Message]) -> Iterator[Flaw]:
    """All that `check_conversation` raises for, in the order of the turns."""
    asked = answered = False
    previous = ""
    for number, message in enumerate(messages, 1):
        if message.role == previous:
            yield Flaw("turns", f"turns {number - 1} and {number} are both of the {previous}")
        previous = message.role
        asked = asked or message.role == "user"
        if message.role == "assistant" and asked:
            if not message.text.strip():
                yield Flaw("empty answer", f"turn {number} is an empty answer")
            answered = True
        yield from (Flaw("box", reason) for reason in _bad_boxes(message.text, number))
    if not answered:
        yield Flaw("no answer", "the record has no answer to learn")


def _conversation(record: Mapping[str, Any], reading: Reading) -> tuple[Message, ...]:
    if "conversations" in record:
        return _attached(_listed(record, record["conversations"], reading), reading)
    if "messages" in record:
        return _from_messages(record, reading)
    if "texts" in record:
        return _from_texts(record, reading)
    for question, answer in (("question", "answer"), ("query", "response")):
        if question in record and answer in record:
            return _from_pair(record, question, answer, reading)
    known = "; ".join(FORMS)
    keys = ", ".join(map(repr, record)) or "none"
    raise ValueError(f"unknown form with the keys {keys}; known: {known}")


def _from_messages(record: Mapping[str, Any], reading: Reading) -> tuple[Message, ...]:
    messages = record["messages"]
    if not isinstance(messages, list) or not messages:
        raise ValueError("'messages' is not a list of messages")
    contents = [m.get("content") if isinstance(m, Mapping) else None for m in messages]
    if any(isinstance(content, list) for content in contents):
        if _has_objects(record):
            raise ValueError("'objects' goes with plain texts, in which <bbox> is replaced")
        found = from_openai(_placed(record, messages, reading))
        return tuple(_with_parts(m, [_rebased(p, reading) for p in m.content]) for m in found)
    turns = [_turn(message, index) for index, message in enumerate(messages)]
    return _attached(_listed(record, turns, reading), reading)


def _placed(record: Mapping[str, Any], messages: list[Any], reading: Reading) -> list[Any]:
    """OpenAI messages of such whose parts {"type": "image"} stand for what is listed beside."""
    waiting = {
        "image": deque(_source(item) for item in _items(record, "image", "images")),
        "video": deque(_source(item) for item in _items(record, "video", "videos")),
    }

    def placed(part: Any) -> Any:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if not isinstance(kind, str) or kind not in waiting:
            return part
        if part.get(kind) is None and not waiting[kind]:
            raise ValueError(f"more parts of type {kind!r} than the record lists")
        source = waiting[kind].popleft() if part.get(kind) is None else _source(part[kind])
        frames = {"num_frames": reading.num_frames} if kind == "video" else {}
        return {"type": f"{kind}_url", f"{kind}_url": {"url": source} | frames}

    changed = [
        {**message, "content": [placed(part) for part in message["content"]]}
        if isinstance(message, Mapping) and isinstance(message.get("content"), list)
        else message
        for message in messages
    ]
    if left := sum(map(len, waiting.values())):
        raise ValueError(f"{left} of the listed pictures and videos are placed by no part")
    return changed


def _from_texts(record: Mapping[str, Any], reading: Reading) -> tuple[Message, ...]:
    """The form of FineVision and the Cauldron: pictures, then pairs of `user` and `assistant`."""
    turns: list[dict[str, Any]] = []
    if not isinstance(record["texts"], Sequence) or not len(record["texts"]):
        raise ValueError("'texts' is not a list of turns")
    for index, pair in enumerate(record["texts"]):
        if not isinstance(pair, Mapping) or not {"user", "assistant"} <= pair.keys():
            raise ValueError(f"texts[{index}] lacks 'user' or 'assistant': {pair!r}")
        turns += [_said("user", pair["user"]), _said("assistant", pair["assistant"])]
    return _pictures_first(_listed(record, turns, reading), reading)


def _from_pair(
    record: Mapping[str, Any], question: str, answer: str, reading: Reading
) -> tuple[Message, ...]:
    """A question and its answer, after `system` and `history` where there are any."""
    for name in (question, answer):
        if not isinstance(record[name], str):
            raise ValueError(f"{name!r} is {record[name]!r}; a text was expected")
    turns = [_said("system", record["system"])] if record.get("system") else []
    history = record.get("history") or []
    if not isinstance(history, list):
        raise ValueError(f"'history' is {history!r}; a list of questions and answers was expected")
    for pair in history:
        if not isinstance(pair, Sequence) or len(pair) != 2:
            raise ValueError(f"'history' holds {pair!r}; a question and its answer were expected")
        turns += [_said("user", pair[0]), _said("assistant", pair[1])]
    turns += [_said("user", record[question]), _said("assistant", record[answer])]
    listed = _listed({k: v for k, v in record.items() if k != "system"}, turns, reading)
    tagged = any("<image>" in t["value"] for t in turns if isinstance(t["value"], str))
    return _attached(listed, reading) if tagged else _pictures_first(listed, reading)


def _said(role: str, text: Any) -> dict[str, Any]:
    return {"from": role, "value": text}


def _turn(message: Any, index: int) -> dict[str, Any]:
    """A message of a role and a plain text, as a turn of the official form."""
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise ValueError(f"messages[{index}] lacks 'role' or 'content': {message!r}")
    return {"from": message["role"], "value": message["content"]}


def _listed(record: Mapping[str, Any], turns: Any, reading: Reading) -> _Listed:
    """The turns, and the media that the record lists under any of their names."""
    if not isinstance(turns, list) or not turns:
        raise ValueError("the record has no list of turns")
    if isinstance(record.get("system"), str) and record["system"]:
        turns = [_said("system", record["system"]), *turns]
    pictures = [_source(item) for item in _items(record, "image", "images")]
    videos = [_source(item) for item in _items(record, "video", "videos")]
    if len(videos) > 1:
        raise ValueError(f"the record has {len(videos)} videos; one was expected")
    turns = _with_objects(turns, record.get("objects"), pictures, reading)
    return _Listed(turns, pictures, videos[0] if videos else None, record.get("clip"))


def _items(record: Mapping[str, Any], *names: str) -> list[Any]:
    found = [record[name] for name in names if record.get(name) not in (None, [], "")]
    if len(found) > 1:
        raise ValueError(f"both {' and '.join(map(repr, names))} are given; one was expected")
    if not found:
        return []
    return list(found[0]) if isinstance(found[0], list | tuple) else [found[0]]


def _source(item: Any) -> Source:
    """A path, URL or encoded bytes, plain or in an object as Hugging Face stores them."""
    if isinstance(item, Mapping):
        item = next((item[k] for k in ("bytes", "path", "url", "image") if item.get(k)), None)
    if isinstance(item, str | Path | bytes) and item:
        return item
    raise ValueError(f"{item!r} is neither a path, a URL nor the bytes of a picture or video")


def _attached(listed: _Listed, reading: Reading) -> tuple[Message, ...]:
    """The conversation with its media at their placeholders."""
    plain: dict[str, Any] = {"conversations": listed.turns}
    if listed.pictures:
        plain["image"] = [str(index) for index in range(len(listed.pictures))]
    if listed.video is not None:
        plain |= {"video": "video", "clip": listed.clip}
    messages = from_opengvlab(plain, "", reading.options())
    _check_tags(messages, len(listed.pictures), listed.video is not None)
    sources = iter([*listed.pictures, *([] if listed.video is None else [listed.video])])
    return tuple(
        _with_parts(
            message,
            [
                part
                if isinstance(part, Text)
                else _rebased(replace(part, source=next(sources)), reading)
                for part in message.content
            ],
        )
        for message in messages
    )


def _pictures_first(listed: _Listed, reading: Reading) -> tuple[Message, ...]:
    """The conversation with its media before the first question, each on a line of its own."""
    messages = list(from_opengvlab({"conversations": listed.turns}, "", reading.options()))
    media: list[Part] = [Picture(source) for source in listed.pictures]
    if listed.video is not None:
        media.append(Video(listed.video, num_frames=reading.num_frames))
    _check_tags(messages, 0, False)
    at = next((i for i, m in enumerate(messages) if m.role == "user"), None)
    if at is not None:
        parts = [*(_rebased(part, reading) for part in media), *messages[at].content]
        messages[at] = _with_parts(messages[at], parts)
    return tuple(messages)


def _check_tags(messages: Sequence[Message], pictures: int, has_video: bool) -> None:
    """Placeholders that no medium took are a fault, never text to learn from."""
    text = "".join(message.text for message in messages if message.role == "user")
    if surplus := text.count("<image>"):
        raise ValueError(f"the record has {pictures} pictures, but {pictures + surplus} <image>")
    if "<video>" in text:
        raise ValueError(f"the record has {int(has_video)} videos, but more <video>")


def _with_parts(message: Message, parts: Sequence[Part]) -> Message:
    return Message(message.role, tuple(parts))


def _rebased(part: Part, reading: Reading) -> Part:
    """The part with a relative path seen from the folder of the media."""
    if isinstance(part, Picture):
        return replace(part, source=_seen_from(reading.root, part.source))
    if isinstance(part, Video):
        return replace(part, source=_seen_from(reading.root, part.source))
    return part


def _seen_from(root: Path, source: Any) -> Any:
    """A relative path seen from `root`; URLs, bytes and pictures as they are."""
    is_url = isinstance(source, str) and _URL.match(source)
    return root / source if isinstance(source, str | Path) and not is_url else source


def _with_objects(
    turns: list[Any], objects: Any, pictures: Sequence[Source], reading: Reading
) -> list[Any]:
    """Turns with the `<ref-object>` and `<bbox>` of ms-swift written as the family writes them."""
    if not objects:
        return turns
    if not isinstance(objects, Mapping):
        raise ValueError(f"'objects' is a {type(objects).__name__}; ref and bbox were expected")
    for name in ("ref", "bbox", "image_id"):
        if not isinstance(objects.get(name) or [], list):
            raise ValueError(f"objects.{name} is {objects[name]!r}; a list was expected")
    names: deque[str] = deque(objects.get("ref") or [])
    boxes = deque(_thousandths(objects, pictures, reading))
    written = [
        {**turn, "value": _write_objects(turn["value"], names, boxes)}
        if isinstance(turn, Mapping) and isinstance(turn.get("value"), str)
        else turn
        for turn in turns
    ]
    if left := len(names) + len(boxes):
        raise ValueError(f"'objects' holds {left} entries that no <ref-object> or <bbox> takes")
    return written


def _has_objects(record: Mapping[str, Any]) -> bool:
    objects = record.get("objects")
    return isinstance(objects, Mapping) and bool(objects.get("ref") or objects.get("bbox"))


def _thousandths(
    objects: Mapping[str, Any], pictures: Sequence[Source], reading: Reading
) -> list[list[int]]:
    """Boxes in thousandths of the sides of the picture that each belongs to."""
    kind = objects.get("bbox_type", "real")
    known = ("real", "norm1", "norm1000")
    if kind not in known:
        raise ValueError(f"objects.bbox_type is {kind!r}; known: {', '.join(known)}")
    scaled: list[list[int]] = []
    for number, box in enumerate(objects.get("bbox") or []):
        if not isinstance(box, list) or not all(type(value) in (int, float) for value in box):
            raise ValueError(f"objects.bbox[{number}] is {box!r}; four numbers were expected")
        sides = (1, 1) if kind == "norm1" else (SCALE, SCALE)
        if kind == "real":
            sides = _sides(objects, number, pictures, reading)
        scaled.append([round(value / sides[i % 2] * SCALE) for i, value in enumerate(box)])
    return scaled


def _sides(
    objects: Mapping[str, Any], number: int, pictures: Sequence[Source], reading: Reading
) -> tuple[int, int]:
    """Width and height of the picture that a box was drawn on; the first unless told otherwise."""
    ids = objects.get("image_id") or []
    picture = ids[number] if number < len(ids) else 0
    if not isinstance(picture, int) or not 0 <= picture < len(pictures):
        raise ValueError(f"objects.bbox[{number}] belongs to picture {picture!r}, which is absent")
    return picture_size(_seen_from(reading.root, pictures[picture]))


def _write_objects(text: str, names: deque[str], boxes: deque[list[int]]) -> str:
    def written(tag: re.Match[str]) -> str:
        waiting = names if tag[0] == "<ref-object>" else boxes
        if not waiting:
            raise ValueError(f"there are more {tag[0]} than 'objects' holds")
        found = waiting.popleft()
        return f"<ref>{found}</ref>" if waiting is names else f"<box>[{json.dumps(found)}]</box>"

    return re.sub("<ref-object>|<bbox>", written, text)


def _bad_boxes(text: str, turn: int) -> Iterator[str]:
    for match in BOX.finditer(text):
        try:
            boxes = json.loads(match[1])
        except ValueError:
            yield f"turn {turn} has the malformed box {match[0][:80]!r}"
            continue
        rows = boxes if boxes and all(isinstance(row, list) for row in boxes) else [boxes]
        for row in rows:
            numbers = all(type(value) in (int, float) for value in row)
            if len(row) != 4 or not numbers or not all(0 <= value <= SCALE for value in row):
                yield f"turn {turn} has the box {row}; four numbers from 0 to {SCALE} were expected"
