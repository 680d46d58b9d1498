"""The forms that data sets are written in: what each can hold, and how it writes a conversation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from internvl2.processing.conversation import Message, Picture, Text, Video
from internvl2.train.conversion.media import MediaFiles
from internvl2.train.conversion.placing import Tagged, as_parts, tagged

FormName = Literal["official", "llava", "sharegpt", "openai", "swift", "parquet"]

_DEFAULT_FRAMES = Video("").num_frames
_SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}


class Need(StrEnum):
    """Something in a conversation that not every form can hold."""

    SYSTEM = "a system prompt"
    LATE_SYSTEM = "a system prompt after the first turn"
    PICTURES = "several pictures"
    VIDEO = "a video"
    CLIP = "a part of a video"
    MIXED = "a video beside pictures, beside another video, or after the first question"
    SETTINGS = "a tile budget, a number of frames or one end of a clip of its own"
    TAG_TEXT = "the words <image> or <video> as plain text"


@dataclass(frozen=True, slots=True)
class Form:
    """One way to write a conversation down."""

    holds: frozenset[Need]
    suffix: str
    """Of its file."""
    write: Callable[[Sequence[Message], MediaFiles], dict[str, Any]]


def write_record(name: FormName, messages: Sequence[Message], media: MediaFiles) -> dict[str, Any]:
    """The record of a conversation; raises for what the form cannot hold, naming one that can."""
    needs = set(_needs(messages))
    form = FORMS[name]
    if missing := [need for need in Need if need in needs - form.holds]:
        able = [other for other in FORMS if needs <= FORMS[other].holds]
        hint = f"{', '.join(able)} can" if able else "no form can hold all that it has"
        raise ValueError(f"{name} cannot hold {' and '.join(missing)}; {hint}")
    return form.write(messages, media)


def _needs(messages: Sequence[Message]) -> Iterator[Need]:
    if any(message.role == "system" for message in messages[:1]):
        yield Need.SYSTEM
    if any(message.role == "system" for message in messages[1:]):
        yield Need.LATE_SYSTEM
    media = [part for message in messages for part in message.content]
    pictures = [part for part in media if isinstance(part, Picture)]
    videos = [part for part in media if isinstance(part, Video)]
    if len(pictures) > 1:
        yield Need.PICTURES
    if videos:
        yield Need.VIDEO
        yield from _video_needs(messages, pictures, videos)
    if any(picture.max_tiles is not None for picture in pictures):
        yield Need.SETTINGS
    words = "".join(message.text for message in messages if message.role == "user")
    if "<image>" in words or "<video>" in words:
        yield Need.TAG_TEXT


def _video_needs(
    messages: Sequence[Message], pictures: list[Picture], videos: list[Video]
) -> Iterator[Need]:
    question = next((message for message in messages if message.role == "user"), None)
    if pictures or len(videos) > 1 or question is None or videos[0] not in question.content:
        yield Need.MIXED
    for video in videos:
        if video.start is not None and video.end is not None:
            yield Need.CLIP
        elif video.start != video.end:
            yield Need.SETTINGS
        if (video.num_frames, video.max_tiles) != (_DEFAULT_FRAMES, 1):
            yield Need.SETTINGS


def _official(messages: Sequence[Message], media: MediaFiles) -> dict[str, Any]:
    found = tagged(messages)
    paths = [media.path_of(picture) for picture in found.pictures]
    record: dict[str, Any] = {"image": paths[0] if len(paths) == 1 else paths} if paths else {}
    for video in found.videos:
        record["video"] = media.path_of(video)
    return record | _clip(found) | {"conversations": _conversations(found.turns)}


def _share_gpt(messages: Sequence[Message], media: MediaFiles) -> dict[str, Any]:
    found = tagged(messages)
    has_system = bool(found.turns) and found.turns[0][0] == "system"
    record: dict[str, Any] = {"conversations": _conversations(found.turns[has_system:])}
    if has_system:
        record["system"] = found.turns[0][1]
    return record | _lists(found, media.path_of)


def _swift(messages: Sequence[Message], media: MediaFiles) -> dict[str, Any]:
    found = tagged(messages)
    return {"messages": _messages(found.turns)} | _lists(found, media.path_of)


def _parquet(messages: Sequence[Message], media: MediaFiles) -> dict[str, Any]:
    found = tagged(messages)
    lists = _lists(found, media.stored) | _clip(found)
    return {"messages": _messages(found.turns)} | lists


def _openai(messages: Sequence[Message], media: MediaFiles) -> dict[str, Any]:
    return {"messages": [_openai_message(message, media) for message in as_parts(messages)]}


def _openai_message(message: Message, media: MediaFiles) -> dict[str, Any]:
    """What users say is always a list of parts, in which `<image>` is a word like any other."""
    if message.role != "user":
        return {"role": message.role, "content": message.text}
    return {"role": "user", "content": [_openai_part(part, media) for part in message.content]}


def _openai_part(part: Text | Picture | Video, media: MediaFiles) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    link: dict[str, Any] = {"url": media.path_of(part)}
    if isinstance(part, Picture):
        return {"type": "image_url", "image_url": link | _told(max_tiles=part.max_tiles)}
    frames = None if part.num_frames == _DEFAULT_FRAMES else part.num_frames
    tiles = None if part.max_tiles == 1 else part.max_tiles
    told = _told(num_frames=frames, start=part.start, end=part.end, max_tiles=tiles)
    return {"type": "video_url", "video_url": link | told}


def _told(**fields: int | float | None) -> dict[str, int | float]:
    return {name: value for name, value in fields.items() if value is not None}


def _conversations(turns: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"from": _SPEAKERS[role], "value": text} for role, text in turns]


def _messages(turns: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in turns]


def _lists(found: Tagged, place: Callable[[Picture | Video], Any]) -> dict[str, list[Any]]:
    """Media beside the text, under the names that they have where there may be several."""
    listed = {"images": found.pictures, "videos": found.videos}
    return {name: [place(medium) for medium in media] for name, media in listed.items() if media}


def _clip(found: Tagged) -> dict[str, list[float]]:
    ends = [end for video in found.videos for end in (video.start, video.end) if end is not None]
    return {"clip": ends} if ends else {}


_LISTED = frozenset({Need.SYSTEM, Need.PICTURES, Need.VIDEO})
FORMS: Mapping[FormName, Form] = {
    "official": Form(_LISTED | {Need.CLIP}, ".jsonl", _official),
    "llava": Form(frozenset(), ".json", _official),
    "sharegpt": Form(_LISTED, ".json", _share_gpt),
    "openai": Form(frozenset(Need), ".jsonl", _openai),
    "swift": Form(_LISTED, ".jsonl", _swift),
    "parquet": Form(_LISTED | {Need.CLIP}, ".parquet", _parquet),
}
