"""How the learning rate rises and falls in the course of a run; no torch."""

import math

from internvl2.train.recipe import Schedule


def rate_factor(schedule: Schedule, step: int, steps: int) -> float:
    """Share of the highest rate in `step`, counted from 0, of `steps`.

    The first step of the warm-up already learns; afterwards the curves are those of the official
    trainer.
    """
    warmup = math.ceil(schedule.warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min((step - warmup) / max(steps - warmup, 1), 1.0)
    if schedule.kind == "constant":
        return 1.0
    return 1 - progress if schedule.kind == "linear" else (1 + math.cos(math.pi * progress)) / 2
