"""From a model's files to a filled model: planned before anything is read, whole or divided."""

from contextlib import ExitStack
from dataclasses import dataclass

import torch

from internvl2 import device as devices
from internvl2.checkpoint.config_files import read_config
from internvl2.checkpoint.store import choose_quantization, load_model
from internvl2.config import InternVLConfig, Quantization
from internvl2.engine.follower import ModelSource, StoredModel
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


def open_model(stored: StoredModel, places: list[torch.device], request: MemoryRequest) -> Opened:
    """The model on a device, or divided over several; NotEnoughMemory before it is read."""
    place, config = places[0], read_config(stored.directory)
    held = choose_quantization(
        stored.directory, stored.quantize, place, stored.dtype, stored.adapter
    )
    if len(places) > 1:
        return open_divided(stored, places, Planned(config, stored.dtype, held, request))
    free = devices.free_memory(place)
    plan(config, stored.dtype, place, free, request, quantization=held)
    return Opened(_load_whole(stored, place), None)


@dataclass(frozen=True, slots=True)
class Planned:
    """What the memory of a divided model is planned from."""

    config: InternVLConfig
    dtype: torch.dtype
    quantization: Quantization | None
    request: MemoryRequest


def open_divided(source: ModelSource, places: list[torch.device], planned: Planned) -> Opened:
    """A model divided over several devices; ValueError where it cannot be, or does not fit."""
    share = Share(0, len(places))
    share.config(planned.config)  # raises before processes are started
    with ExitStack() as on_error:
        team = Team(places)
        on_error.callback(team.close)
        free = team.meet(source)
        plan(
            planned.config,
            planned.dtype,
            places[0],
            free,
            planned.request,
            quantization=planned.quantization,
            share=share,
        )
        opened = Opened(team.load(source), team)
        on_error.pop_all()
    return opened


def runner_of(
    model: InternVL, options: RunnerOptions, recorder: Recorder | None, team: Team | None
) -> Runner:
    """What computes steps with a model: this process, or all that divide it."""
    own = ModelRunner(model, options, recorder)
    return own if team is None else team.runner(own, records=recorder is not None)


def _load_whole(stored: StoredModel, place: torch.device) -> InternVL:
    filled = load_model(
        stored.directory,
        device=place,
        dtype=stored.dtype,
        adapter=stored.adapter,
        quantize=stored.quantize,
    )
    return prepare(filled)
