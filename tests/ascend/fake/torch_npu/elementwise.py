"""`npu_rms_norm`, `npu_rotary_mul` and `npu_swiglu`: computed in fp32, rounded once."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .kernel import FLOATS, Contract, define, device, device_fp32, host

_NORM = Contract("npu_rms_norm")
_ROTARY = Contract("npu_rotary_mul")
_SWIGLU = Contract("npu_swiglu")


def _gradients(
    compute: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of a plain computation over host tensors, on the device of `inputs`."""
    with torch.enable_grad():
        leaves = [host(tensor).requires_grad_() for tensor in inputs]
        found = torch.autograd.grad(compute(*leaves), leaves, host(grad))
    return tuple(device(one, like) for one, like in zip(found, inputs, strict=True))


def _normalized(x: Tensor, gamma: Tensor, epsilon: float) -> Tensor:
    return x * _reciprocal_rms(x, gamma, epsilon) * gamma


def _reciprocal_rms(x: Tensor, gamma: Tensor, epsilon: float) -> Tensor:
    over = tuple(range(-gamma.dim(), 0))
    return torch.rsqrt(x.pow(2).mean(over, keepdim=True) + epsilon)


def _rms_norm(x: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    _NORM.on_npu(x=x, gamma=gamma)
    _NORM.one_dtype(FLOATS, x=x, gamma=gamma)
    _NORM.require(1 <= x.dim() <= 8, f"the input must have 1 to 8 dims, not {x.dim()}")
    own = tuple(x.shape[x.dim() - gamma.dim() :])
    _NORM.require(tuple(gamma.shape) == own, f"gamma {tuple(gamma.shape)} is not the end of {own}")
    seen, weight = host(x), host(gamma)
    rms = _reciprocal_rms(seen, weight, epsilon)
    return device(_normalized(seen, weight, epsilon), x), device_fp32(rms, x)


def _save_norm(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.epsilon = inputs[2]


def _norm_backward(ctx: Any, grad: Tensor, _: object) -> tuple[Tensor | None, ...]:
    epsilon = ctx.epsilon
    grads = _gradients(lambda x, g: _normalized(x, g, epsilon), ctx.saved_tensors, grad)
    return *grads, None


npu_rms_norm = define(
    "npu_rms_norm(Tensor self, Tensor gamma, float epsilon=1e-06) -> (Tensor, Tensor)",
    _rms_norm,
    _save_norm,
    _norm_backward,
)

_BROADCAST = ((0, 0, 1), (1, 0, 1), (1, 1, 1), (0, 1, 0), (1, 1, 0), (1, 0, 0))
"""Axes before the last that r1 and r2 share with the input: 11SD, B1SD, BNSD, 1S1D, BS1D, S11D."""


def _rotate(x: Tensor, r1: Tensor, r2: Tensor, mode: str) -> Tensor:
    if mode == "half":
        first, second = x.chunk(2, -1)
        turned = torch.cat([-second, first], -1)
    else:
        turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    return x * r1 + turned * r2


def _rotary_mul(
    x: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half", rotate: Tensor | None = None
) -> Tensor:
    _ROTARY.absent(rotate=rotate)
    _ROTARY.on_npu(input=x, r1=r1, r2=r2)
    _ROTARY.one_dtype(FLOATS, input=x, r1=r1, r2=r2)
    modes = ("half", "interleave")
    _ROTARY.require(rotary_mode in modes, f"rotary_mode {rotary_mode!r}; known: {modes}")
    _check_rotary_sizes(x, r1, r2)
    return device(_rotate(host(x), host(r1), host(r2), rotary_mode), x)


def _check_rotary_sizes(x: Tensor, r1: Tensor, r2: Tensor) -> None:
    require = _ROTARY.require
    require(x.dim() == r1.dim() == r2.dim() == 4, "input, r1 and r2 must have 4 dims each")
    require(r1.shape == r2.shape, f"r1 {tuple(r1.shape)} and r2 {tuple(r2.shape)} must be alike")
    dim = x.shape[-1]
    require(dim % 2 == 0 and dim < 896, f"the last dim must be even and below 896, not {dim}")
    require(r1.shape[-1] == dim, f"r1 ends with {r1.shape[-1]}, input with {dim}")
    shapes = [
        tuple(n if own else 1 for n, own in zip(x.shape, b, strict=False)) for b in _BROADCAST
    ]
    require(
        tuple(r1.shape[:3]) in shapes,
        f"r1 {tuple(r1.shape)} does not fit input {tuple(x.shape)}",
    )
    # Batch and heads are the two of the three leading axes that are not the sequence.
    require(sorted(x.shape[:3])[1] < 1000, f"batch and heads must be below 1000: {tuple(x.shape)}")


def _save_rotary(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.mode = inputs[3]


def _rotary_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    mode = ctx.mode
    grads = _gradients(lambda x, a, b: _rotate(x, a, b, mode), ctx.saved_tensors, grad)
    wanted = [one if need else None for one, need in zip(grads, ctx.needs_input_grad, strict=False)]
    return *wanted, None, None


npu_rotary_mul = define(
    "npu_rotary_mul(Tensor input, Tensor r1, Tensor r2, str rotary_mode='half', "
    "Tensor? rotate=None) -> Tensor",
    _rotary_mul,
    _save_rotary,
    _rotary_backward,
)


def _gated(x: Tensor, dim: int) -> Tensor:
    gate, up = x.chunk(2, dim)
    return F.silu(gate) * up


def _swiglu(x: Tensor, dim: int = -1) -> Tensor:
    _SWIGLU.on_npu(x=x)
    _SWIGLU.one_dtype(FLOATS, x=x)
    _SWIGLU.require(1 <= x.dim() <= 8, f"the input must have 1 to 8 dims, not {x.dim()}")
    _SWIGLU.require(x.shape[dim] % 2 == 0, f"dim {dim} of {tuple(x.shape)} has no two halves")
    return device(_gated(host(x), dim), x)


def _save_swiglu(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.dim = inputs[1]


def _swiglu_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    dim = ctx.dim
    return *_gradients(lambda x: _gated(x, dim), ctx.saved_tensors, grad), None


npu_swiglu = define(
    "npu_swiglu(Tensor self, int dim=-1) -> Tensor", _swiglu, _save_swiglu, _swiglu_backward
)
