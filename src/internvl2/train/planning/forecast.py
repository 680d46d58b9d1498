"""What a run was predicted to take of its device, beside what it took."""

import json
import logging
from dataclasses import asdict
from pathlib import Path

from internvl2.model.internvl import InternVL
from internvl2.train.monitoring.log import StepRecord
from internvl2.train.parallel import World
from internvl2.train.planning.activations import Execution
from internvl2.train.planning.machine import GIB
from internvl2.train.planning.memory import Memory, Pack, Step
from internvl2.train.planning.sizes import count
from internvl2.train.preparation import compiles
from internvl2.train.recipe import Recipe

logger = logging.getLogger(__name__)

COMPARED = 2
"""Steps after which all that a step needs has been needed, the optimizer's state among it."""
COUNTING = ("cuda", "npu")
"""Kinds of device that tell the most memory that they ever reserved."""


def predict(recipe: Recipe, model: InternVL, world: World) -> Memory:
    """The fullest moment of a step in each process of a run."""
    number = model.decoder.embedding.weight.element_size()
    is_cuda = world.device.type == "cuda"
    execution = Execution(compiles(recipe, world.device), is_cuda, number)
    sizes = count(model, recipe.optimizer)[recipe.optimizer.moments]
    pack = Pack.fullest(recipe, model.config)
    return Step(recipe, model.config, sizes, execution, pack, world.size).peak


class Forecast:
    """Compares once, in the first process."""

    def __init__(self, recipe: Recipe, model: InternVL, world: World, folder: Path) -> None:
        self._folder, self._steps = folder, 0
        watches = world.is_first and world.device.type in COUNTING
        self._predicted = predict(recipe, model, world) if watches else None

    def see(self, record: StepRecord) -> None:
        """Takes the record of a step; the second one is compared, told and written down."""
        self._steps += 1
        if self._predicted is None or self._steps != COMPARED:
            return
        predicted, measured = self._predicted.total / GIB, record.memory_gib
        error = predicted / measured - 1
        logger.info(
            "memory: %.1f GiB predicted, %.1f GiB measured (%+.1f %%)",
            *(predicted, measured, 100 * error),
        )
        parts = {name: round(part / GIB, 3) for name, part in asdict(self._predicted).items()}
        found = {"predicted_gib": round(predicted, 3), "measured_gib": round(measured, 3)}
        found |= {"error": round(error, 4), "parts_gib": parts}
        (self._folder / "plan.json").write_text(json.dumps(found, indent=1) + "\n")
