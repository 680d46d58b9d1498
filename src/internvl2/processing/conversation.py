"""What a conversation is: messages of text, pictures and videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

Role = Literal["system", "user", "assistant"]

ROLES: tuple[Role, ...] = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Text:
    """Words of a message; never read as control tokens."""

    text: str

    def __post_init__(self) -> None:
        try:
            self.text.encode()
        except UnicodeEncodeError as error:
            where = f"{error.object[error.start]!a} at character {error.start}"
            raise ValueError(f"a text is not valid Unicode: {where}") from None


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture, by path, http(s) or data: URL, encoded bytes, or already opened."""

    source: str | Path | bytes | Image
    max_tiles: int | None = None
    """Tile budget for this picture alone; None takes the encoder's."""
    inline: bool = False
    """It stands exactly where it is, without label or newline, as in a training file."""


@dataclass(frozen=True, slots=True)
class Video:
    """A video file, URL, folder of pictures or animation, or frames that are already decoded."""

    source: str | Path | bytes | tuple[Image | np.ndarray, ...]
    num_frames: int = 8
    """How many frames are taken, evenly spread; of decoded frames that are no more, all."""
    start: float | None = None
    """Second at which the part of interest begins."""
    end: float | None = None
    """Second at which it ends."""
    max_tiles: int = 1
    """Tile budget of each frame."""
    inline: bool = False
    """The frames stand one per line where it is, without a newline after the last."""


Part = Text | Picture | Video


@dataclass(frozen=True, slots=True)
class Message:
    """What one side said."""

    role: str
    """system, user or assistant."""
    content: tuple[Part, ...]

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"unknown role {self.role!r}; known: {', '.join(ROLES)}")
        media = [part for part in self.content if not isinstance(part, Text)]
        if self.role == "system" and media:
            raise ValueError("a system message holds text only")

    @classmethod
    def system(cls, text: str) -> Message:
        """Instructions before the first turn."""
        return cls("system", (Text(text),))

    @classmethod
    def user(cls, *content: str | Part) -> Message:
        """A question: plain strings are text."""
        return cls("user", _parts(content))

    @classmethod
    def assistant(cls, *content: str | Part) -> Message:
        """An answer."""
        return cls("assistant", _parts(content))

    @property
    def text(self) -> str:
        """The words alone."""
        return "".join(part.text for part in self.content if isinstance(part, Text))


Conversation = Sequence[Message]


def _parts(content: Sequence[str | Part]) -> tuple[Part, ...]:
    return tuple(Text(part) if isinstance(part, str) else part for part in content)
