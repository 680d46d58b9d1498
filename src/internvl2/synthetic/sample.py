"""What a task makes: pictures, and turns of a question and its right answer."""

from dataclasses import dataclass

from PIL.Image import Image


@dataclass(frozen=True)
class Turn:
    """A question and its right answer."""

    question: str
    answer: str
    kind: str = ""
    """What is asked for, where a task asks for several things: "read", "value", "direction" ..."""


@dataclass(frozen=True)
class Sample:
    """Pictures and what is asked about them; without pictures, a talk."""

    task: str
    images: tuple[Image, ...]
    turns: tuple[Turn, ...]
    is_video: bool = False
    """The pictures are the frames of a video, in order."""
