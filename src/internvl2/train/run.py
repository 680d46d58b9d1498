"""What a run changes: weights, optimizer and place in the data; a step, a save, a resume."""

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor, nn

from internvl2 import device as devices
from internvl2.checkpoint.convert import dtype_name
from internvl2.model.internvl import InternVL
from internvl2.train.checkpointer import Checkpointer, Progress, StoredTensor
from internvl2.train.data.formats import Indexed
from internvl2.train.data.loader import Position, Step
from internvl2.train.data.mixture import (
    guard_loader,
    guard_sources,
    training_loader,
    validation_loader,
    validation_sources,
)
from internvl2.train.data.packing import TrainBatch
from internvl2.train.data.tile_store import TileStore
from internvl2.train.data.transfer import Arrivals
from internvl2.train.features import open_cache
from internvl2.train.guard import ForgettingGuard
from internvl2.train.monitoring.log import StepRecord
from internvl2.train.monitoring.measure import Meter
from internvl2.train.optimization import Optimization
from internvl2.train.optimizers.schedule import rate_factor
from internvl2.train.parallel import World
from internvl2.train.preparation import compiles, prepare, training, without_memory
from internvl2.train.recipe import Recipe
from internvl2.train.sharding import gather, is_divided, release, require_room

logger = logging.getLogger(__name__)


class Run:
    """A model in training, from its last checkpoint on."""

    def __init__(
        self, recipe: Recipe, world: World, checkpoints: Path, records: Indexed = ()
    ) -> None:
        self.recipe, self.world = recipe, world
        torch.use_deterministic_algorithms(recipe.deterministic)
        prepared = prepare(recipe, world)
        self.model, self.processor = prepared.model, prepared.processor
        self.base = prepared.base
        """The stored model that the run began with."""
        self._loss = prepared.loss
        validation_sources(recipe, self.processor)  # or a wrong path is found hours later
        guard_sources(recipe, self.processor)
        compiled = compiles(recipe, world.device)
        self._optimization = Optimization(self.model, recipe, compiled=compiled)
        self._meter = Meter(prepared.config, recipe.kept, world, recipe.lora)
        self._arrivals = Arrivals(world.device)
        self.checkpointer = Checkpointer(checkpoints, world, recipe.keep)
        self.progress = self._restored()
        self.saved_step = self.progress.step
        """The step of the last checkpoint."""
        state = self.progress.position
        position = Position.of(state) if state else None
        self._features = open_cache(recipe, self._loss, world)
        self._loader = training_loader(
            recipe, self.processor, world, position, records, self._store
        )
        limit = recipe.schedule.max_steps
        self.total = self._loader.count_steps() if limit is None else limit
        """Steps of the whole run; an estimate where the data decide it."""
        if self._features is not None:
            self._features.require_room(self._count_tiles())
        self._guard = self._opened_guard()

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends the threads and processes."""
        self._loader.close()
        self.checkpointer.close()
        if self._features is not None:
            self._features.close()

    def steps(self) -> Iterator[StepRecord]:
        """Changes the weights until the schedule or the data end."""
        limit = self.recipe.schedule.max_steps
        if limit is not None and self.progress.step >= limit:
            return
        started = time.perf_counter()
        for packs in self._loader:
            record = self._step(packs, started, time.perf_counter() - started)
            self.progress = replace(
                self.progress, step=record.step, position=packs.position.state()
            )
            yield record
            if limit is not None and record.step >= limit:
                return
            started = time.perf_counter()

    def save(self) -> None:
        """Starts to write a checkpoint of everything."""
        self.checkpointer.save(self.progress, self._weights() | self._optimization.tensors())
        self.saved_step = self.progress.step

    def validation_loss(self) -> float:
        """Mean loss of the learned tokens of the validation data."""
        self.model.eval()
        loss, weight = 0.0, 0.0
        validation = validation_loader(self.recipe, self.processor, self.world, self._store)
        with torch.no_grad(), closing(validation) as loader:
            for packs in loader:
                for batch in self._batches(packs):
                    if batch.num_tokens or is_divided(self._loss):
                        loss += float(self._loss(batch, 1.0))
                    weight += batch.weight_sum
        release(self._loss)
        loss, weight = self.world.sum([loss, weight])
        if weight == 0:
            raise ValueError("the validation data has no token to learn")
        return loss / weight

    def divergence(self) -> float:
        """How far the model's answers to the guard's data have moved since the run began."""
        if self._guard is None:
            raise ValueError("the recipe has no guard.data to ask")
        self.model.eval()
        return self._guard.divergence(self._loss, self._probes())

    def results(self) -> dict[str, Tensor]:
        """Parameters by name for the run's folder, in the first process; every process must ask.

        All of them or, where parts have adapters, the trained ones.
        """
        wanted = self._trained() if self.recipe.lora.is_used else self.model.named_parameters()
        return gather(wanted, "cpu", keep=self.world.is_first)

    def whole_model(self) -> InternVL | None:
        """A model that can answer, in the first process; every process must ask."""
        if not is_divided(self._loss):
            return self.model.eval() if self.world.is_first else None
        self.require_room_for_answers()
        wanted = chain(self.model.named_parameters(), self.model.named_buffers())
        weights = gather(wanted, self.world.device, keep=self.world.is_first)
        if not self.world.is_first:
            return None
        dtype = weights["decoder.embedding.weight"].dtype
        model = without_memory(self.recipe, self.model.config, dtype)
        model.load_state_dict(weights, strict=True, assign=True)
        return model.eval()

    def require_room_for_answers(self) -> None:
        """Raises where the first process cannot hold the whole of a divided model."""
        if is_divided(self._loss):
            require_room(self.model, self.world)

    def _restored(self) -> Progress:
        """How far the run had come; weights and optimizer as they were then."""
        progress = self.checkpointer.load(self._places_for)
        base = None if self.base is None else self.base.fingerprint
        if progress is None:
            return Progress(0, {}, base=base)
        if None not in (progress.base, base) and progress.base != base:
            raise ValueError(
                f"the run in {self.checkpointer.folder.parent} was begun with other weights than "
                f"those that {self.recipe.model} has now; give another --output"
            )
        logger.info("going on after step %d", progress.step)
        return progress

    def _places_for(self, stored: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
        """Where what is stored in a checkpoint belongs."""
        weights, folder = self._weights(), self.checkpointer.folder
        theirs = {n: tensor for n, tensor in stored.items() if n.startswith("model.")}
        if _shapes(theirs) != _shapes(weights):
            raise ValueError(f"the checkpoints in {folder} are of another model")
        now, before = (next(iter(each.values())).dtype for each in (weights, theirs))
        if now != before:
            raise ValueError(
                f"the run in {folder.parent} was begun with dtype = {dtype_name(before)}, now it "
                f"is {dtype_name(now)}; name the first, or give another --output"
            )
        return weights | self._optimization.allocate(stored)

    def _weights(self) -> dict[str, Tensor]:
        """The trained parameters by their names in a checkpoint; the frozen ones never change."""
        return {f"model.{name}": parameter.detach() for name, parameter in self._trained()}

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((n, p) for n, p in self.model.named_parameters() if p.requires_grad)

    def _step(self, packs: Step, started: float, waited: float) -> StepRecord:
        """One change of the weights; the loss is a mean over the packs of all processes."""
        training(self.model)
        step = self.progress.step
        mine = [sum(b.weight_sum for b in packs.batches), sum(b.num_tiles for b in packs.batches)]
        weight, tiles = self.world.sum(mine)
        if weight == 0:
            raise ValueError(f"step {step + 1} has no token to learn: {_places(packs)}")
        try:
            share = self._backward(packs, weight)
            self._seed(step, 0)
            factor = rate_factor(self.recipe.schedule, step, self.total)
            fed = ("vision", "projector", "decoder") if tiles else ("decoder",)
            moved = self._optimization.step(self.world, factor, fed)
            # Read now, for a device that is asked before its work is queued stands idle.
            loss = self.world.sum([float(share)])[0]
        except RuntimeError as error:
            if not devices.is_out_of_memory(error):
                raise
            raise MemoryError(self._out_of_memory(error)) from error
        # Weights that such gradients moved are lost, but no checkpoint has seen them yet.
        for what, value in (("loss", loss), ("gradient's length", moved.norms["total"])):
            if not math.isfinite(value):
                raise ValueError(self._not_finite(what, value, packs))
        devices.synchronize(self.world.device)
        seconds = time.perf_counter() - started
        return self._meter.record(step + 1, loss, moved, packs, seconds, waited)

    def _backward(self, packs: Step, weight: float) -> Tensor:
        """Gradients of this process's packs; gives their share of the step's loss."""
        loss = torch.zeros((), device=self.world.device)
        for number, batch in enumerate(self._batches(packs)):
            if batch.num_tokens or is_divided(self._loss):
                self._seed(self.progress.step, 1 + number * self.world.size + self.world.rank)
                share = self._loss(batch, 1 / weight)
                if share.requires_grad:
                    share.backward()
                else:  # text alone, where vision tower or projector are all that is trained
                    release(self._loss)
                loss += share.detach()
        return loss

    def _batches(self, packs: Step) -> Iterator[TrainBatch]:
        """This process's packs on the device, with the features that are kept of their tiles."""
        for batch in self._arrivals.bring(packs.batches):
            yield batch if self._features is None else self._features.completed(batch)
        if self._features is not None:
            self._features.finish()

    def _opened_guard(self) -> ForgettingGuard | None:
        """The recipe's guard; a run that begins has it write down what the model answers now.

        One that goes on must find that.
        """
        settings = self.recipe.guard
        if not settings.data:
            return None
        folder = Path(self.recipe.output) / "guard"
        guard = ForgettingGuard(folder, settings.top_k, self.world)
        if self.progress.step:
            guard.require(self._loss, self._probes())
        else:
            guard.remember(self._loss, self._probes())
        return guard

    def _probes(self) -> Iterator[TrainBatch]:
        loader = guard_loader(self.recipe, self.processor, self.world, self._store)
        with closing(loader) as steps:
            for packs in steps:
                yield from self._batches(packs)

    @property
    def _store(self) -> TileStore | None:
        return None if self._features is None else self._features.store

    def _count_tiles(self) -> int:
        """Tiles of all data, in the first process; those of samples that come again once."""
        if not self.world.is_first:
            return 0
        tiles = self._loader.tiles_of_samples()
        if self.recipe.validation.is_measured:
            with closing(validation_loader(self.recipe, self.processor, self.world)) as loader:
                tiles |= loader.tiles_of_samples()
        if self.recipe.guard.data:
            with closing(guard_loader(self.recipe, self.processor, self.world)) as loader:
                tiles |= loader.tiles_of_samples()
        return sum(tiles.values())

    def _seed(self, step: int, number: int) -> None:
        """Makes chance depend on the place in the run alone, so that resuming needs no memory."""
        torch.manual_seed((self.recipe.seed * 1_000_003 + step) * 4099 + number)

    def _not_finite(self, what: str, value: float, packs: Step) -> str:
        return (
            f"the {what} of step {self.progress.step + 1} is {value}, so the run ends; a lower "
            f"learning rate may help; the last checkpoint in {self.checkpointer.folder} is as it "
            f"was; the step's samples: {_places(packs)}"
        )

    def _out_of_memory(self, error: RuntimeError) -> str:
        advice = [f"packing.tokens below {self.recipe.packing.tokens}"]
        if min(self.recipe.recompute.vision, self.recipe.recompute.decoder) < 1:
            advice.append("recompute.vision and recompute.decoder = 1.0")
        if self.recipe.optimizer.moments == "fp32":
            advice.append('optimizer.moments = "8bit"')
        if not self.recipe.lora.is_used:
            advice.append("adapters (lora.decoder_rank = 16)")
        elif self.recipe.quantize is None and self.recipe.kept.decoder:
            advice.append('quantize = "nf4"')
        return (
            f"out of memory in step {self.progress.step + 1} ({str(error).split('. ')[0]}); "
            f"try {', '.join(advice)}; the last checkpoint is as it was"
        )


def _shapes(tensors: Mapping[str, Tensor | StoredTensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _places(packs: Step, most: int = 20) -> str:
    """Where the first of the step's samples of this process stand."""
    places = [place for batch in packs.batches for place in batch.where]
    more = f" and {len(places) - most} more" if len(places) > most else ""
    return ", ".join(places[:most]) + more
