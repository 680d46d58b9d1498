"""Muon: the layers' matrices follow their orthogonalised momentum, everything else AdamW.

After https://kellerjordan.github.io/posts/muon; steps have the size of AdamW's (2502.16982), so
that learning rate and weight decay mean the same for both.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from internvl2.train.optimizers.adamw import ExactAdamW, Group, move
from internvl2.train.optimizers.moments import decode_signed, encode_signed
from internvl2.train.sharding import divided, local, own_rows, whole

MOMENTUM = 0.95
ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the fifth-degree polynomial that draws singular values towards 1."""


class Muon(ExactAdamW):
    """Exact AdamW whose groups with `"matrices": True` hold matrices for Muon."""

    def _step_group(
        self, group: Group, parameters: Sequence[nn.Parameter], scale: Tensor | None
    ) -> None:
        if not group.get("matrices", False):
            super()._step_group(group, parameters, scale)
            return
        for parameter in parameters:
            self._advance(parameter, ("mean",))
            momentum = self._momentum(parameter, scale).bfloat16()
            direction = own_rows(orthogonalize(whole(divided(momentum, parameter))), parameter)
            distance = group["lr"] * 0.2 * max(parameter.shape) ** 0.5 * direction
            keep = torch.full((), 1 - group["lr"] * group["weight_decay"], device=parameter.device)
            move(local(parameter), self.state[parameter].get("residual"), distance, keep)

    def _momentum(
        self, parameter: nn.Parameter, scale: Tensor | None
    ) -> Float32[Tensor, "rows row"]:
        """The averaged gradient of this step, looking one step ahead (Nesterov)."""
        state = self.state[parameter]
        assert parameter.grad is not None
        gradient = local(parameter.grad).float()
        gradient = gradient if scale is None else gradient * scale
        if "mean_scales" not in state:
            return gradient.lerp(state["mean"].lerp_(gradient, 1 - MOMENTUM), MOMENTUM)
        mean = decode_signed(state["mean"], state["mean_scales"]).lerp_(gradient, 1 - MOMENTUM)
        noise = torch.rand(mean.shape, device=mean.device, generator=self.seeded(parameter))
        encoded = encode_signed(mean, noise)
        state["mean"].copy_(encoded.codes)
        state["mean_scales"].copy_(encoded.scales)
        return gradient.lerp_(mean, MOMENTUM)


def orthogonalize(matrix: Float[Tensor, "rows row"]) -> Float32[Tensor, "rows row"]:
    """A matrix of the same singular vectors whose singular values are near 1 (Newton-Schulz)."""
    a, b, c = COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if is_tall else matrix).bfloat16()
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if is_tall else x).float()
