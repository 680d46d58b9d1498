"""The loop: packs in, changed weights out, with checkpoints and records on the way."""

import logging
import signal
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from internvl2.model.internvl import InternVL
from internvl2.processing.processor import Processor
from internvl2.train.data.formats import Indexed, indexed
from internvl2.train.monitoring.log import RunLog, StepRecord, ValidationRecord
from internvl2.train.monitoring.trackers import open_trackers, require_trackers
from internvl2.train.parallel import World
from internvl2.train.recipe import Recipe
from internvl2.train.run import Run
from internvl2.train.run_folder import RunFolder

logger = logging.getLogger(__name__)

Validate = Callable[[InternVL, Processor, int], dict[str, float]]
"""Scores of a model after so many steps, beside its validation loss."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended, and where its results are."""

    reason: Literal["finished", "stopped"]
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
        with self._open_log(run) as log:
            for record in run.steps():
                if self._after_step(run, log, record):
                    return Ending("stopped", record.step, self.folder.path)
            if run.progress.step != run.saved_step:
                run.save()
            self._finish(run, log)
        return Ending("finished", run.progress.step, self.folder.path)

    def _open_log(self, run: Run) -> AbstractContextManager[RunLog | None]:
        if not self.world.is_first:
            return nullcontext()
        folder, done = self.folder.path, run.progress.step
        return RunLog(folder, done, run.total, open_trackers(self.recipe, folder, done))

    def _after_step(self, run: Run, log: RunLog | None, record: StepRecord) -> bool:
        """Records, validates and saves when it is time; whether the run must end here."""
        if log is not None:
            log.step(record)
        if record.step % self.recipe.validation.every == 0:
            self._validate(run, log)
        stop = self.world.sum([self._stop])[0] > 0
        run.checkpointer.check()
        if stop or record.step % self.recipe.save_every == 0:
            run.save()
        if stop:
            run.checkpointer.finish()
        return stop

    def _finish(self, run: Run, log: RunLog | None) -> None:
        """The last measurement, and the trained model or its adapters in the run's folder."""
        if run.progress.step % self.recipe.validation.every:
            self._validate(run, log)
        run.checkpointer.finish()
        weights = run.results()
        if self.world.is_first:
            self.folder.finish(weights, run.processor, run.base)
        self.world.wait()

    def _validate(self, run: Run, log: RunLog | None) -> None:
        measured = self.recipe.validation.data or self.recipe.validation.synthetic
        scores = {"loss": run.validation_loss()} if measured else {}
        if self.validate is not None:
            model = run.whole_model()
            if model is not None:
                scores |= self.validate(model, run.processor, run.progress.step)
            del model
        if log is not None and scores:
            log.validation(ValidationRecord(run.progress.step, scores))
        best = run.progress.best_loss
        if "loss" in scores and (best is None or scores["loss"] < best):
            run.progress = replace(run.progress, best_loss=scores["loss"])
            weights = run.results()
            if self.world.is_first:
                self.folder.save_best(weights, run.processor, run.base)
        self.world.wait()

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        self._stop = True
