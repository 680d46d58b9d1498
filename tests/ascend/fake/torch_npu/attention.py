"""Softmax attention of one sequence and its gradients, spelled out; what a sparse mode hides."""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from .kernel import Contract

COMPRESSED = 2048
"""Side of the mask that stands for a triangle of any size."""


class Attended(NamedTuple):
    """Output [queries, heads, dim]; maximum and sum of each softmax [queries, heads]."""

    output: Tensor
    maximum: Tensor
    total: Tensor


class Gradients(NamedTuple):
    """Gradients of queries, keys and values."""

    q: Tensor
    k: Tensor
    v: Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, hidden: Tensor | None) -> Attended:
    """Attention of [tokens, heads, dim] in fp32; True in `hidden` is not seen."""
    scores = _scores(q, k, scale, hidden)
    maximum = scores.amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).min)
    weights = (scores - maximum).exp()
    total = weights.sum(-1, keepdim=True)
    # A query that sees nothing gets zeros.
    weights = weights / total.where(total > 0, 1.0)
    output = torch.einsum("hqk,khd->qhd", weights, _per_head(v, q))
    return Attended(output, maximum[..., 0].T, total[..., 0].T)


def gradients(
    q: Tensor, k: Tensor, v: Tensor, scale: float, hidden: Tensor | None, grad: Tensor
) -> Gradients:
    """Gradients of `attend` for a gradient of its output."""
    scores = _scores(q, k, scale, hidden)
    weights = torch.nan_to_num(scores.softmax(-1))
    grad_weights = torch.einsum("qhd,khd->hqk", grad, _per_head(v, q))
    inner = (grad_weights * weights).sum(-1, keepdim=True)
    grad_scores = weights * (grad_weights - inner) * scale
    return Gradients(
        torch.einsum("hqk,khd->qhd", grad_scores, _per_head(k, q)),
        _per_kv_head(torch.einsum("hqk,qhd->khd", grad_scores, q), k),
        _per_kv_head(torch.einsum("hqk,qhd->khd", weights, grad), v),
    )


def _scores(q: Tensor, k: Tensor, scale: float, hidden: Tensor | None) -> Tensor:
    scores = torch.einsum("qhd,khd->hqk", q, _per_head(k, q)) * scale
    return scores if hidden is None else scores.masked_fill(hidden, float("-inf"))


def _per_head(shared: Tensor, q: Tensor) -> Tensor:
    return shared.repeat_interleave(q.shape[1] // shared.shape[1], dim=1)


def _per_kv_head(each: Tensor, shared: Tensor) -> Tensor:
    return each.unflatten(1, (shared.shape[1], -1)).sum(2)


def hidden_by_mode(
    mode: int, queries: int, keys: int, before: int = 2147483647, after: int = 2147483647
) -> Tensor:
    """What modes 2 (aligned at the start), 3 (at the end) and 4 (a band at the end) hide."""
    offset = 0 if mode == 2 else keys - queries
    place = torch.arange(queries)[:, None] + offset
    other = torch.arange(keys)[None]
    if mode == 4:
        return (other > place + after) | (other < place - before)
    return other > place


def check_mask(
    contract: Contract, mask: Tensor | None, mode: int, dtypes: tuple[torch.dtype, ...]
) -> None:
    """What is true of the mask of either kernel."""
    if mask is not None:
        contract.on_npu(atten_mask=mask)
        contract.require(mask.dtype in dtypes, f"atten_mask must be of {dtypes}, not {mask.dtype}")
    contract.require(mode in range(5), f"this fake implements sparse_mode 0 to 4, not {mode}")
    contract.require(mode == 0 or mask is not None, f"sparse_mode {mode} needs atten_mask")


def check_triangle(contract: Contract, mask: Tensor, host_mask: Tensor) -> None:
    """Modes 2 to 4 take one mask of 2048 x 2048 for every size, True above its diagonal."""
    triangle = _triangle()
    contract.require(
        mask.shape[-2:] == triangle.shape and mask.numel() == COMPRESSED**2,
        f"sparse_mode 2 to 4 needs the compressed mask of 2048 x 2048, not {tuple(mask.shape)}",
    )
    contract.require(
        torch.equal(host_mask.bool().view_as(triangle), triangle),
        "the compressed mask must be True above its diagonal and False elsewhere",
    )


@cache
def _triangle() -> Tensor:
    return torch.ones(COMPRESSED, COMPRESSED, dtype=torch.bool).triu(1)
