"""Adapters: speed against PEFT on transformers' InternVL, and how much memory fine-tuning takes.

    python benchmarks/lora.py --json lora.json

Speed is measured as `training.py` does it, on the same samples for both sides, with the package's
recipes of adapters (`2b-lora`, `8b-lora`) and their packs of 4096 tokens, of which ours runs
`--joined` as one, as larger `packing` does, and theirs as many as are fastest. That both compute
the same loss before they have adapters is checked first. PEFT's are in bf16, which is faster than
its default. Where PEFT is not installed only our side is measured; its wheel, and that of
accelerate, need no installation: `PYTHONPATH=peft-….whl:accelerate-….whl`.

Memory is the most that a process reserves on the GPU from its start, loading included, over steps
of a pack of 4096 tokens each, with clipping, at a recipe's share of recomputation; beside it stands
what `train --plan` predicts. Limits are in units of 10^9 bytes. The file of `--json` is written
anew after each measurement.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch
import training
from training_sides import Options, Timing, our_step, timed
from training_work import Work, shape

from internvl2 import device as devices
from internvl2.train.data.filling import Limits
from internvl2.train.planning.activations import Execution
from internvl2.train.planning.memory import Pack, Step
from internvl2.train.planning.sizes import count
from internvl2.train.preparation import without_memory
from internvl2.train.recipe import Freeze, Packing, Recipe, Recompute

SPEED, MEMORY = "speed", "memory"
HEADER = """\
| fine-tuning | peak GB | predicted GB | limit GB | fits | tokens/s | steps | setting |
|---|---|---|---|---|---|---|---|"""


@dataclass(frozen=True)
class Fit:
    """A way of fine-tuning that must fit into so much memory."""

    member: str
    method: str
    limit_gb: float

    def __str__(self) -> str:
        return f"{self.member} {self.method}"

    @property
    def recipe(self) -> Recipe:
        """What a user would run."""
        if self.method == "full":
            plain = Recipe.read(self.member)
            return replace(
                plain,
                freeze=Freeze(vision=False),
                optimizer=replace(plain.optimizer, moments="8bit"),
                recompute=Recompute(1.0, 1.0),
                packing=Packing(tokens=4096, tiles=15),
            )
        adapters = Recipe.read(f"{self.member}-lora")
        return replace(adapters, quantize="nf4") if self.method == "QLoRA" else adapters


FITS = (Fit("8b", "QLoRA", 24.0), Fit("2b", "LoRA", 16.0), Fit("1b", "full", 16.0))


@dataclass(frozen=True)
class Fitted:
    """What was measured of one."""

    fit: Fit
    timing: Timing
    peak_gb: float
    """0 without a GPU."""
    predicted_gb: float
    tokens_per_s: float
    steps: int

    @property
    def fits(self) -> bool:
        """Whether the peak is within the limit."""
        return self.peak_gb <= self.fit.limit_gb

    @property
    def row(self) -> str:
        """A line of the table."""
        cells = (
            str(self.fit),
            f"{self.peak_gb:.2f}",
            f"{self.predicted_gb:.2f}",
            f"{self.fit.limit_gb:g}",
            "yes" if self.fits else "NO",
            f"{self.tokens_per_s:.0f}",
            str(self.steps),
            self.timing.setting,
        )
        return f"| {' | '.join(cells)} |"


def main() -> int:
    """Measure and print; 1 if something failed, or takes more memory than it may."""
    options = parse()
    found, arguments = training.Report(None, None, []), of_training(options)
    machine = training.alone("the device", training.describe, arguments)
    print(f"{machine}\n", flush=True)
    found, fitted = replace(found, machine=machine), []
    good = True
    if SPEED in options.parts:
        found, good = compare(arguments, found)
    if MEMORY in options.parts:
        print(f"\n{HEADER}", flush=True)
        for fit in FITS:
            result = training.alone(str(fit), fill_memory, arguments, fit, options.memory_steps)
            good &= result is not None and result.fits
            if result is not None:
                fitted.append(result)
                print(result.row, flush=True)
                write(arguments, found, fitted)
    return int(not good)


def write(
    arguments: training.Arguments, found: training.Report, fitted: Sequence[Fitted] = ()
) -> None:
    """Everything that is known so far, where a file is asked for."""
    if arguments.json:
        values = json.loads(found.json) | {"memory": [asdict(result) for result in fitted]}
        arguments.json.write_text(json.dumps(values, indent=1), encoding="utf-8")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Adapters beside PEFT's, and their memory.")
    members, parts = ["2b", "8b"], [SPEED, MEMORY]
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts)
    parser.add_argument("--members", nargs="+", default=members, choices=["1b", *members])
    parser.add_argument("--only", choices=training.SIDES, help="one side of the speed")
    parser.add_argument("--steps", type=int, default=3, help="timed steps; their median counts")
    parser.add_argument("--packs", type=int, default=8, help="packs of a timed step")
    parser.add_argument("--joined", type=int, default=1, help="packs that ours runs as one")
    parser.add_argument("--memory-steps", type=int, default=24, help="steps, each of another pack")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to try the command")
    parser.add_argument("--no-compile", action="store_true", help="our layers as they are")
    parser.add_argument("--profile", action="store_true", help="kernels of one of our steps")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--device", default=None)
    return parser.parse_args()


def of_training(options: argparse.Namespace) -> training.Arguments:
    """The same, as the benchmark of training takes it."""
    return training.Arguments(
        members=options.members,
        train=["lora"],
        only=options.only,
        steps=options.steps,
        packs=options.packs,
        tiny=options.tiny,
        recompute=None,
        compile_transformers=False,
        no_compile=options.no_compile,
        profile=options.profile,
        limit_gib=None,
        joined=options.joined,
        json=options.json,
        device=options.device,
    )


def compare(arguments: training.Arguments, found: training.Report) -> tuple[training.Report, bool]:
    """Both sides' speed, printed and added to what was found; and whether all went well."""
    sides: list[training.Side] = [side for side in training.SIDES if arguments.only in (None, side)]
    missing = [name for name in ("transformers", "peft", "accelerate") if find_spec(name) is None]
    if missing and "transformers" in sides:
        print(f"without {', '.join(missing)}: nothing to compare with, only ours is measured\n")
        sides.remove("transformers")
    if "transformers" in sides:
        agreed = training.alone("agreement", training.check_agreement, arguments)
        found = replace(found, agreement=agreed)
        print(f"{agreed}\n", flush=True)
    print(training.HEADER, flush=True)
    cases = [training.Case(member, "lora", side) for member in arguments.members for side in sides]
    for case in cases:
        result = training.alone(str(case), training.measure, arguments, case)
        if result is not None:
            found.results.append(result)
            print(found.row(result), flush=True)
            write(arguments, found)
    print(f"\n{found.tried}", flush=True)
    return found, len(found.results) == len(cases)


def fill_memory(arguments: training.Arguments, fit: Fit, steps: int) -> Fitted:
    """Load, and take so many steps, each of another pack."""
    device = training.ready(arguments)
    devices.let_segments_grow(device)
    recipe, compiled = fit.recipe, device.type == "cuda" and not arguments.no_compile
    limits = Limits(recipe.packing.tokens, recipe.packing.tiles)
    predicted = prediction(fit, arguments, compiled)
    work = Work.make(shape(fit.member, arguments.tiny), steps, limits)
    works = [replace(work, packs=(pack,)) for pack in work.packs]
    options = Options(device, steps=max(1, steps - 2), warm_up=2, compile_ours=compiled)
    step = our_step(works, recipe, options)
    before = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0
    shares = recipe.recompute
    setting = (
        f"{recipe.optimizer.moments} moments, recompute {shares.vision:g}/{shares.decoder:g}"
        + (f", rank {recipe.lora.decoder_rank}" if recipe.lora.is_used else "")
    )
    timing = timed(step, setting, options)
    peak_gb = max(before, timing.peak_gib * 2**30) / 1e9
    rate = work.tokens / len(works) / timing.seconds
    return Fitted(fit, timing, peak_gb, predicted, rate, options.warm_up + options.steps)


def prediction(fit: Fit, arguments: training.Arguments, compiled: bool) -> float:
    """What a planner says of steps of one full pack, in units of 10^9 bytes."""
    recipe, config = replace(fit.recipe, packs_per_step=1), shape(fit.member, arguments.tiny)
    model = without_memory(recipe, config, torch.bfloat16)
    sizes = count(model, recipe.optimizer)[recipe.optimizer.moments]
    execution = Execution(compiled)
    pack = Pack.fullest(recipe, config)
    return Step(recipe, config, sizes, execution, pack).peak.total / 1e9


if __name__ == "__main__":
    sys.exit(main())
