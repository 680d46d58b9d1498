"""What is asked: pictures and frames drawn from a number, and texts of a length in tokens."""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from internvl2.processing.conversation import Conversation, Message, Picture, Text, Video
from internvl2.processing.tokenizer import Tokenizer
from internvl2.synthetic.draw import Draw
from internvl2.synthetic.photos import photo
from internvl2.synthetic.words import english


@dataclass(frozen=True, slots=True)
class Size:
    """Pixels of a picture."""

    width: int
    height: int

    @classmethod
    def of(cls, text: str) -> "Size":
        """From WIDTHxHEIGHT."""
        sides = text.lower().split("x")
        if len(sides) != 2 or not all(side.isdigit() and int(side) > 0 for side in sides):
            raise ValueError(f"the size {text!r} is not WIDTHxHEIGHT in pixels, such as 1600x1200")
        return cls(int(sides[0]), int(sides[1]))

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True, slots=True)
class Subject:
    """A kind of request; each number gives another one of it."""

    text_tokens: int
    """Of the question alone."""
    picture: Size | None = None
    frames: int = 0
    """Of a video whose frames are decoded already, one tile each."""
    frame: Size = Size(640, 360)

    def __str__(self) -> str:
        if self.picture is not None:
            return f"picture {self.picture}"
        return f"video of {self.frames} frames" if self.frames else "text"

    def without_media(self) -> "Subject":
        """The text alone."""
        return replace(self, picture=None, frames=0)

    def conversation(self, tokenizer: Tokenizer, number: int) -> Conversation:
        """Picture or frames, then the question.

        There are no instructions before it: tokenizers differ most in what they make of those.
        """
        text = Text(question(tokenizer, self.text_tokens, number))
        return Message.system(""), Message.user(*self._media(number), text)

    def _media(self, number: int) -> tuple[Picture | Video, ...]:
        if self.picture is not None:
            return (Picture(draw(self.picture, number)),)
        if not self.frames:
            return ()
        frames = tuple(draw_frames(self.frame, self.frames, number))
        return (Video(frames, num_frames=self.frames),)


def draw(size: Size, number: int) -> Image.Image:
    """A picture like a photograph, the same one for the same number."""
    chance = Draw(number, purpose="bench")
    first, second = ((chance.integer(0, 255), 90, chance.integer(0, 255)) for _ in range(2))
    return photo(chance, (size.width, size.height), first, second)


def draw_frames(size: Size, frames: int, number: int) -> list[np.ndarray]:
    """A camera that moves over a picture: rows of pixels, `height width 3` in uint8."""
    wide = np.asarray(draw(Size(size.width + frames, size.height), number).convert("RGB"))
    return [np.ascontiguousarray(wide[:, left : left + size.width]) for left in range(frames)]


def question(tokenizer: Tokenizer, tokens: int, number: int) -> str:
    """Words that take so many tokens, or one word more."""
    chance, words = Draw(number, purpose="bench question"), english("train")
    text = chance.choice(words)
    while len(tokenizer.encode(text)) < tokens:
        text += " " + chance.choice(words)
    return text
