"""Questions with their right answers, from a file of JSON lines.

A line is a record of the official training files (every answer of the assistant is asked for, the
true turns before it given), OpenAI-style messages, or a plain question; a line that cannot be used
is an error that names it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from internvl2.eval.metrics import METRICS, check_targets
from internvl2.processing.conversation import Message, Part, Picture, Text, Video
from internvl2.processing.readers import RecordOptions, from_openai, from_opengvlab

Id = str | int | None

OF_EVERY_RECORD = ("id", "question_id", "questionId", "category", "answer", "answers")
OF_MESSAGES = ("messages", "model")
OF_QUESTIONS = ("question", "image", "images", "video")
_URL = re.compile(r"(https?|data):", re.IGNORECASE)


@runtime_checkable
class Asked(Protocol):
    """What is asked and what would be right, wherever it comes from."""

    @property
    def line(self) -> int:
        """Which of the questions' file or suite, from 1 on."""
        ...

    @property
    def turn(self) -> int:
        """Which answer of the conversation, from 1 on."""
        ...

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation up to the question."""
        ...

    @property
    def answers(self) -> tuple[str, ...]:
        """Any of them is right."""
        ...

    @property
    def category(self) -> str | None:
        """Part whose scores are reported by themselves."""
        ...

    @property
    def id(self) -> Id:
        """What its source calls it."""
        ...

    @property
    def key(self) -> str:
        """What its answer is kept under."""
        ...


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and what would be right."""

    line: int
    turn: int
    """Which answer of the line's conversation is asked for, from 1 on."""
    messages: tuple[Message, ...]
    answers: tuple[str, ...]
    """Any of them is right."""
    category: str | None = None
    """Part of the data set whose scores are reported by themselves."""
    id: Id = None

    @property
    def key(self) -> str:
        """Its place in the file."""
        return f"{self.line}.{self.turn}"


@dataclass(frozen=True, slots=True)
class Reading:
    """How records become questions."""

    media_root: Path | None = None
    """Where media paths begin; None is the folder of the file."""
    suffix: str = ""
    """Put after every question, such as "Answer the question using a single word or phrase."."""
    num_frames: int = 8
    """How many frames a video gives."""
    start: float | None = None
    """Second from which on videos are looked at, where the record does not say."""
    end: float | None = None
    """Second up to which they are looked at."""


def read_questions(
    path: str | Path, metrics: Sequence[str], reading: Reading | None = None
) -> tuple[Question, ...]:
    """All questions of a file, each with answers that the metrics can use."""
    path, reading = Path(path), reading or Reading()
    _check(path, metrics)
    questions: list[Question] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                found = _questions(_record(line), number, path.parent, reading)
                for metric in metrics:
                    check_targets(metric, [answer for one in found for answer in one.answers])
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from None
            questions += found
    if not questions:
        raise ValueError(f"{path} holds no question")
    return tuple(questions)


def score_answer(question: Asked, text: str, metrics: Sequence[str]) -> dict[str, float]:
    """The scores of one answer."""
    return {name: METRICS[name](text, question.answers) for name in metrics}


def _check(path: Path, metrics: Sequence[str]) -> None:
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        given = f"unknown metric {unknown[0]!r}" if unknown else "no metric is given"
        raise ValueError(f"{given}; known: {', '.join(METRICS)}")
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"questions {path}: {what}; give a file of JSON lines")


def _record(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        if line.strip() == b"[":
            raise ValueError("an array begins; one JSON object on each line was expected") from None
        raise ValueError(f"not JSON: {error}") from None
    if isinstance(record, dict):
        return record
    raise ValueError(f"the line is a {type(record).__name__}; an object was expected")


def _questions(
    record: Mapping[str, Any], line: int, folder: Path, reading: Reading
) -> list[Question]:
    root = folder if reading.media_root is None else reading.media_root
    messages = [_placed(one, root, reading) for one in _messages(record, root, reading)]
    category, given = record.get("category"), _given_answers(record)
    if not isinstance(category, str | None):
        raise ValueError(f"category is {category!r}; it must be a text")
    if given is not None:
        if not messages or messages[-1].role != "user":
            raise ValueError("answers are given, but the last message is not a question")
        ends = {len(messages): given}
    else:
        ends = _answered_turns(messages)
    return [
        Question(
            line, turn, _with_suffix(messages[:end], reading.suffix), answers, category, _id(record)
        )
        for turn, (end, answers) in enumerate(ends.items(), 1)
    ]


def _messages(record: Mapping[str, Any], root: Path, reading: Reading) -> Sequence[Message]:
    if "conversations" in record:
        return from_opengvlab(record, root, RecordOptions(num_frames=reading.num_frames))
    kinds = {"messages": OF_MESSAGES, "question": OF_QUESTIONS}
    kind = next((kind for kind in kinds if kind in record), None)
    if kind is None:
        raise ValueError("the record has none of conversations, messages, question")
    known = (*OF_EVERY_RECORD, *kinds[kind])
    for name in record:
        if name not in known:
            raise ValueError(f"unknown field {name!r}; known: {', '.join(known)}")
    return from_openai(record["messages"]) if kind == "messages" else [_plain(record, reading)]


def _plain(record: Mapping[str, Any], reading: Reading) -> Message:
    """A question with the pictures and the video before it."""
    if "image" in record and "images" in record:
        raise ValueError("both image and images are given; one of them is enough")
    question, video = record["question"], record.get("video")
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"question is {question!r}; it must be a text")
    given = record.get("images", record.get("image"))
    names = given if isinstance(given, list) else [] if given is None else [given]
    for name in [*names, *([] if video is None else [video])]:
        if not isinstance(name, str) or not name:
            raise ValueError(f"{name!r} is no path or URL of a picture or video")
    videos = [] if video is None else [Video(video, num_frames=reading.num_frames)]
    return Message.user(*map(Picture, names), *videos, question)


def _placed(message: Message, root: Path, reading: Reading) -> Message:
    parts = tuple(_placed_part(part, root, reading) for part in message.content)
    return replace(message, content=parts)


def _placed_part(part: Part, root: Path, reading: Reading) -> Part:
    """The part with its path from the root on, and a video with the bounds that hold for all."""
    if isinstance(part, Text):
        return part
    if isinstance(part.source, str) and not _URL.match(part.source):
        part = replace(part, source=root / part.source)
    if isinstance(part, Video) and part.start is None and part.end is None:
        return replace(part, start=reading.start, end=reading.end)
    return part


def _given_answers(record: Mapping[str, Any]) -> tuple[str, ...] | None:
    names = [name for name in ("answer", "answers") if record.get(name) is not None]
    if not names:
        return None
    if len(names) == 2:
        raise ValueError("both answer and answers are given; one of them is enough")
    given = record[names[0]]
    answers = given if isinstance(given, list) else [given]
    if not answers:
        raise ValueError(f"{names[0]} is empty; at least one right answer is needed")
    return tuple(_answer(answer) for answer in answers)


def _answer(given: Any) -> str:
    if isinstance(given, bool) or not isinstance(given, str | int | float):
        raise ValueError(f"the answer {given!r} is neither a text nor a number")
    if not str(given).strip():
        raise ValueError("a right answer is empty")
    return str(given)


def _answered_turns(messages: Sequence[Message]) -> dict[int, tuple[str, ...]]:
    """How many messages stand before each answer to a question, and that answer."""
    ends = {
        index: (_answer(message.text),)
        for index, message in enumerate(messages)
        if message.role == "assistant" and index and messages[index - 1].role == "user"
    }
    if not ends:
        raise ValueError("the record has no right answer: neither answers nor an assistant's turn")
    return ends


def _with_suffix(messages: Sequence[Message], suffix: str) -> tuple[Message, ...]:
    if not suffix:
        return tuple(messages)
    *parts, last = messages[-1].content
    ended = [Text(f"{last.text} {suffix}")] if isinstance(last, Text) else [last, Text(suffix)]
    return (*messages[:-1], replace(messages[-1], content=(*parts, *ended)))


def _id(record: Mapping[str, Any]) -> Id:
    given = next((record[name] for name in OF_EVERY_RECORD[:3] if name in record), None)
    if isinstance(given, bool) or not isinstance(given, str | int | None):
        raise ValueError(f"id is {given!r}; it must be a text or a whole number")
    return given
