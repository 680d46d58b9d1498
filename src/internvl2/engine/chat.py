"""A conversation of many turns with one engine, pictures included."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from internvl2.engine.sequence import Answer, Output, SamplingParams
from internvl2.processing.conversation import Message, Part, Picture, Text, Video
from internvl2.processing.processor import EncodeOptions

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from internvl2.engine.engine import Engine

    Images = Sequence[Picture | str | Path | bytes | Image]
    Clip = Video | str | Path | bytes | tuple[Image | np.ndarray, ...]


class Chat:
    """Remembers what was said; the engine's cache keeps what was computed."""

    def __init__(
        self,
        engine: "Engine",
        system: str | None = None,
        params: SamplingParams | None = None,
        options: EncodeOptions | None = None,
    ) -> None:
        self._engine = engine
        self.params = params or SamplingParams()
        """How answers are sampled, unless a question says otherwise."""
        self.options = options or EncodeOptions()
        self.messages: list[Message] = []
        """The turns so far, in order, the system message first where there is one."""
        self.set_system(system)

    def set_system(self, text: str | None) -> None:
        """Replaces the system text of the conversation; None takes the model's own."""
        turns = [message for message in self.messages if message.role != "system"]
        self.messages = turns if text is None else [Message.system(text), *turns]

    def ask(
        self,
        text: str,
        images: "Images" = (),
        video: "Clip | None" = None,
        params: SamplingParams | None = None,
    ) -> Answer:
        """The answer to the next question; both become part of the conversation.

        Not when the answer was cut off because the engine was closed.
        """
        question = _question(text, images, video)
        conversation = [*self.messages, question]
        answer = self._engine.answer(conversation, params or self.params, self.options)
        if answer.finish_reason != "abort":
            self.messages += [question, Message.assistant(answer.text)]
        return answer

    def stream(
        self,
        text: str,
        images: "Images" = (),
        video: "Clip | None" = None,
        params: SamplingParams | None = None,
    ) -> Iterator[Output]:
        """The answer as it is written; it becomes part of the conversation when it is complete."""
        question = _question(text, images, video)
        conversation = [*self.messages, question]
        written: list[str] = []
        for output in self._engine.stream(conversation, params or self.params, self.options):
            written.append(output.text)
            if output.finish_reason in ("stop", "length"):
                self.messages += [question, Message.assistant("".join(written))]
            yield output

    def undo(self) -> Message | None:
        """Takes the last question and its answer back and gives the question; None at the start."""
        turns = [message for message in self.messages if message.role != "system"]
        if not turns:
            return None
        del self.messages[-2:]
        return turns[-2]

    def clear(self) -> None:
        """Forgets all turns; the system text stays."""
        self.messages = [message for message in self.messages if message.role == "system"]


def _question(text: str, images: "Images", video: "Clip | None") -> Message:
    if isinstance(images, Picture | str | bytes):
        raise ValueError(f"images is {type(images).__name__}; it must be a list of pictures")
    parts: list[Part] = []
    for image in images:
        parts.append(image if isinstance(image, Picture) else Picture(image))
    if video is not None:
        parts.append(video if isinstance(video, Video) else Video(video))
    return Message("user", (*parts, Text(text)))
