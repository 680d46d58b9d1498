"""Training against transformers' InternVL: the same samples, one CUDA GPU, one command.

    python benchmarks/training.py --json training.json

A step is one change of the weights after four packs of 8192 tokens (about 28 tiles each, a tenth of
the tokens labelled). Ours is the trainer's own path, from packed samples in pinned memory to the
optimizer's step with exact fp32 weights. transformers' InternVLForConditionalGeneration gets the
same samples sorted by length in padded batches, in bf16 with SDPA and PyTorch's fused AdamW, at the
fastest of a few batch sizes, with gradient checkpointing only where memory does not suffice; its
tiles lie normalised on the GPU before the time starts. Tokens are those of the samples, without
padding; both sides are credited with the same model FLOPs, vision included. Weights are random, in
the shapes of the releases; that both sides compute the same loss is checked first. Every
measurement has a process of its own, and is printed as soon as it is there.
"""

import argparse
import json
import multiprocessing
import platform
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, TypeVar

import torch
from training_agreement import Agreement, agreement
from training_sides import RECOMPUTE, Options, Timing, matmul_speed, time_ours, time_theirs
from training_work import LIMITS, Work, shape

from internvl2 import device as devices
from internvl2.train.data.filling import Limits
from internvl2.train.recipe import Freeze, Recipe, Recompute

Side = Literal["ours", "transformers"]
Trained = Literal["all", "frozen", "lora"]
"""Everything, everything but the vision tower, or adapters of the decoder."""
Found = TypeVar("Found")

SIDES: tuple[Side, ...] = ("transformers", "ours")
PEAK = 800e12
"""Operations per second that the goals are stated for."""
HEADER = """\
| member, trained | side | tokens/s | tiles/s | MFU % of matmul | MFU % of 800 | peak GiB | s/step \
| times transformers | setting |
|---|---|---|---|---|---|---|---|---|---|"""


@dataclass(frozen=True)
class Arguments:
    """The command line."""

    members: list[str]
    train: list[Trained]
    only: Side | None
    steps: int
    packs: int
    tiny: bool
    recompute: Recompute | None
    compile_transformers: bool
    no_compile: bool
    profile: bool
    limit_gib: float | None
    joined: int
    json: Path | None
    device: str | None


@dataclass(frozen=True)
class Case:
    """One measurement."""

    member: str
    trained: Trained
    side: Side

    def __str__(self) -> str:
        return f"{self.member} {self.trained} {self.side}"


@dataclass(frozen=True)
class Machine:
    """What it was measured on."""

    name: str
    torch: str
    transformers: str
    matmul_tflops: float

    def __str__(self) -> str:
        return (
            f"{self.name}, torch {self.torch}, transformers {self.transformers}, "
            f"bf16 matmul {self.matmul_tflops:.0f} TFLOP/s"
        )


@dataclass(frozen=True)
class Result:
    """What came out of a case."""

    case: Case
    timing: Timing
    samples: int
    tokens: int
    tiles: int
    learned: int
    vision_flops: float
    decoder_flops: float
    matmul: float
    """Operations per second of a product of matrices, in the same process."""

    @property
    def tokens_per_s(self) -> float:
        """Of the samples, without padding."""
        return self.tokens / self.timing.seconds

    @property
    def speed(self) -> float:
        """Model FLOPs per second."""
        return (self.vision_flops + self.decoder_flops) / self.timing.seconds


@dataclass(frozen=True)
class Report:
    """Everything that was found, so far."""

    machine: Machine | None
    agreement: Agreement | None
    results: list[Result]

    def row(self, result: Result) -> str:
        """A line of the table; transformers' result for the same model comes before ours."""
        case, timing = result.case, result.timing
        theirs = {r.case: r for r in self.results}.get(replace(case, side="transformers"))
        ratio = f"{result.tokens_per_s / theirs.tokens_per_s:.2f}" if theirs else ""
        cells = (
            f"{case.member.upper()} {case.trained}",
            case.side,
            f"{result.tokens_per_s:.0f}",
            f"{result.tiles / timing.seconds:.1f}",
            f"{100 * result.speed / result.matmul:.1f}",
            f"{100 * result.speed / PEAK:.1f}",
            f"{timing.peak_gib:.1f}",
            f"{timing.seconds:.3f}",
            ratio,
            timing.setting,
        )
        return f"| {' | '.join(cells)} |"

    @property
    def json(self) -> str:
        """Everything, with the rates that follow from it."""
        rates = [
            {
                "tokens_per_s": result.tokens_per_s,
                "tiles_per_s": result.tiles / result.timing.seconds,
                "mfu": result.speed / result.matmul,
            }
            for result in self.results
        ]
        values = asdict(self)
        values["results"] = [a | b for a, b in zip(values["results"], rates, strict=True)]
        return json.dumps(values, indent=1)

    @property
    def tried(self) -> str:
        """The settings that were tried before the one in the table, and how they did."""
        lines = [f"- {r.case}: {'; '.join(r.timing.tried) or 'none'}" for r in self.results]
        return "\n".join(["Tried before:", *lines])


def main() -> int:
    """Measure every case and print the table; 1 if something failed."""
    arguments = parse()
    found = Report(alone("the device", describe, arguments), None, [])
    print(f"{found.machine}\n", flush=True)
    if arguments.only is None:
        found = replace(found, agreement=alone("agreement", check_agreement, arguments))
        print(f"{found.agreement}\n", flush=True)
    cases = [
        Case(member, trained, side)
        for member in arguments.members
        for trained in arguments.train
        for side in SIDES
        if arguments.only in (None, side)
    ]
    print(HEADER, flush=True)
    for case in cases:
        result = alone(str(case), measure, arguments, case)
        if result is not None:
            found.results.append(result)
            print(found.row(result), flush=True)
        if arguments.json:
            arguments.json.write_text(found.json, encoding="utf-8")
    print(f"\n{found.tried}")
    return int(len(found.results) < len(cases))


def parse() -> Arguments:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train beside transformers' InternVL.")
    members, modes = ["1b", "2b", "8b"], ["all", "frozen"]  # `lora.py` measures adapters
    parser.add_argument("--members", nargs="+", default=members, choices=members)
    parser.add_argument(
        "--train", nargs="+", default=modes, choices=modes, help="frozen: the vision tower is"
    )
    parser.add_argument("--only", choices=SIDES)
    parser.add_argument("--steps", type=int, default=3, help="timed steps; their median counts")
    parser.add_argument("--packs", type=int, default=4, help="packs of a step")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to try the command")
    parser.add_argument(
        "--recompute", type=recompute, help="VISION,DECODER shares; else the least that fits"
    )
    parser.add_argument("--compile-transformers", action="store_true")
    parser.add_argument("--no-compile", action="store_true", help="our layers as they are")
    parser.add_argument("--profile", action="store_true", help="kernels of one of our steps")
    parser.add_argument("--limit-gib", type=float, help="GPU memory that a process may take")
    parser.add_argument("--joined", type=int, default=1, help="packs that ours runs as one")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--device", default=None)
    return Arguments(**vars(parser.parse_args()))


def recompute(text: str) -> Recompute:
    """Two shares, as in 0,0.5."""
    vision, decoder = text.split(",")
    return Recompute(float(vision), float(decoder))


def alone(name: str, work: Callable[..., Found], *inputs: object) -> Found | None:
    """What `work` gives in a process of its own; None, and its traceback, where it fails."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        future = pool.submit(work, *inputs)
        error = future.exception()
    if error is None:
        return future.result()
    print(f"{name} failed:", flush=True)
    traceback.print_exception(error, file=sys.stdout)
    return None


def describe(arguments: Arguments) -> Machine:
    """The machine, seen from a process that then gives the GPU back."""
    device = ready(arguments)
    try:
        theirs = version("transformers")
    except PackageNotFoundError:
        theirs = "absent"
    return Machine(machine(device), torch.__version__, theirs, matmul_speed(device) / 1e12)


def check_agreement(arguments: Arguments) -> Agreement:
    """The losses of both sides on one pack, in the first member's shape."""
    device = ready(arguments)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    work = Work.make(shape(arguments.members[0], arguments.tiny), packs=1)
    return agreement(work, device, dtype)


def measure(arguments: Arguments, case: Case) -> Result:
    """One case, from random weights to the median step."""
    device = ready(arguments)
    matmul = matmul_speed(device)
    recipe, limits = Recipe.read(case.member), LIMITS
    if case.trained == "lora":
        recipe = Recipe.read(f"{case.member}-lora")
        limits = Limits(recipe.packing.tokens, recipe.packing.tiles)
    else:
        recipe = replace(recipe, freeze=Freeze(vision=case.trained == "frozen"))
    work = Work.make(shape(case.member, arguments.tiny), arguments.packs, limits)
    options = Options(
        device=device,
        steps=arguments.steps,
        compile_ours=device.type == "cuda" and not arguments.no_compile,
        compile_theirs=arguments.compile_transformers,
        recompute=(arguments.recompute,) if arguments.recompute else RECOMPUTE,
        profile=arguments.profile,
    )
    if case.side == "ours":
        timing = time_ours(work.joined(arguments.joined), recipe, options)
    else:
        timing = time_theirs(work, recipe, options)
    flops = work.flops(recipe)
    counts = (len(work.samples), work.tokens, work.tiles, work.learned)
    return Result(case, timing, *counts, flops.vision, flops.decoder, matmul)


def ready(arguments: Arguments) -> torch.device:
    """The device, with no more memory than it is given."""
    device = devices.pick(arguments.device)
    if device.type == "cuda" and arguments.limit_gib is not None:
        total = torch.cuda.get_device_properties(device).total_memory
        share = min(1.0, arguments.limit_gib * 2**30 / total)
        torch.cuda.set_per_process_memory_fraction(share, device.index)
    return device


def machine(device: torch.device) -> str:
    """What the figures were measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    sys.exit(main())
