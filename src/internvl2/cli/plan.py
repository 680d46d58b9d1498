"""`internvl2 train RECIPE --plan`: what training will need, and which way is fastest."""

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from internvl2.train.recipe import Recipe

if TYPE_CHECKING:
    from internvl2.train.planning.plan import Option, Plan

HEADINGS = (
    *("", "trained", "recomputed", "moments", "divided", "weights", "gradients", "optimizer"),
    *("activations", "loss", "other", "GiB", "fits", "tokens/s"),
)
LEFT = 5
"""So many columns are words."""
FEATURES_KEPT = (
    "features kept (feature_cache): tokens/s of tiles that were seen before; for new ones the "
    "vision tower runs, too, and what that needs is part of the memory"
)


@dataclass(frozen=True)
class PlanOptions:
    """Whether to plan instead of training, and for which machine."""

    plan: bool = False
    """Say what training will need and which way is fastest, and train nothing."""
    plan_device: str | None = None
    """With --plan: for another kind of device (h100, h200, a100, l40s, 4090 ...)."""
    plan_memory: float | None = None
    """With --plan: GiB of a device."""
    plan_gpus: int | None = None
    """With --plan: how many devices; those of this machine, or one, unless given."""
    json: bool = False
    """With --plan: print one JSON object instead of a table."""

    def __post_init__(self) -> None:
        given = [field.name for field in fields(self)[1:] if getattr(self, field.name)]
        if given and not self.plan:
            raise ValueError(f"--{given[0].replace('_', '-')} is given without --plan")


def changing_the_recipe(options: Sequence[str]) -> list[str]:
    """Options of `train` without those that are about planning."""
    kept, words = [], iter(options)
    for word in words:
        name, _, value = word.replace("_", "-").partition("=")
        if name in ("--plan-device", "--plan-memory", "--plan-gpus"):
            if not value:
                next(words)
        elif name not in ("--plan", "--json"):
            kept.append(word)
    return kept


@dataclass(frozen=True)
class PlanTraining:
    """`train` with --plan: the recipe's name, what the command line says, and for what."""

    name: str
    settings: Recipe
    given: Sequence[str]
    """Options that changed the recipe, as they were typed."""
    options: PlanOptions

    def run(self) -> int:
        """0 where something fits, 1 where nothing does."""
        from internvl2.train.planning.machine import given
        from internvl2.train.planning.plan import make_plan

        options = self.options
        asked = (options.plan_device, options.plan_memory, options.plan_gpus)
        machine = given(*asked, self.settings.device)
        plan = make_plan(self.settings, machine)
        print(json.dumps(self._record(plan)) if options.json else self._table(plan))
        return int(plan.pick is None)

    def _table(self, plan: "Plan") -> str:
        machine = plan.machine
        many = f"{machine.count} x " if machine.count > 1 else ""
        lines = [f"{self.settings.model} on {many}{machine.name}, {machine.memory:.1f} GiB free"]
        rows = [_row("", "the recipe as it is", plan.given)]
        rows += [_row("*" if o is plan.pick else "", o.strategy, o) for o in plan.options]
        lines += [*_aligned([HEADINGS, *rows]), ""]
        if any(_keeps_features(option) for option in (plan.given, *plan.options)):
            lines += [FEATURES_KEPT, ""]
        if plan.pick is None:
            need = _gib(plan.smallest.memory.total)
            least = f"nothing fits; the least is {plan.smallest.strategy} with {need} GiB"
            lines.append(f"{least}; a lower --packing.tokens needs less")
        else:
            lines.append(self._command(plan.pick, machine.count))
        return "\n".join(lines)

    def _record(self, plan: "Plan") -> dict[str, Any]:
        """Everything as plain values."""
        pick = plan.pick
        return {
            "model": self.settings.model,
            "machine": asdict(plan.machine),
            "given": self._described(plan.given),
            "options": [self._described(option) for option in plan.options],
            "pick": None if pick is None else pick.strategy,
            "command": None if pick is None else self._command(pick, plan.machine.count),
            "smallest_gib": round(plan.smallest.memory.total / 2**30, 2),
        }

    def _described(self, option: "Option") -> dict[str, Any]:
        memory, speed = option.memory, option.tokens_per_second
        return {
            "strategy": option.strategy,
            "features_kept": _keeps_features(option),
            "changes": dict(_changes(self.settings, option.recipe)),
            "gib": {name: round(part / 2**30, 3) for name, part in asdict(memory).items()}
            | {"total": round(memory.total / 2**30, 3)},
            "fits": option.fits,
            "tokens_per_second": None if speed is None else round(speed),
        }

    def _command(self, option: "Option", processes: int) -> str:
        """What trains so."""
        start = f"torchrun --nproc-per-node {processes} -m " if processes > 1 else ""
        changes = _changes(self.settings, option.recipe)
        words = [word for name, value in changes for word in (f"--{name}", str(value))]
        return start + shlex.join(["internvl2", "train", self.name, *self.given, *words])


def _changes(begun: Any, ended: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Options that make one recipe of the other."""
    for field in fields(begun):
        one, other = getattr(begun, field.name), getattr(ended, field.name)
        name = prefix + field.name.replace("_", "-")
        if is_dataclass(one):
            yield from _changes(one, other, f"{name}.")
        elif one != other:
            yield name, other


def _row(mark: str, name: str, option: "Option") -> tuple[str, ...]:
    recipe, memory = option.recipe, option.memory
    learns = not recipe.freeze.vision or recipe.freeze.vision_last or recipe.lora.vision_rank
    seen = f"{recipe.recompute.vision:g}" if learns else "-"
    speed = option.tokens_per_second
    kept = ", features kept" if _keeps_features(option) else ""
    return (
        *(mark, name + kept, f"{seen}/{recipe.recompute.decoder:g}", recipe.optimizer.moments),
        "yes" if recipe.shard else "no",
        *(_gib(part) for part in asdict(memory).values()),
        _gib(memory.total),
        "yes" if option.fits else "no",
        "" if speed is None else f"{speed:,.0f}",
    )


def _keeps_features(option: "Option") -> bool:
    return option.recipe.feature_cache is not None


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = zip(row, widths, range(len(row)), strict=True)
        padded = (cell.ljust(w) if n < LEFT else cell.rjust(w) for cell, w, n in cells)
        lines.append("  ".join(padded).rstrip())
    return lines
