"""From a model's files to a filled model: planned before anything is read, whole or divided."""

from contextlib import ExitStack
from dataclasses import dataclass

import torch

from internvl2 import device as devices
from internvl2.checkpoint.config_files import read_config
from internvl2.checkpoint.store import choose_quantization, load_model
from internvl2.engine.follower import Wanted
from internvl2.engine.graphs import Recorder
from internvl2.engine.memory import MemoryRequest, plan
from internvl2.engine.model_runner import ModelRunner, RunnerOptions
from internvl2.engine.prepared import prepare
from internvl2.engine.runner import Runner
from internvl2.engine.tensor_parallel import Team
from internvl2.model.internvl import InternVL
from internvl2.model.tensor_parallel import Share


@dataclass(frozen=True, slots=True)
class Opened:
    """A model that is ready to compute, or this process's share of one."""

    model: InternVL
    team: Team | None
    """The processes that divide it."""

    def close(self) -> None:
        """Ends the other processes."""
        if self.team is not None:
            self.team.close()


def open_model(wanted: Wanted, places: list[torch.device], request: MemoryRequest) -> Opened:
    """The model on a device, or divided over several; NotEnoughMemory before it is read."""
    place, share = places[0], Share(0, len(places))
    config = read_config(wanted.directory)
    share.config(config)  # raises where it cannot be divided
    held = choose_quantization(
        wanted.directory, wanted.quantize, place, wanted.dtype, wanted.adapter
    )
    if len(places) == 1:
        free = devices.free_memory(place)
        plan(config, wanted.dtype, place, free, request, quantization=held)
        return Opened(_load_whole(wanted, place), None)
    with ExitStack() as on_error:
        team = Team(places)
        on_error.callback(team.close)
        free = team.meet(wanted)
        plan(config, wanted.dtype, place, free, request, quantization=held, share=share)
        opened = Opened(team.load(wanted), team)
        on_error.pop_all()
    return opened


def runner_of(
    model: InternVL, options: RunnerOptions, recorder: Recorder | None, team: Team | None
) -> Runner:
    """What computes steps with a model: this process, or all that divide it."""
    own = ModelRunner(model, options, recorder)
    return own if team is None else team.runner(own, records=recorder is not None)


def _load_whole(wanted: Wanted, place: torch.device) -> InternVL:
    filled = load_model(
        wanted.directory,
        device=place,
        dtype=wanted.dtype,
        adapter=wanted.adapter,
        quantize=wanted.quantize,
    )
    return prepare(filled)
