"""`internvl2 eval`: questions with known answers in, scores out."""

import json
import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from internvl2 import console
from internvl2.cli.loading import find_directory, load_engine, require_model
from internvl2.cli.options import LoadOptions, MediaOptions, ModelName, require_within

if TYPE_CHECKING:
    from internvl2.engine.engine import Engine
    from internvl2.eval.evaluate import Asking, Row
    from internvl2.eval.questions import Question, Reading
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
    "iou",
    "precision@0.5",
]
USUAL_METRICS: tuple[MetricName, ...] = ("exact_match", "anls")


@dataclass(frozen=True)
class Eval:
    """Ask a model questions with known answers and print its scores.

    A line of DATA is {"question": ..., "answers": [...]} with "image", "images" or "video" as it
    likes, {"messages": ..., "answers": [...]} in the style of the OpenAI API, or a record of the
    official training files, whose answers are then the right ones.
    """

    data: Annotated[Positional[Path], arg(metavar="DATA.jsonl")]
    """Questions; paths in them begin at this file's folder."""
    model: ModelName = None
    """Directory of a checkpoint, hub id (OpenGVLab/InternVL2-2B) or short name (internvl2-2b)."""
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
        questions = self._questions()
        from internvl2.eval.evaluate import summarise
        from internvl2.eval.results import Results

        loaded = load_engine(self.model, self.load, self.media)
        metrics = self.metric or USUAL_METRICS
        with loaded.engine as engine:
            settings = self._settings(engine)
            results = None if self.out is None else Results(self.out, settings)
            with results or nullcontext():
                given = self._ask(engine, questions[: self.limit], results)
                rows = summarise(questions[: self.limit], given, metrics)
                if results is not None:
                    results.finish(questions, metrics, _report(rows, settings))
        _show(rows, settings, metrics, as_json=self.json)
        asked, answered = rows[-1].questions, rows[-1].answered
        if answered < asked:
            missing = f"{asked - answered} of {asked} questions were not answered"
            print(f"internvl2: {missing}", file=sys.stderr)
        return 1 if answered < asked else 0

    def _questions(self) -> "tuple[Question, ...]":
        """What is asked; whatever is wrong is said before a model is loaded."""
        from internvl2.eval.questions import read_questions

        require_model(self.model)
        require_within("--limit", self.limit, 1)
        require_within("--max-tokens", self.max_tokens, 1)
        self.media.check()
        self.load.check()
        if self.media_root is not None and not self.media_root.is_dir():
            raise FileNotFoundError(f"--media-root {self.media_root} is not a folder")
        if self.out is not None and self.out.exists() and not self.out.is_dir():
            raise ValueError(f"--out {self.out} is a file; give a folder")
        return read_questions(self.data, self.metric or USUAL_METRICS, self._reading())

    def _ask(
        self, engine: "Engine", questions: "tuple[Question, ...]", results: "Results | None"
    ) -> "dict[str, Given]":
        """The answers there are in the end; a question without one is named."""
        from internvl2.eval.evaluate import ask
        from internvl2.eval.results import Given

        given = {} if results is None else results.given
        remaining = [question for question in questions if question.key not in given]
        with console.progress(len(remaining), "answering", unit="question") as bar:
            for answered in ask(engine, remaining, self._asking()):
                question = remaining[answered.index]
                bar.update(1)
                if answered.answer is None:
                    reason = console.one_line(answered.error or ValueError("no answer"))
                    bar.write(f"{self.data}:{question.line}: {reason}", file=sys.stderr)
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

    def _settings(self, engine: "Engine") -> "Settings":
        from internvl2.eval.results import Settings, digest_of_file, digest_of_weights

        weight = engine.model.decoder.embedding.weight
        model = require_model(self.model)
        directory = find_directory(model, self.load.revision, offline=self.load.offline)
        return Settings(
            data=str(self.data.absolute()),
            data_digest=digest_of_file(self.data),
            model=model,
            weights_digest=digest_of_weights(directory),
            device=str(weight.device),
            dtype=str(weight.dtype).removeprefix("torch."),
            max_context=self.load.max_context,
            max_tokens=self.max_tokens,
            max_tiles=self.media.max_tiles,
            fit=self.media.fit,
            thinking=self.media.thinking,
            official_pictures=self.media.official_pictures,
            suffix=self.suffix,
            media_root=None if self.media_root is None else str(self.media_root.absolute()),
            frames=self.media.frames,
            start=self.media.start,
            end=self.media.end,
        )


def _report(rows: "list[Row]", settings: "Settings") -> dict[str, object]:
    *categories, overall = map(asdict, rows)
    report: dict[str, object] = {name: overall[name] for name in overall if name != "name"}
    if categories:
        report["categories"] = categories
    return report | {"settings": asdict(settings)}


def _show(
    rows: "list[Row]", settings: "Settings", metrics: tuple[MetricName, ...], *, as_json: bool
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
