"""From samples per GPU, accumulation and GPUs to packs per step.

Others' steps have so many samples of up to a longest length; ours have packs of a fixed length. As
in the package's own recipes, samples are taken to be half as long as the longest on average.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from internvl2.train.migrate.flags import Flag, Flags
from internvl2.train.migrate.verdicts import Rule, Setting, Verdict, missing, translated

TILES_PER_TOKENS = 30 / 8192
"""The packaged recipes' proportion; a tile takes 256 tokens, so that 32 would leave no text."""


@dataclass(frozen=True, slots=True)
class Step:
    """What a source changes the weights with once."""

    per_gpu: int
    accumulated: int
    longest: int
    """Tokens of the longest sample, or of a pack."""
    is_packed: bool = False
    tiles: int | None = None
    """Most tiles of a pack, where the source says so."""
    most_tiles: int = 6
    """Of a sample, thumbnail not counted."""


StepOf = Callable[[Flags], Step]


def batch(step_of: StepOf) -> Rule:
    """The rule of every flag that says how many samples a step has."""

    def rule(flag: Flag, flags: Flags) -> Verdict:
        _require_count(flag)
        return translated(packs_per_step(flags, step_of(flags)))

    return rule


def length(step_of: StepOf, tool: str) -> Rule:
    """The rule of every flag that says how long a sample or pack is."""

    def rule(flag: Flag, flags: Flags) -> Verdict:
        return translated(*pack_size(step_of(flags), tool))

    return rule


def gpus(step_of: StepOf) -> Rule:
    """The rule of every flag of a launcher that says how many processes there are."""

    def rule(flag: Flag, flags: Flags) -> Verdict:
        if flags.gpus is None and processes(flags) is None:
            return missing("the number of GPUs is not known from it; give --gpus N")
        return translated(packs_per_step(flags, step_of(flags)), note=START)

    return rule


START = "start ours with torchrun --nproc-per-node N -m internvl2 train RECIPE"


def processes(flags: Flags) -> int | None:
    """How many processes train, where the source says so."""
    if flags.gpus is not None:
        return flags.gpus
    tasks = flags.find("launcher.ntasks", "launcher.num_processes", "launcher.n")
    if tasks is not None:
        return tasks.whole()
    included = flags.find("launcher.include")
    if included is not None:
        return _included(included.text())
    nodes = flags.find("launcher.nnodes", "launcher.num_nodes", "environment.NNODES")
    local = flags.find("launcher.nproc_per_node", "launcher.num_gpus", "environment.NPROC_PER_NODE")
    forced = flags.find("environment.FORCE_TORCHRUN") is not None  # LLaMA-Factory: on all it sees
    seen = ("environment.CUDA_VISIBLE_DEVICES",) if forced else ()
    listed = flags.find("launcher.gpus", "launcher.devices", *seen)
    if local is None and listed is None:
        return None
    if local is not None and not local.value.isdigit() and not local.fault:
        return None  # torchrun's auto, gpu
    here = local.whole() if local is not None else len(listed.texts() if listed else ())
    return here * (nodes.whole() if nodes is not None else 1)


def _included(text: str) -> int | None:
    """GPUs of deepspeed's `host:0,1@host:0`; a host alone stands for all that it has."""
    listed = [host.partition(":")[2] for host in text.split("@")]
    return sum(len(gpus.split(",")) for gpus in listed) if all(listed) else None


def packs_per_step(flags: Flags, step: Step) -> Setting:
    """As many packs as hold a step of the source, a multiple of the processes."""
    found = processes(flags)
    world = 1 if found is None else found
    samples = step.per_gpu * step.accumulated * world
    shares = f"{step.per_gpu} per GPU x {step.accumulated} accumulated x {world} GPUs"
    if found is None:
        shares = shares.removesuffix("s") + ", as the source says no number: --gpus N"
    if step.is_packed:
        return Setting("packs_per_step", samples, f"{samples} packs: {shares}")
    packs = math.ceil(samples / 2)
    packs = math.ceil(packs / world) * world
    why = (
        f"{samples} samples: {shares}; of up to {step.longest} tokens, taken to be half as long on "
        "average (`internvl2 data check` counts)"
    )
    return Setting("packs_per_step", packs, why)


def pack_size(step: Step, tool: str) -> tuple[Setting, Setting]:
    """Tokens and tiles of a pack: the longest sample must have room."""
    tiles = step.tiles or max(int(step.longest * TILES_PER_TOKENS), step.most_tiles + 1)
    what = "fits into no pack" if step.is_packed else f"{tool} cuts off or leaves out"
    why = f"a longer sample, which {what}, is an error here (skip_bad_samples allows some)"
    return Setting("packing.tokens", step.longest, why), Setting("packing.tiles", tiles)


def _require_count(flag: Flag) -> None:
    if not flag.is_nothing and flag.whole() < 1:
        raise ValueError(f"{flag.shown} is {flag.value}; it must be at least 1")
