"""Where everything stands in a prompt: turns, labels, newlines and pictures, before tokenisation.

The one place that decides it, for chat, serving, evaluation and training alike.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from internvl2.processing.conversation import Conversation, Message, Part, Picture, Text, Video
from internvl2.processing.template import ChatTemplate, Opening
from internvl2.processing.tokenizer import Piece


@dataclass(frozen=True, slots=True)
class ImageTokens:
    """The ids around and for the visual tokens of a picture."""

    opening: int
    context: int
    closing: int


@dataclass(frozen=True, slots=True)
class MediumSize:
    """How many pictures a part holds, and how many visual tokens each of them takes."""

    visual_tokens: tuple[int, ...]


class Layout:
    """Writes conversations down as pieces of text and control tokens."""

    def __init__(
        self,
        template: ChatTemplate,
        control_ids: dict[str, int],
        image_tokens: ImageTokens,
        frame_label: str | None = None,
    ) -> None:
        self._template = template
        self._control_ids = control_ids
        self._image_tokens = image_tokens
        self._frame_label = frame_label or template.frame_label

    def pieces(
        self,
        system: str,
        messages: Conversation,
        sizes: Iterable[MediumSize],
        *,
        open_answer: bool,
    ) -> Iterator[Piece]:
        """The prompt; `sizes` are those of the media in their order."""
        remaining = iter(sizes)
        labels = iter(picture_labels(messages))
        yield from self._opened(self._template.system)
        yield Piece(system)
        yield from self._closed(is_target=False)
        asked = False
        for message in messages:
            asked = asked or message.role == "user"
            yield from self._message(message, remaining, labels, learned=asked)
        if open_answer:
            yield from self._opened(self._template.assistant)

    def _message(
        self,
        message: Message,
        sizes: Iterator[MediumSize],
        labels: Iterator[str],
        learned: bool,
    ) -> Iterator[Piece]:
        is_target = learned and message.role == "assistant"
        yield from self._opened(self._template.opening(message.role))
        before: Part | None = None
        for part in message.content:
            if isinstance(part, Text):
                yield Piece(part.text, is_target=is_target)
            else:
                yield from _own_line(before, part)
                yield from self._medium(part, next(sizes), labels)
            before = part
        yield from self._closed(is_target=is_target)

    def _medium(
        self, part: Picture | Video, size: MediumSize, labels: Iterator[str]
    ) -> Iterator[Piece]:
        if isinstance(part, Picture):
            yield Piece("" if part.inline else next(labels))
            yield from self._picture(size.visual_tokens[0])
        else:
            for index, visual_tokens in enumerate(size.visual_tokens):
                newline = "\n" if index else ""
                yield Piece(f"{newline}{self._frame_label.format(index + 1)}: ")
                yield from self._picture(visual_tokens)
        yield Piece("" if part.inline else "\n")

    def _picture(self, visual_tokens: int) -> Iterator[Piece]:
        yield Piece("<img>", self._image_tokens.opening)
        yield Piece("<IMG_CONTEXT>", self._image_tokens.context, repeat=visual_tokens)
        yield Piece("</img>", self._image_tokens.closing)

    def _opened(self, opening: Opening) -> Iterator[Piece]:
        yield Piece(opening.token, self._control_ids[opening.token])
        yield Piece(opening.text)

    def _closed(self, is_target: bool) -> Iterator[Piece]:
        end = self._template.end
        yield Piece(end, self._control_ids[end], is_target=is_target)
        yield Piece(self._template.after_end)


def picture_labels(messages: Conversation) -> list[str]:
    """Numbers through the conversation; a picture that is alone in it needs none."""
    parts = [part for message in messages for part in message.content]
    count = sum(isinstance(part, Picture) and not part.inline for part in parts)
    return [""] if count == 1 else [f"Image-{number}: " for number in range(1, count + 1)]


def _own_line(before: Part | None, part: Picture | Video) -> Iterator[Piece]:
    """A newline where text would run into a picture that has a line of its own."""
    if isinstance(before, Text) and not part.inline and before.text[-1:] not in ("", "\n"):
        yield Piece("\n")
