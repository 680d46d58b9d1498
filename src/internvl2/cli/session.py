"""A conversation at the terminal: lines are questions, lines that begin with / are commands."""

import contextlib
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

from internvl2 import console
from internvl2.cli.media_checks import check_picture, check_video, is_url
from internvl2.cli.options import MediaOptions
from internvl2.cli.report import Clock

if TYPE_CHECKING:
    from internvl2.engine.chat import Chat
    from internvl2.engine.sequence import Output
    from internvl2.processing.conversation import Message, Part

HELP = """\
/image PATH|URL   show a picture with the next question; may be repeated
/video PATH|URL   show a video with the next question
/system TEXT      set the instructions before the conversation; without TEXT, the model's own
/retry            answer the last question again
/clear            forget the conversation
/save FILE        write the conversation as JSON, messages in the style of the OpenAI API
/help             this list
/quit             end; Ctrl-D does so too. Ctrl-C stops an answer."""


class Session:
    """Reads lines until the end of input; a mistake costs a message, never the conversation."""

    def __init__(self, chat: "Chat", media: MediaOptions, model: str) -> None:
        self.chat = chat
        self.media = media
        self.model = model
        self.pictures: list[str] = []
        """Shown with the next question."""
        self.video: str | None = None
        self._commands: dict[str, Callable[[str], None]] = {
            "/image": self._image,
            "/video": self._video,
            "/system": self._system,
            "/retry": self._retry,
            "/clear": self._clear,
            "/save": self._save,
            "/help": lambda _: _tell(HELP),
        }

    def run(self) -> None:
        """The conversation, to its end."""
        _tell("Ask, or /help for commands, Ctrl-D to end")
        with _history():
            for line in _lines():
                if line in ("/quit", "/exit", "/bye"):
                    return
                try:
                    self.handle(line)
                except (ValueError, OSError) as error:
                    _tell(f"error: {console.one_line(error)}")

    def handle(self, line: str) -> None:
        """Obeys a command or answers a question."""
        if not line.startswith("/") or Path(line.split()[0]).exists():
            self._ask(line)
            return
        name, _, rest = line.partition(" ")
        command = self._commands.get(name)
        if command is None:
            raise ValueError(f"unknown command {name}; known: {', '.join(self._commands)}, /quit")
        command(rest.strip())

    def _ask(self, question: str) -> None:
        from internvl2.processing.conversation import Picture

        pictures = [Picture(path) for path in self.pictures]
        video = None if self.video is None else self.media.video(self.video)
        if self._answer(self.chat.stream(question, pictures, video)):
            self.pictures, self.video = [], None

    def _answer(self, outputs: "Iterator[Output]") -> bool:
        """Prints an answer; says whether it came to its end."""
        clock = Clock()
        with _StopSignal() as stop:
            for output in clock.watch(outputs):
                print(output.text, end="", flush=True)
                if stop.was_sent:
                    break
        print(flush=True)
        _tell(
            "[stopped; the question is not part of the conversation]"
            if stop.was_sent
            else clock.summary()
        )
        return not stop.was_sent

    def _image(self, path: str) -> None:
        source = _one_path(path, "/image")
        check_picture(source, self.media.official_pictures)
        self.pictures.append(source)
        _tell(f"{len(self.pictures)} picture(s) with the next question")

    def _video(self, path: str) -> None:
        source = _one_path(path, "/video")
        check_video(source)
        self.video = source
        _tell("a video with the next question")

    def _system(self, text: str) -> None:
        self.chat.set_system(text or None)

    def _retry(self, _: str) -> None:
        from internvl2.processing.conversation import Picture, Video

        kept = list(self.chat.messages)
        question = self.chat.undo()
        if question is None:
            raise ValueError("there is no question to answer again")
        pictures = [part for part in question.content if isinstance(part, Picture)]
        videos = [part for part in question.content if isinstance(part, Video)]
        video = videos[0] if videos else None
        if not self._answer(self.chat.stream(question.text, pictures, video)):
            self.chat.messages = kept

    def _clear(self, _: str) -> None:
        self.chat.clear()
        self.pictures, self.video = [], None

    def _save(self, path: str) -> None:
        target = Path(_one_path(path, "/save")).expanduser()
        record = {"model": self.model, "messages": [_as_openai(m) for m in self.chat.messages]}
        target.write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
        _tell(f"saved to {target}")


class _StopSignal:
    """Ctrl-C asks the answer to stop after this token; a second one interrupts at once."""

    def __init__(self) -> None:
        self.was_sent = False

    def __enter__(self) -> "_StopSignal":
        self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.was_sent:
            raise KeyboardInterrupt
        self.was_sent = True


def _lines() -> Iterator[str]:
    """What the person types, line by line, until the end of input."""
    prompt = "> "
    while True:
        try:
            if not sys.stdout.isatty():
                print(prompt, end="", file=sys.stderr, flush=True)
            line = input(prompt if sys.stdout.isatty() else "").strip()
        except KeyboardInterrupt:
            _tell("")
            continue
        except EOFError:
            _tell("")
            return
        if line:
            yield line


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Line editing, and the lines of earlier conversations under the arrow keys."""
    try:
        import readline
    except ImportError:  # Windows has no readline; its console edits lines by itself
        yield
        return
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    file = Path(state) / "internvl2" / "history"
    readline.set_history_length(1000)
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(file)


def _one_path(typed: str, command: str) -> str:
    """The path after a command; quotes and backslashes as a shell or a dropped file writes them."""
    paths = [typed] if is_url(typed) or Path(typed).exists() else shlex.split(typed)
    if len(paths) != 1 or not paths[0]:
        raise ValueError(f"{command} takes one path; quote a path with spaces")
    return paths[0] if is_url(paths[0]) else str(Path(paths[0]).expanduser())


def _as_openai(message: "Message") -> dict[str, object]:
    return {"role": message.role, "content": [_openai_part(part) for part in message.content]}


def _openai_part(part: "Part") -> dict[str, object]:
    from internvl2.processing.conversation import Picture, Text

    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    source = str(part.source)
    link: dict[str, object] = {"url": source if is_url(source) else str(Path(source).resolve())}
    if isinstance(part, Picture):
        return {"type": "image_url", "image_url": link}
    link |= {"num_frames": part.num_frames, "start": part.start, "end": part.end}
    given = {name: value for name, value in link.items() if value is not None}
    return {"type": "video_url", "video_url": given}


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
