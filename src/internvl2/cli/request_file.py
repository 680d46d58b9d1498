"""The files of `internvl2 generate`: requests line by line, and which of them are answered.

Lines are read as they are needed, so a file may be larger than memory.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internvl2.cli.media_checks import is_url
from internvl2.cli.options import MediaOptions

if TYPE_CHECKING:
    from internvl2.processing.conversation import Message, Part

SIMPLE_FIELDS = ("question", "image", "images", "video")

Skip = Callable[[int, str], None]
"""Told the number of a line that cannot be used, and why."""


@dataclass(frozen=True, slots=True)
class Request:
    """One line of a request file."""

    line: int
    id: str | int | None
    messages: "tuple[Message, ...]"

    @property
    def key(self) -> str:
        """What answers are found again by: the id, else the line."""
        return _key(self.id, self.line)


def read_requests(path: Path, done: set[str], media: MediaOptions, skip: Skip) -> Iterator[Request]:
    """The requests of a file that are not `done`; unusable lines go to `skip`."""
    seen: set[str] = set()
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                request = _request(_record(line), number, path.parent, media)
            except ValueError as error:
                skip(number, str(error))
                continue
            if request.key in seen:
                skip(number, f"the id {request.id!r} was used by an earlier line")
            elif request.key not in done:
                yield request
            seen.add(request.key)


def count_lines(path: Path) -> int:
    """How many lines are not empty, without keeping them."""
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def resume(path: Path) -> set[str]:
    """The keys of the requests that a file answers, ready to be appended to.

    What an interrupted run left of its last line is taken off; another kind of file is an error and
    stays as it is.
    """
    if not path.exists():
        return set()
    done: set[str] = set()
    complete = 0
    with path.open("rb+") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n") and not _is_answer(line):
                if number == 1 and not line.startswith(b'{"'):
                    raise ValueError(f"{path} holds something else than answers; name another file")
                file.truncate(complete)
                return done
            done.add(_done_key(path, number, line))
            complete += len(line)
            if not line.endswith(b"\n"):
                file.write(b"\n")
    return done


def _is_answer(line: bytes) -> bool:
    try:
        return "line" in _record(line)
    except ValueError:
        return False


def _done_key(path: Path, number: int, line: bytes) -> str:
    try:
        record = _record(line)
        return _key(record.get("id"), record["line"])
    except (ValueError, KeyError):
        raise ValueError(
            f"{path}:{number}: not an answer of this command; name another file for the answers"
        ) from None


def _record(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(record, dict):
        raise ValueError(f"a JSON object was expected, not a {type(record).__name__}")
    return record


def _request(record: dict[str, Any], line: int, folder: Path, media: MediaOptions) -> Request:
    from internvl2.processing.readers import from_openai

    given = record.get("id")
    if isinstance(given, bool) or not isinstance(given, str | int | None):
        raise ValueError(f"id is {given!r}; it must be a text or a whole number")
    known = ("id", "model", "messages") if "messages" in record else ("id", *SIMPLE_FIELDS)
    unknown = [name for name in record if name not in known]
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}; known: {', '.join(known)}")
    if "messages" in record:
        messages = from_openai(record["messages"])
    else:
        messages = (_simple(record, media),)
    if not messages or messages[-1].role != "user":
        raise ValueError("the last message is not a question of the user")
    return Request(line, given, tuple(_rebased(message, folder) for message in messages))


def _simple(record: dict[str, Any], media: MediaOptions) -> "Message":
    from internvl2.processing.conversation import Message, Picture

    if "image" in record and "images" in record:
        raise ValueError("both image and images are given; one of them is enough")
    question, video = record.get("question"), record.get("video")
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"question is {question!r}; it must be a text")
    images = record.get("images", record.get("image"))
    paths = images if isinstance(images, list) else [] if images is None else [images]
    for path in [*paths, *([] if video is None else [video])]:
        if not isinstance(path, str) or not path:
            raise ValueError(f"{path!r} is no path or URL of a picture or video")
    videos = [] if video is None else [media.video(video)]
    return Message.user(*(Picture(path) for path in paths), *videos, question)


def _rebased(message: "Message", folder: Path) -> "Message":
    """The message with paths of media relative to the file of requests."""
    return replace(message, content=tuple(_rebased_part(part, folder) for part in message.content))


def _rebased_part(part: "Part", folder: Path) -> "Part":
    from internvl2.processing.conversation import Text

    if isinstance(part, Text) or not isinstance(part.source, str) or is_url(part.source):
        return part
    return replace(part, source=folder / part.source)


def _key(given: str | int | None, line: int) -> str:
    return f"line {line}" if given is None else f"id {json.dumps(given)}"
