"""A plan: for each strategy the fastest variant that fits a machine, and the one to take."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from internvl2 import family
from internvl2.checkpoint.config_files import read_config
from internvl2.checkpoint.hub import EMBEDDED, resolve
from internvl2.config import InternVLConfig
from internvl2.train.planning.activations import Execution
from internvl2.train.planning.machine import GIB, Machine
from internvl2.train.planning.memory import Memory, Pack, Step
from internvl2.train.planning.sizes import count
from internvl2.train.planning.speed import REFERENCE, tokens_per_second
from internvl2.train.planning.strategies import Strategy, strategies, trains_the_same
from internvl2.train.preparation import without_memory
from internvl2.train.recipe import Recipe
from internvl2.train.tiling import as_trained

MARGIN = 1.03
"""Predictions may be so much too low."""
TIMED_FROM = 512
"""Width of decoders for which a speed is given: smaller ones wait for the host, not the device."""


@dataclass(frozen=True, slots=True)
class Option:
    """One way to train."""

    strategy: str
    recipe: Recipe
    memory: Memory
    fits: bool
    tokens_per_second: float | None
    """None where nothing is known of the device's speed."""
    order: float
    """Tokens per second on the device, or on another where that is not known."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What was found."""

    machine: Machine
    given: Option
    """The recipe as it is."""
    options: tuple[Option, ...]
    """Of each strategy the fastest variant that fits; the smallest where none does."""

    @property
    def pick(self) -> Option | None:
        """The fastest that fits and trains what the recipe trains; if none does, of all."""
        fitting = [option for option in self.options if option.fits]
        same = [o for o in fitting if trains_the_same(o.recipe, self.given.recipe)]
        return max(same or fitting, key=lambda option: option.order, default=None)

    @property
    def smallest(self) -> Option:
        """What needs the least memory."""
        return min(self.options, key=lambda option: option.memory.total)


def shape_of(model: str) -> InternVLConfig:
    """The shape of a recipe's model: of its directory, or of the release of that name and stage.

    Nothing is downloaded.
    """
    if Path(model).is_dir() or model == EMBEDDED:
        return read_config(resolve(model))
    if Path(model).exists() or model.startswith((".", "/", "~")):
        raise FileNotFoundError(f"there is no directory {model} with a checkpoint")
    return family.find_stage(model).config


def make_plan(recipe: Recipe, machine: Machine) -> Plan:
    """Predictions for a recipe, and for what may be trained instead of it."""
    if recipe.packs_per_step % machine.count:
        raise ValueError(
            f"packs_per_step is {recipe.packs_per_step}; it must be a multiple of the number of "
            f"GPUs, {machine.count}"
        )
    config = as_trained(shape_of(recipe.model), recipe)
    if machine.kind != "cpu" and not machine.has_bf16 and recipe.dtype is None:
        recipe = replace(recipe, dtype="float32")  # fp16 weights cannot be trained
    given, options = None, []
    for strategy in strategies(recipe):
        predict = Prediction(strategy, config, machine)
        options.append(predict.best())
        if trains_the_same(strategy.recipe, recipe):
            given = predict(recipe)
    assert given is not None
    return Plan(machine, given, tuple(options))


class Prediction:
    """What is predicted for the variants of a strategy on a machine."""

    def __init__(self, strategy: Strategy, config: InternVLConfig, machine: Machine) -> None:
        self.strategy, self.config, self.machine = strategy, config, machine
        dtype = _dtype(strategy.recipe, config, machine)
        is_cuda = machine.kind == "cuda"
        compiled = strategy.recipe.compile
        self.execution = Execution(
            is_cuda if compiled is None else compiled, is_cuda, dtype.itemsize
        )
        model = without_memory(strategy.recipe, config, dtype)
        self.sizes = count(model, strategy.recipe.optimizer)

    def __call__(self, recipe: Recipe) -> Option:
        """The prediction for one variant."""
        sizes, pack = self.sizes[recipe.optimizer.moments], Pack.fullest(recipe, self.config)
        step = Step(recipe, self.config, sizes, self.execution, pack, self.machine.count)
        memory, speed = step.peak, self._speed(step)
        fits = memory.total * MARGIN <= self.machine.memory * GIB
        order = tokens_per_second(step, REFERENCE) if speed is None else speed
        assert order is not None
        return Option(self.strategy.name, recipe, memory, fits, speed, order)

    def best(self) -> Option:
        """The fastest variant that fits, or the smallest."""
        found = [self(recipe) for recipe in self.strategy.variants(self.machine.count)]
        smallest = min(found, key=lambda option: option.memory.total)
        fitting = (option for option in found if option.fits)
        return max(fitting, key=lambda option: option.order, default=smallest)

    def _speed(self, step: Step) -> float | None:
        """None for what is unlike all that was timed."""
        speeds, execution = self.machine.speeds, self.execution
        is_small = self.config.decoder.hidden_size < TIMED_FROM
        is_like_timed = execution.compiled and execution.number == 2 and not is_small
        return tokens_per_second(step, speeds) if speeds and is_like_timed else None


def _dtype(recipe: Recipe, config: InternVLConfig, machine: Machine) -> torch.dtype:
    """What weights are trained in; where the recipe leaves it open, bf16 if the device has it."""
    wanted = recipe.dtype or (config.dtype if machine.has_bf16 else "float32")
    if wanted == "float16":
        raise ValueError("weights in float16 cannot be trained; give --dtype bfloat16 or float32")
    return torch.bfloat16 if wanted == "bfloat16" else torch.float32
