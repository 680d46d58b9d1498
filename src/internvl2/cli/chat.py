"""`internvl2 chat`: one question and its answer, or a conversation where no question is given."""

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, UseAppendAction, arg

from internvl2.checkpoint.hub import EMBEDDED
from internvl2.cli.loading import LoadedEngine, load_engine, require_model
from internvl2.cli.options import LoadOptions, MediaOptions, ModelName, SamplingOptions, as_typed

if TYPE_CHECKING:
    from internvl2.engine.sequence import Output
    from internvl2.processing.conversation import Message

logger = logging.getLogger(__name__)

NO_PICTURE = "None"
"""What PaddleMIX's example takes as `--image_path` for a question without a picture."""


@dataclass(frozen=True)
class Chat:
    """Ask about pictures or a video; without a QUESTION, hold a conversation."""

    question: Annotated[Positional[str | None], as_typed("QUESTION")] = None
    """The question; read from standard input where that is a pipe or a file."""
    model: ModelName = EMBEDDED
    """Directory, hub id (OpenGVLab/InternVL2-2B) or short name (internvl2-2b); nano is built in."""
    image: Annotated[
        UseAppendAction[tuple[str, ...]], arg(aliases=("--image-path",), metavar="PATH|URL")
    ] = ()
    """A picture; give it once for each picture."""
    video: Annotated[str | None, arg(aliases=("--video-path",), metavar="PATH|URL")] = None
    """A video file, an animation, or a folder of pictures."""
    text: Annotated[str | None, as_typed("QUESTION")] = None
    """The question, in PaddleMIX's spelling."""
    system: Annotated[str | None, as_typed("TEXT")] = None
    """Instructions before the conversation, instead of the model's own."""
    json: bool = False
    """Print one JSON object: tokens, text, usage, tiles and timings."""
    save_boxes: Annotated[Path | None, arg(metavar="PICTURE")] = None
    """Draw the <ref>/<box> answers over the picture and save it here."""
    media: MediaOptions = field(default_factory=MediaOptions)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    load: LoadOptions = field(default_factory=LoadOptions)

    def run(self) -> int:
        """Answers on standard output."""
        self._check()
        question = self._find_question()
        if question is None and self.json:
            raise ValueError("--json answers one question: give it as an argument or pipe it in")
        loaded = load_engine(self.model, self.load, self.media)
        with loaded.engine:
            if question is None:
                self._converse(loaded)
            else:
                self._answer(loaded, question)
        return 0

    @property
    def pictures(self) -> tuple[str, ...]:
        """The pictures that were really given."""
        return tuple(path for path in self.image if path != NO_PICTURE)

    def _check(self) -> None:
        """Refuses what cannot work before a model is loaded for minutes."""
        from internvl2.cli.media_checks import check_picture, check_saving, check_video

        require_model(self.model)
        self.media.check()
        self.load.check()
        self.sampling.params()
        if self.save_boxes is not None:
            check_saving(self.save_boxes, len(self.pictures), self.video)
        for picture in self.pictures:
            check_picture(picture, self.media.official_pictures)
        if self.video is not None:
            check_video(self.video)

    def _find_question(self) -> str | None:
        """The question; None where a person sits at the terminal."""
        from internvl2.processing.conversation import Text

        given = [text for text in (self.question, self.text) if text is not None]
        if len(given) > 1:
            raise ValueError("the question is given twice, as an argument and with --text")
        if not given and sys.stdin.isatty():
            if self.save_boxes is not None:
                raise ValueError("--save-boxes belongs to one question: give it as an argument")
            return None
        question = given[0] if given else _standard_input()
        if not Text(question).text.strip():
            raise ValueError("the question is empty; give it as an argument or pipe it in")
        return question

    def _message(self, question: str) -> "Message":
        from internvl2.processing.conversation import Message, Picture

        pictures = [Picture(path) for path in self.pictures]
        videos = [self.media.video(self.video)] if self.video is not None else []
        return Message.user(*pictures, *videos, question)

    def _answer(self, loaded: LoadedEngine, question: str) -> None:
        from internvl2.cli import report
        from internvl2.processing.conversation import Message

        system = [] if self.system is None else [Message.system(self.system)]
        conversation = [*system, self._message(question)]
        params, clock = self.sampling.params(), report.Clock()
        prompt = loaded.engine.encode(conversation, self.media.encoding())
        loaded.introduce()
        if self.json:
            answer = loaded.engine.answer(prompt, params)
            text = answer.text
            print(report.as_json(self.model, answer, loaded.load_s))
        else:
            text = write(clock.watch(loaded.engine.stream(prompt, params)))
            print(clock.summary(loaded.load_s), file=sys.stderr)
        if self.save_boxes is not None:
            self._save_boxes(text, self.save_boxes)

    def _save_boxes(self, text: str, target: Path) -> None:
        from internvl2.processing.grounding import draw_boxes, find_boxes
        from internvl2.processing.pixels import PictureOptions, open_picture

        options = PictureOptions(official=self.media.official_pictures)
        boxes = find_boxes(text)
        draw_boxes(open_picture(self.pictures[0], options), boxes).save(target)
        count = f"{len(boxes)} box{'es' if len(boxes) != 1 else ''}"
        logger.info("%s in the answer; drawn to %s", count, target)

    def _converse(self, loaded: LoadedEngine) -> None:
        from internvl2.cli.session import Session

        chat = loaded.engine.chat(self.system, self.sampling.params(), self.media.encoding())
        session = Session(chat, self.media, self.model)
        session.pictures.extend(self.pictures)
        session.video = self.video
        loaded.introduce()
        session.run()


def _standard_input() -> str:
    try:
        return sys.stdin.read().strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"the question on standard input is not UTF-8 text: {error}") from None


def write(outputs: "Iterator[Output]") -> str:
    """Prints an answer as it comes, ends the line, and gives the text."""
    written = []
    for output in outputs:
        written.append(output.text)
        print(output.text, end="", flush=True)
    print(flush=True)
    return "".join(written)
