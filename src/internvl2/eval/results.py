"""The folder of an evaluation: settings.json, results.jsonl with one line per answer, report.json.

Answers are appended as they come, so that a run that was killed goes on where it ended; at the end
the lines are put in order, with their scores. Answers of other settings are never mixed in.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

from internvl2 import __version__
from internvl2.eval.questions import Asked, score_answer

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".pdparams")


@dataclass(frozen=True, slots=True)
class Settings:
    """All that answers depend on."""

    data: str
    data_digest: str
    model: str
    weights_digest: str
    """Of the names, sizes and times of the files of weights."""
    device: str
    dtype: str
    max_context: int | None
    max_tokens: int
    max_tiles: int | None
    fit: bool
    thinking: bool
    official_pictures: bool
    suffix: str
    media_root: str | None
    frames: int
    start: float | None
    end: float | None
    adapter: str | None = None
    preprocess: str = "exact"
    quantize: str | None = None
    version: str = __version__


@dataclass(frozen=True, slots=True)
class Given:
    """The model's answer to a question."""

    text: str
    finish_reason: str


class Results:
    """The folder, open to be added to."""

    def __init__(self, directory: Path, settings: Settings) -> None:
        self._directory = directory
        self._path = directory / "results.jsonl"
        self._open(settings)
        self.given: dict[str, Given] = _read(self._path)
        """By the question's key."""
        self._file: IO[str] = self._path.open("a", encoding="utf-8")

    def add(self, question: Asked, given: Given) -> None:
        """Writes an answer down at once."""
        self.given[question.key] = given
        self._file.write(_line(question, given, {}))
        self._file.flush()

    def finish(
        self,
        questions: Sequence[Asked],
        metrics_of: Callable[[Asked], Sequence[str]],
        report: Mapping[str, Any],
    ) -> None:
        """Puts the lines in the order of the questions, with scores, and writes the report."""
        pairs = [(one, self.given[one.key]) for one in questions if one.key in self.given]
        lines = [
            _line(one, given, score_answer(one, given.text, metrics_of(one)))
            for one, given in pairs
        ]
        _replace(self._path, "".join(lines))
        _replace(self._directory / "report.json", _pretty(report))

    def close(self) -> None:
        """Ends the writing."""
        self._file.close()

    def __enter__(self) -> "Results":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, settings: Settings) -> None:
        """Makes the folder, or sees to it that its answers are of the same settings."""
        path, now = self._directory / "settings.json", asdict(settings)
        if not self._directory.exists() or not any(self._directory.iterdir()):
            self._directory.mkdir(parents=True, exist_ok=True)
            _replace(path, _pretty(now))
            return
        before = _settings(path)
        for name, value in now.items():
            if before.get(name) != value:
                raise ValueError(
                    f"{self._directory} holds answers with {name} {before.get(name)!r}, but now it "
                    f"is {value!r}; name another folder"
                )


def digest_of_file(path: Path) -> str:
    """A hash of the content."""
    state = blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(2**20):
            state.update(block)
    return state.hexdigest()


def digest_of_weights(model: Path, adapter: Path | None = None) -> str:
    """A hash that changes when other weights are put into one of the directories."""
    folders = [model] if adapter is None else [model, adapter]
    paths = (path for folder in folders for path in sorted(folder.iterdir()))
    files = [path for path in paths if path.suffix in WEIGHTS]
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return blake2b(repr(facts).encode(), digest_size=16).hexdigest()


def _settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_bytes())
    except (OSError, ValueError):
        settings = None
    if isinstance(settings, dict) and "data_digest" in settings:
        return settings
    raise ValueError(f"{path.parent} holds something else than an evaluation; name another folder")


def _read(path: Path) -> dict[str, Given]:
    """The answers of a file; what an interrupted run left of its last line is taken off."""
    given: dict[str, Given] = {}
    if not path.exists():
        return given
    complete = 0
    with path.open("rb+") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                file.truncate(complete)
                break
            try:
                record = json.loads(line)
                key = f"{record['line']}.{record['turn']}"
                given[key] = Given(record["text"], record["finish_reason"])
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f"{path}:{number}: not an answer of an evaluation; name another folder"
                ) from None
            complete += len(line)
    return given


def _line(question: Asked, given: Given, scores: Mapping[str, float]) -> str:
    record: dict[str, object] = {"line": question.line, "turn": question.turn}
    record |= {} if question.id is None else {"id": question.id}
    record |= {} if question.category is None else {"category": question.category}
    record |= {
        "question": question.messages[-1].text,
        "answers": question.answers,
        "text": given.text,
        "finish_reason": given.finish_reason,
    }
    record |= {"scores": scores} if scores else {}
    return json.dumps(record, ensure_ascii=False) + "\n"


def _pretty(content: Mapping[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"


def _replace(path: Path, content: str) -> None:
    """Writes a file that is there whole or not at all."""
    draft = path.with_name(f"{path.name}.tmp")
    draft.write_text(content, encoding="utf-8")
    os.replace(draft, path)
