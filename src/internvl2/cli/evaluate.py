"""`internvl2 eval`: questions with known answers in, scores out."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from internvl2 import console
from internvl2.checkpoint.hub import EMBEDDED
from internvl2.cli.loading import find_model, load_engine, require_model
from internvl2.cli.options import LoadOptions, MediaOptions, ModelName, as_typed, require_within

if TYPE_CHECKING:
    from internvl2.engine.engine import Engine
    from internvl2.eval.evaluate import Asking, Row
    from internvl2.eval.questions import Asked, Reading
    from internvl2.eval.results import Given, Results, Settings

MetricName = Literal[
    "exact_match",
    "anls",
    "relaxed_accuracy",
    "vqa_accuracy",
    "choice",
    "contains",
    "contains_formula",
    "character_similarity",
    "lines_exact",
    "iou",
    "precision@0.5",
]
USUAL_METRICS: tuple[MetricName, ...] = ("exact_match", "anls")
USUAL_COUNT = 500


@dataclass(frozen=True)
class _Quiz:
    """What is asked, where it is from, and how it is scored."""

    questions: "tuple[Asked, ...]"
    """All there are; the first `limit` of them are asked."""
    limit: int | None
    name: str
    digest: str
    metrics: tuple[str, ...]
    """The columns of the table."""
    metrics_of: "Callable[[Asked], Sequence[str]]"
    rows: "Callable[[Mapping[str, Given]], list[Row]]"


@dataclass(frozen=True)
class Eval:
    """Ask a model questions with known answers and print its scores.

    A line of DATA is {"question": ..., "answers": [...]} with "image", "images" or "video" as it
    likes, {"messages": ..., "answers": [...]} in the style of the OpenAI API, or a record of the
    official training files, whose answers are then the right ones. A suite needs no file.
    """

    data: Annotated[Positional[Path | None], arg(metavar="DATA.jsonl")] = None
    """Questions; paths in them begin at this file's folder."""
    suite: Annotated[str | None, as_typed("NAME")] = None
    """nano: drawn pictures held out of training, every task with the metrics it is judged by."""
    count: Annotated[int | None, arg(metavar="N")] = None
    """Questions of each part of the suite; 500 unless given."""
    difficulty: Annotated[float | None, arg(metavar="SHARE")] = None
    """0 to 1, of the suite's pictures: smaller and longer text, more styles; 1 unless given."""
    model: ModelName = EMBEDDED
    """Directory, hub id (OpenGVLab/InternVL2-2B) or short name (internvl2-2b); nano is built in."""
    metric: UseAppendAction[tuple[MetricName, ...]] = ()
    """How answers are scored; repeat it for several. exact_match and anls unless given."""
    out: Annotated[Path | None, arg(metavar="DIR")] = None
    """Folder for every answer and the report; a run that was interrupted goes on there."""
    suffix: Annotated[str, arg(metavar="TEXT")] = ""
    """Put after every question, such as "Answer the question using a single word or phrase."."""
    media_root: Annotated[Path | None, arg(metavar="DIR")] = None
    """Where the paths of pictures and videos begin instead."""
    limit: Annotated[int | None, arg(metavar="N")] = None
    """Ask the first N questions only."""
    max_tokens: int = 256
    """Most tokens of an answer."""
    json: bool = False
    """Print the report as JSON instead of a table."""
    media: MediaOptions = field(default_factory=MediaOptions)
    load: LoadOptions = field(default_factory=LoadOptions)

    def run(self) -> int:
        """0 when every question was answered, 1 when some could not be."""
        self._check()
        quiz = self._read() if self.suite is None else self._draw(self.suite)
        from internvl2.eval.results import Results

        loaded = load_engine(self.model, self.load, self.media)
        with loaded.engine as engine:
            settings = self._settings(engine, quiz)
            results = None if self.out is None else Results(self.out, settings)
            loaded.introduce()
            with results or nullcontext():
                rows = quiz.rows(self._ask(engine, quiz, results))
                if results is not None:
                    results.finish(quiz.questions, quiz.metrics_of, _report(rows, settings))
        _show(rows, settings, quiz.metrics, as_json=self.json)
        asked, answered = rows[-1].questions, rows[-1].answered
        if answered < asked:
            missing = f"{asked - answered} of {asked} questions were not answered"
            print(f"internvl2: {missing}", file=sys.stderr)
        return 1 if answered < asked else 0

    def _check(self) -> None:
        """Whatever is wrong is said before a model is loaded."""
        require_model(self.model)
        require_within("--limit", self.limit, 1)
        require_within("--count", self.count, 1)
        require_within("--difficulty", self.difficulty, 0, 1)
        require_within("--max-tokens", self.max_tokens, 1)
        self.media.check()
        self.load.check()
        if (self.data is None) == (self.suite is None):
            given = "neither a file nor a suite" if self.data is None else "a file and a suite"
            raise ValueError(f"{given} of questions; give DATA.jsonl or --suite nano")
        of_suites = {"--count": self.count, "--difficulty": self.difficulty}
        of_files = {"--metric": self.metric, "--suffix": self.suffix,
                    "--media-root": self.media_root, "--limit": self.limit}  # fmt: skip
        others, kind = (of_suites, "suites") if self.suite is None else (of_files, "files")
        for name, value in others.items():
            if value not in (None, (), ""):
                raise ValueError(f"{name} is for {kind} of questions")
        if self.media_root is not None and not self.media_root.is_dir():
            raise FileNotFoundError(f"--media-root {self.media_root} is not a folder")
        if self.out is not None and self.out.exists() and not self.out.is_dir():
            raise ValueError(f"--out {self.out} is a file; give a folder")

    def _read(self) -> _Quiz:
        """The questions of the file."""
        from internvl2.eval.evaluate import summarise
        from internvl2.eval.questions import read_questions
        from internvl2.eval.results import digest_of_file

        assert self.data is not None
        metrics = self.metric or USUAL_METRICS
        questions = read_questions(self.data, metrics, self._reading())
        return _Quiz(
            questions,
            self.limit,
            str(self.data),
            digest_of_file(self.data),
            metrics,
            lambda question: metrics,
            lambda given: summarise(questions[: self.limit], given, metrics),
        )

    def _draw(self, name: str) -> _Quiz:
        """The questions of a suite."""
        from internvl2.eval.evaluate import summarise_parts
        from internvl2.eval.suites import draw_suite, find

        parts = {part.name: part for part in find(name)}
        count = self.count or USUAL_COUNT
        difficulty = 1.0 if self.difficulty is None else self.difficulty
        with console.progress(len(parts) * count, "drawing", unit="question") as bar:
            suite = draw_suite(name, count, difficulty, bar.update)
        return _Quiz(
            suite.questions,
            None,
            f"{name}, {count} of each part, difficulty {difficulty:g}",
            suite.digest,
            tuple(dict.fromkeys(metric for part in parts.values() for metric in part.metrics)),
            lambda question: parts[question.category or ""].metrics,
            lambda given: summarise_parts(suite.questions, given),
        )

    def _ask(self, engine: "Engine", quiz: _Quiz, results: "Results | None") -> "dict[str, Given]":
        """The answers there are in the end; a question without one is named."""
        from internvl2.eval.evaluate import ask
        from internvl2.eval.results import Given

        given = {} if results is None else results.given
        remaining = [
            question for question in quiz.questions[: quiz.limit] if question.key not in given
        ]
        with console.progress(len(remaining), "answering", unit="question") as bar:
            for answered in ask(engine, remaining, self._asking()):
                question = remaining[answered.index]
                bar.update(1)
                if answered.answer is None:
                    reason = console.one_line(answered.error or ValueError("no answer"))
                    bar.write(f"{quiz.name}:{question.line}: {reason}", file=sys.stderr)
                    continue
                answer = Given(answered.answer.text, answered.answer.finish_reason)
                if results is None:
                    given[question.key] = answer
                else:
                    results.add(question, answer)
        return given

    def _reading(self) -> "Reading":
        from internvl2.eval.questions import Reading

        return Reading(
            self.media_root, self.suffix, self.media.frames, self.media.start, self.media.end
        )

    def _asking(self) -> "Asking":
        from internvl2.eval.evaluate import Asking

        return Asking(self.max_tokens, self.media.encoding())

    def _settings(self, engine: "Engine", quiz: _Quiz) -> "Settings":
        from internvl2.eval.results import Settings, digest_of_weights

        weight = engine.model.decoder.embedding.weight
        model = require_model(self.model)
        load = self.load
        found = find_model(model, load.adapter, load.revision, offline=load.offline)
        return Settings(
            data=quiz.name if self.data is None else str(self.data.absolute()),
            data_digest=quiz.digest,
            model=model,
            weights_digest=digest_of_weights(found.directory, found.adapter),
            device=engine.place,
            dtype=str(weight.dtype).removeprefix("torch."),
            max_context=self.load.max_context,
            max_tokens=self.max_tokens,
            max_tiles=self.media.max_tiles,
            fit=self.media.fit,
            thinking=self.media.thinking,
            official_pictures=self.media.official_pictures,
            preprocess=self.media.preprocess,
            suffix=self.suffix,
            media_root=None if self.media_root is None else str(self.media_root.absolute()),
            frames=self.media.frames,
            start=self.media.start,
            end=self.media.end,
            adapter=None if found.adapter is None else str(found.adapter),
            quantize=load.quantize,
        )


def _report(rows: "list[Row]", settings: "Settings") -> dict[str, object]:
    *categories, overall = map(asdict, rows)
    report: dict[str, object] = {name: overall[name] for name in overall if name != "name"}
    if categories:
        report["categories"] = categories
    return report | {"settings": asdict(settings)}


def _show(
    rows: "list[Row]", settings: "Settings", metrics: Sequence[str], *, as_json: bool
) -> None:
    if as_json:
        print(json.dumps(_report(rows, settings), ensure_ascii=False))
        return
    lines = [["", "answered", "cut off", *metrics]]
    for row in rows:
        scores = [f"{row.scores[name]:.4f}" if name in row.scores else "-" for name in metrics]
        lines.append([row.name, f"{row.answered}/{row.questions}", str(row.cut_off), *scores])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for name, *cells in lines:
        aligned = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        print("  ".join([name.ljust(widths[0]), *aligned]))
