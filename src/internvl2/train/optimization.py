"""What happens to gradients: summed over processes, audited, clipped, and turned into a step."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from internvl2.model.internvl import InternVL
from internvl2.train.checkpointer import StoredTensor
from internvl2.train.optimizers.audit import GradientAudit
from internvl2.train.optimizers.groups import build_optimizer, gradient_norms, set_learning_rate
from internvl2.train.parallel import World
from internvl2.train.recipe import Recipe
from internvl2.train.sharding import divided, empty_rows

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Moved:
    """A step of the optimizer."""

    learning_rate: float
    norms: dict[str, float]
    """Lengths of the gradients before clipping, per part and in `total`."""


class Optimization:
    """A recipe's optimizer for a model, with clipping and audit."""

    def __init__(self, model: InternVL, recipe: Recipe, *, compiled: bool) -> None:
        self.model, self.settings = model, recipe.optimizer
        self.optimizer = build_optimizer(model, recipe.optimizer, compiled)
        self._audit, self._told = GradientAudit(model), False
        self._names: dict[Tensor, str] = {
            p: name for name, p in model.named_parameters() if p.requires_grad
        }

    @torch.no_grad()
    def step(self, world: World, factor: float, fed: Collection[str]) -> Moved:
        """Moves the weights at `factor` of the highest rate; `fed` are the parts that ran."""
        world.sum_gradients(
            p
            for name, p in self.model.named_parameters()
            if p.requires_grad and name.split(".")[0] in fed and not isinstance(p, DTensor)
        )
        self._audit.check(fed)
        rate = self.settings.learning_rate * factor
        if all(parameter.grad is None for parameter in self._names):
            return self._unmoved(rate)
        norms = gradient_norms(self.model)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step(scale=norms.clipping(self.settings.max_grad_norm))
        self.optimizer.zero_grad()
        lengths = {part: float(length) for part, length in norms.parts.items()}
        return Moved(rate, {"total": float(norms.total)} | lengths)

    def _unmoved(self, rate: float) -> Moved:
        """A step of text alone, where only what sees pictures is trained."""
        if not self._told:
            self._told = True
            logger.warning("there are steps without pictures, which change nothing that is trained")
        return Moved(rate, {"total": 0.0})

    def tensors(self) -> dict[str, Tensor]:
        """The optimizer's state by parameter, for a checkpoint."""
        return {
            f"optimizer.{self._names[parameter]}:{key}": divided(value, parameter)
            for parameter, state in self.optimizer.state.items()
            for key, value in state.items()
        }

    def allocate(self, stored: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
        """Room for the state that a checkpoint has of trained parameters, by its names there."""
        trained = {name: parameter for parameter, name in self._names.items()}
        for label, tensor in stored.items():
            name, _, key = label.removeprefix("optimizer.").rpartition(":")
            if label.startswith("optimizer.") and name in trained:
                state = self.optimizer.state[trained[name]]
                state[key] = empty_rows(tensor.shape, tensor.dtype, trained[name])
        return self.tensors()
