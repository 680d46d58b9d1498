"""What happens to gradients: summed over processes, audited, clipped, and turned into a step."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from internvl2.model.internvl import InternVL
from internvl2.train.audit import GradientAudit
from internvl2.train.optimizer import build_optimizer, gradient_norms, set_learning_rate
from internvl2.train.parallel import World
from internvl2.train.recipe import Recipe


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
        self._audit = GradientAudit(model)
        self._names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}

    @torch.no_grad()
    def step(self, world: World, factor: float, fed: Collection[str]) -> Moved:
        """Moves the weights at `factor` of the highest rate; `fed` are the parts that ran."""
        world.sum_gradients(
            p
            for name, p in self.model.named_parameters()
            if p.requires_grad and name.split(".")[0] in fed
        )
        self._audit.check(fed)
        norms = gradient_norms(self.model)
        rate = self.settings.learning_rate * factor
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step(scale=norms.clipping(self.settings.max_grad_norm))
        self.optimizer.zero_grad()
        lengths = {part: float(length) for part, length in norms.parts.items()}
        return Moved(rate, {"total": float(norms.total)} | lengths)

    def tensors(self) -> dict[str, Tensor]:
        """The optimizer's state by parameter, for a checkpoint."""
        return {
            f"optimizer.{self._names[parameter]}:{key}": value
            for parameter, state in self.optimizer.state.items()
            for key, value in state.items()
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up what `tensors` gave."""
        found: dict[str, dict[str, Tensor]] = {}
        for label, tensor in tensors.items():
            name, _, key = label.removeprefix("optimizer.").rpartition(":")
            if label.startswith("optimizer."):
                found.setdefault(name, {})[key] = tensor
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        states = {i: found.get(self._names[p]) for i, p in enumerate(parameters)}
        self.optimizer.load_state_dict(
            {
                "state": {i: state for i, state in states.items() if state},
                "param_groups": self.optimizer.state_dict()["param_groups"],
            }
        )
