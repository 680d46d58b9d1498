"""Muon: the layers' matrices follow their orthogonalised momentum, everything else AdamW.

After https://kellerjordan.github.io/posts/muon; steps have the size of AdamW's (2502.16982), so
that learning rate and weight decay mean the same for both.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from internvl2.train.optimizers.adamw import ExactAdamW, Group, move, put_back
from internvl2.train.optimizers.moments import decode_signed, encode_signed
from internvl2.train.sharding import divided, local, own_rows, whole

MOMENTUM = 0.95
ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the fifth-degree polynomial that draws singular values towards 1."""


TOGETHER = 2**24
"""Numbers of matrices of one shape that are moved at once: small ones alone leave a device idle."""


class Muon(ExactAdamW):
    """Exact AdamW whose groups with `"matrices": True` hold matrices for Muon."""

    def _step_group(
        self, group: Group, parameters: Sequence[nn.Parameter], scale: Tensor | None
    ) -> None:
        if not group.get("matrices", False):
            super()._step_group(group, parameters, scale)
            return
        for alike in _of_one_shape(parameters):
            for parameter in alike:
                self._advance(parameter, ("mean",))
            self._step_matrices(group, alike, scale)

    def _step_matrices(
        self, group: Group, parameters: Sequence[nn.Parameter], scale: Tensor | None
    ) -> None:
        """Move matrices of one shape and kind together."""
        first = parameters[0]
        momenta = [each.bfloat16() for each in self._momenta(parameters, scale)]
        wholes = [whole(divided(m, p)) for m, p in zip(momenta, parameters, strict=True)]
        directions = orthogonalize(torch.stack(wholes)).unbind()
        moves = [own_rows(d, p) for d, p in zip(directions, parameters, strict=True)]
        distance = group["lr"] * 0.2 * max(first.shape) ** 0.5 * torch.cat(moves)
        keep = torch.full((), 1 - group["lr"] * group["weight_decay"], device=first.device)
        weights = [local(parameter) for parameter in parameters]
        residuals = [r for p in parameters if (r := self.state[p].get("residual")) is not None]
        weight = torch.cat(weights)
        residual = torch.cat(residuals) if residuals else None
        move(weight, residual, distance, keep)
        rows = [len(each) for each in weights]
        put_back(weight.split(rows), weights)
        if residual is not None:
            put_back(residual.split(rows), residuals)

    def _momenta(
        self, parameters: Sequence[nn.Parameter], scale: Tensor | None
    ) -> Sequence[Float32[Tensor, "rows row"]]:
        """The averaged gradients of this step, looking one step ahead (Nesterov)."""
        if "mean_scales" in self.state[parameters[0]]:
            return [self._momentum_8bit(parameter, scale) for parameter in parameters]
        gradients = [_gradient(parameter) for parameter in parameters]
        rows = [len(gradient) for gradient in gradients]
        gradient = torch.cat(gradients).float()
        gradient = gradient if scale is None else gradient * scale
        means = [self.state[parameter]["mean"] for parameter in parameters]
        mean = torch.cat(means).lerp_(gradient, 1 - MOMENTUM)
        put_back(mean.split(rows), means)
        return gradient.lerp_(mean, MOMENTUM).split(rows)

    def _momentum_8bit(
        self, parameter: nn.Parameter, scale: Tensor | None
    ) -> Float32[Tensor, "rows row"]:
        state, gradient = self.state[parameter], _gradient(parameter).float()
        gradient = gradient if scale is None else gradient * scale
        mean = decode_signed(state["mean"], state["mean_scales"]).lerp_(gradient, 1 - MOMENTUM)
        noise = torch.rand(mean.shape, device=mean.device, generator=self.seeded(parameter))
        encoded = encode_signed(mean, noise)
        state["mean"].copy_(encoded.codes)
        state["mean_scales"].copy_(encoded.scales)
        return gradient.lerp_(mean, MOMENTUM)


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return local(parameter.grad)


def _of_one_shape(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """The matrices by shape and type, at most `TOGETHER` numbers (or one matrix) in each list."""
    lists: dict[tuple[torch.Size, torch.dtype, int], list[nn.Parameter]] = {}
    count: Counter[tuple[torch.Size, torch.dtype]] = Counter()
    for parameter in parameters:
        kind = parameter.shape, parameter.dtype
        number = count[kind] * parameter.numel() // TOGETHER
        count[kind] += 1
        lists.setdefault((*kind, number), []).append(parameter)
    return list(lists.values())


def orthogonalize(
    matrices: Float[Tensor, "matrices rows row"],
) -> Float32[Tensor, "matrices rows row"]:
    """Matrices of the same singular vectors whose singular values are near 1 (Newton-Schulz)."""
    a, b, c = COEFFICIENTS
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if is_tall else matrices).bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if is_tall else x).float()
