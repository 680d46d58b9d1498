"""`internvl2 generate`: a file of requests in, a file of answers out, batched and resumable."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from internvl2 import console
from internvl2.checkpoint.hub import EMBEDDED
from internvl2.cli.loading import load_engine, load_engines, require_model
from internvl2.cli.options import (
    LoadOptions,
    MediaOptions,
    ModelName,
    SamplingOptions,
    as_typed,
    require_within,
)

if TYPE_CHECKING:
    from tqdm import tqdm

    from internvl2.cli.request_file import Request
    from internvl2.engine.batch import Answered
    from internvl2.engine.data_parallel import DataParallel
    from internvl2.engine.engine import Engine
    from internvl2.processing.conversation import Message


@dataclass(frozen=True)
class Generate:
    """Answer a file of requests, one JSON object per line.

    A request is {"question": ...} with "image", "images" or "video" as it likes, or
    {"messages": ...} in the style of the OpenAI API; "id" is free. Media paths are relative to the
    file. Answers are appended as they are ready; requests that OUT already answers are left out.
    """

    source: Annotated[Positional[Path], arg(metavar="IN.jsonl")]
    """Requests."""
    target: Annotated[Positional[Path], arg(metavar="OUT.jsonl")]
    """Answers; a run that was interrupted goes on where it ended."""
    model: ModelName = EMBEDDED
    """Directory, hub id (OpenGVLab/InternVL2-2B) or short name (internvl2-2b); nano is built in."""
    system: Annotated[str | None, as_typed("TEXT")] = None
    """Instructions before every conversation that has none of its own."""
    data_parallel: Annotated[int, arg(metavar="N")] = 1
    """Engines that share the requests: one a GPU, or N processes that share a CPU."""
    media: MediaOptions = field(default_factory=MediaOptions)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    load: LoadOptions = field(default_factory=LoadOptions)

    def run(self) -> int:
        """0 when every request has its answer, 1 when some were skipped."""
        from internvl2.cli.request_file import count_lines, read_requests, resume

        self._check()
        done = resume(self.target)
        with (
            self._open() as engine,
            self.target.open("a", encoding="utf-8") as file,
            console.progress(count_lines(self.source), "answering", unit="request") as bar,
        ):
            run = _Run(self, file, bar)
            requests = run.conversations(read_requests(self.source, done, self.media, run.skip))
            for answered in engine.answers(requests, self.sampling.params(), self.media.encoding()):
                run.take(answered)
        if run.skipped:
            print(f"internvl2: {run.skipped} requests were skipped", file=sys.stderr)
        return 1 if run.skipped else 0

    def _open(self) -> "Engine | DataParallel":
        """What answers, its model named on standard error."""
        if self.data_parallel == 1:
            loaded = load_engine(self.model, self.load, self.media)
            loaded.introduce()
            return loaded.engine
        several = load_engines(self.model, self.data_parallel, self.load, self.media)
        several.introduce()
        return several.engines

    def _check(self) -> None:
        require_model(self.model)
        require_within("--data-parallel", self.data_parallel, 1)
        self.media.check()
        self.load.check()
        if self.data_parallel > 1 and self.load.tensor_parallel > 1:
            raise ValueError(
                f"--data-parallel {self.data_parallel} gives each GPU a model of its own and "
                f"--tensor-parallel {self.load.tensor_parallel} divides one over them; give one of "
                "the two"
            )
        self.sampling.params()
        if not self.source.is_file():
            what = "is a folder" if self.source.is_dir() else "does not exist"
            raise FileNotFoundError(f"requests {self.source}: {what}; give a file of JSON lines")
        if self.target.is_dir() or not self.target.absolute().parent.is_dir():
            raise ValueError(f"answers {self.target}: give a file in a folder that exists")
        if self.target.exists() and self.target.samefile(self.source):
            raise ValueError(f"requests and answers are the same file, {self.source}")


class _Run:
    """What is in work, and what was skipped."""

    def __init__(self, command: Generate, file: IO[str], bar: "tqdm") -> None:
        self.skipped = 0
        self._command = command
        self._file = file
        self._bar = bar
        self._in_work: dict[int, Request] = {}

    def conversations(self, requests: "Iterator[Request]") -> "Iterator[tuple[Message, ...]]":
        """The requests' messages, remembered by their place until they are answered."""
        for index, request in enumerate(requests):
            self._in_work[index] = request
            yield self._with_system(request.messages)

    def take(self, answered: "Answered") -> None:
        """Writes one answer down at once, or names the request that has none."""
        request = self._in_work.pop(answered.index)
        if answered.answer is None:
            reason = console.one_line(answered.error or ValueError("no answer"))
            self.skip(request.line, reason)
            return
        from internvl2.cli.report import usage_fields

        answer = answered.answer
        record: dict[str, object] = {} if request.id is None else {"id": request.id}
        record |= {
            "line": request.line,
            "text": answer.text,
            "finish_reason": answer.finish_reason,
            "usage": usage_fields(answer.usage),
        }
        self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._file.flush()
        self._bar.update(1)

    def skip(self, line: int, reason: str) -> None:
        """Names a line that gets no answer."""
        self.skipped += 1
        self._bar.write(f"{self._command.source}:{line}: {reason}", file=sys.stderr)
        self._bar.update(1)

    def _with_system(self, messages: "tuple[Message, ...]") -> "tuple[Message, ...]":
        from internvl2.processing.conversation import Message

        if self._command.system is None or messages[0].role == "system":
            return messages
        return (Message.system(self._command.system), *messages)
