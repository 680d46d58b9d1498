"""The loop: packs in, changed weights out, with checkpoints and records on the way."""

import logging
import signal
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from internvl2 import device as devices
from internvl2.model.internvl import InternVL
from internvl2.processing.processor import Processor
from internvl2.train.checkpointer import Progress
from internvl2.train.data.formats import Indexed, indexed
from internvl2.train.monitoring.log import RunLog, ValidationRecord
from internvl2.train.monitoring.trackers import open_trackers, require_trackers
from internvl2.train.parallel import World
from internvl2.train.planning.forecast import Forecast
from internvl2.train.recipe import Recipe
from internvl2.train.run import Run
from internvl2.train.run_folder import RunFolder

logger = logging.getLogger(__name__)

Validate = Callable[[InternVL, Processor, int], dict[str, float]]
"""Scores of a model after so many steps, beside its validation loss."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended, and where its results are."""

    reason: Literal["finished", "early", "stopped"]
    """early: by `validation.stop_after` or `guard.max_kl`; stopped: by SIGTERM, to go on later."""
    step: int
    folder: Path


class Trainer:
    """One run of a recipe, from its start or its last checkpoint to its end."""

    def __init__(
        self,
        recipe: Recipe,
        validate: Validate | None = None,
        records: Iterable[Any] | Indexed = (),
    ) -> None:
        self.recipe, self.validate = recipe, validate
        self.records = indexed(records)
        """Samples of a program, which join the recipe's data."""
        require_trackers(recipe)
        self.world = World.join(recipe.device)
        devices.let_segments_grow(self.world.device)
        self.folder = RunFolder(Path(recipe.output), recipe)
        self._stop = False

    def run(self) -> Ending:
        """Trains to the end, or until SIGTERM asks for a checkpoint and an end."""
        before = signal.signal(signal.SIGTERM, self._ask_to_stop)
        try:
            if self.world.is_first:
                self.folder.open()
            self.world.wait()
            with Run(self.recipe, self.world, self.folder.checkpoints, self.records) as run:
                return self._train(run)
        finally:
            signal.signal(signal.SIGTERM, before)
            self.world.leave()

    def _train(self, run: Run) -> Ending:
        if self.validate is not None:
            run.require_room_for_answers()
        enough = self._enough(run.progress)  # a run may have been stopped where it was to end
        forecast = Forecast(self.recipe, run.model, self.world, self.folder.path)
        with self._open_log(run) as log:
            for record in run.steps() if enough is None else ():
                if log is not None:
                    log.step(record)
                forecast.see(record)
                self._measure(run, log)
                enough = self._enough(run.progress)
                if self._save(run):
                    return Ending("stopped", record.step, self.folder.path)
                if enough is not None:
                    break
            if enough is not None:
                logger.info("the run ends early, after step %d: %s", run.progress.step, enough)
            if run.progress.step != run.saved_step:
                run.save()
            self._finish(run, log)
        reason = "finished" if enough is None else "early"
        return Ending(reason, run.progress.step, self.folder.path)

    def _open_log(self, run: Run) -> AbstractContextManager[RunLog | None]:
        if not self.world.is_first:
            return nullcontext()
        folder, done = self.folder.path, run.progress.step
        return RunLog(folder, done, run.total, open_trackers(self.recipe, folder, done))

    def _measure(self, run: Run, log: RunLog | None, *, last: bool = False) -> None:
        """Measures what it is time for, in the `last` measurement all else."""
        step, validation, guard = run.progress.step, self.recipe.validation, self.recipe.guard
        if (step % validation.every == 0) != last:
            self._validate(run, log)
        if guard.data and (step % guard.every == 0) != last:
            self._compare(run, log)

    def _enough(self, progress: Progress) -> str | None:
        """Why the run should end before its schedule does, if what was measured says so."""
        moved, most = progress.moved, self.recipe.guard.max_kl
        if most is not None and moved is not None and moved > most:
            return f"the divergence from the first model is {moved:.4g}, guard.max_kl is {most}"
        patience = self.recipe.validation.stop_after
        if patience is None or progress.without_better < patience:
            return None
        return (
            f"{self.recipe.validation.stop_metric} was not better than {progress.best_score:.4g} "
            f"{progress.without_better} times in a row"
        )

    def _save(self, run: Run) -> bool:
        """Saves when it is time; whether the run must end here."""
        stop = self.world.sum([self._stop])[0] > 0
        run.checkpointer.check()
        if stop or run.progress.step % self.recipe.save_every == 0:
            run.save()
        if stop:
            run.checkpointer.finish()
        return stop

    def _finish(self, run: Run, log: RunLog | None) -> None:
        """The last measurements, and the trained model or its adapters in the run's folder."""
        self._measure(run, log, last=True)
        run.checkpointer.finish()
        weights = run.results()
        if self.world.is_first:
            self.folder.finish(weights, run.processor, run.base)
        self.world.wait()

    def _validate(self, run: Run, log: RunLog | None) -> None:
        """Keeps the best model."""
        scores = {"loss": run.validation_loss()} if self.recipe.validation.is_measured else {}
        if self.validate is not None:
            model = run.whole_model()
            if model is not None:
                scores |= self.validate(model, run.processor, run.progress.step)
            del model
        if log is not None and scores:
            log.validation(ValidationRecord(run.progress.step, scores))
        value = self._decisive(scores)
        if value is None:
            return
        self._weigh(run, value)
        if not run.progress.without_better:
            weights = run.results()
            if self.world.is_first:
                self.folder.save_best(weights, run.processor, run.base)
        self.world.wait()

    def _decisive(self, scores: Mapping[str, float]) -> float | None:
        """The score that `best` goes by, which the first process may have alone."""
        metric = self.recipe.validation.stop_metric
        mine = [metric in scores, scores.get(metric, 0.0)]
        known, value = self.world.sum(mine if self.world.is_first else [0, 0])
        if not known and (metric != "loss" or self.recipe.validation.stop_after is not None):
            raise ValueError(f"validation.stop_metric is {metric!r}; measured: {sorted(scores)}")
        return value if known else None

    def _weigh(self, run: Run, value: float) -> None:
        """Notes a new score."""
        best, without_better = run.progress.best_score, run.progress.without_better + 1
        lower = self.recipe.validation.stop_metric == "loss"
        if best is None or (value < best if lower else value > best):
            best, without_better = value, 0
        run.progress = replace(run.progress, best_score=best, without_better=without_better)

    def _compare(self, run: Run, log: RunLog | None) -> None:
        """Tells how far the model has moved."""
        moved = run.divergence()
        run.progress = replace(run.progress, moved=moved)
        if log is not None:
            log.validation(ValidationRecord(run.progress.step, {"guard.kl": moved}))

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        self._stop = True
