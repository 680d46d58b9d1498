"""Whether gradients arrive where the recipe says, and nowhere else."""

from collections.abc import Collection

from torch import nn

from internvl2.train.optimizers.groups import PARTS
from internvl2.train.sharding import squared_lengths

PATIENCE = 16
"""Fed steps in which a gradient may be all zeros, as those of a layer left out by drop path, or in
the first step of an adapter's `down`, behind an `up` of zeros."""


class GradientAudit:
    """Stops a run in which a trained parameter learns nothing or a frozen one has a gradient.

    Each part is looked at from the first step that feeds it until all its parameters have had a
    gradient other than zero; then nothing is left to do.
    """

    def __init__(self, model: nn.Module):
        self._parameters = dict(model.named_parameters())
        self._waiting = {name for name, p in self._parameters.items() if p.requires_grad}
        self._fed: dict[str, int] = dict.fromkeys(PARTS, 0)
        self._seen_frozen = False

    @property
    def is_done(self) -> bool:
        """Whether every trained parameter has shown a gradient."""
        return self._seen_frozen and not self._waiting

    def check(self, fed: Collection[str]) -> None:
        """Look at the gradients of a step, before they are used, that ran the parts `fed`."""
        if self.is_done:
            return
        self._check_frozen()
        for part in fed:
            self._fed[part] += 1
            self._check_part(part)

    def _check_frozen(self) -> None:
        self._seen_frozen = True
        for name, parameter in self._parameters.items():
            if not parameter.requires_grad and parameter.grad is not None:
                raise ValueError(f"{name} is frozen, yet it has a gradient")

    def _check_part(self, part: str) -> None:
        names = sorted(name for name in self._waiting if name.startswith(f"{part}."))
        gradients = []
        for name in names:
            gradient = self._parameters[name].grad
            if gradient is None:
                raise ValueError(
                    f"{name} is to be trained, yet it has no gradient in the first step that "
                    f"feeds the {part}; freeze it, or connect it to the loss"
                )
            gradients.append(gradient)
        if not names:
            return
        lengths = squared_lengths(gradients).tolist()
        self._waiting -= {name for name, length in zip(names, lengths, strict=True) if length}
        silent = [name for name in names if name in self._waiting]
        if silent and self._fed[part] >= PATIENCE:
            raise ValueError(
                f"{silent[0]} is to be trained, yet its gradient was 0 in each of the first "
                f"{PATIENCE} steps that fed the {part} ({len(silent)} such parameters)"
            )
