"""Cross entropy of the labelled rows alone, without ever holding all their logits.

A vision-language sample teaches about a tenth of its tokens; only their rows reach the head. The
rows go through it in chunks, and each chunk's gradients are made while its logits are at hand, so
that the backward pass only scales them.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from internvl2.model.aligned import aligned_copy, aligned_product

CHUNK = 1024
"""Rows whose logits exist at once: 0.6 GB in fp32 for a vocabulary of 151,674."""


def chunked_cross_entropy(
    hidden: Float[Tensor, "rows dim"],
    head: Float[Tensor, "vocab dim"],
    labels: Int[Tensor, " rows"],
    weights: Float[Tensor, " rows"],
    chunk: int = CHUNK,
) -> Float[Tensor, ""]:
    """Sum over the rows of weight times cross entropy, in fp32; 0 where there are no rows.

    `hidden` are the labelled rows, already selected; `head` may be frozen.
    """
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; it must be at least 1")
    learning = torch.is_grad_enabled()
    wanted = _Wanted(learning and hidden.requires_grad, learning and head.requires_grad)
    return _ChunkedCrossEntropy.apply(hidden, head, labels, weights.float(), chunk, wanted)


@dataclass(frozen=True)
class _Wanted:
    """Whose gradients the backward pass will ask for."""

    hidden: bool
    head: bool

    @property
    def any(self) -> bool:
        return self.hidden or self.head


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Loss and gradients, chunk by chunk, all in the forward pass."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: Tensor,
        head: Tensor,
        labels: Tensor,
        weights: Tensor,
        chunk: int,
        wanted: _Wanted,
    ) -> Tensor:
        loss = torch.zeros((), device=hidden.device)
        hidden_grad = torch.empty_like(hidden) if wanted.hidden else None
        head_grad = _accumulator(head, len(hidden) <= chunk) if wanted.head else None
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            scores = _log_probabilities(aligned_product(hidden[rows], head).float())
            loss -= weights[rows] @ scores.gather(1, labels[rows, None])[:, 0]
            if not wanted.any:
                continue
            error = _error(scores, labels[rows, None], weights[rows, None])
            if head.dtype != error.dtype:
                error = aligned_copy(error, head.dtype)
            if hidden_grad is not None:
                torch.mm(error, head, out=hidden_grad[rows])
            if head_grad is not None:
                head_grad += error.T @ hidden[rows]
        ctx.save_for_backward(*(g for g in (hidden_grad, head_grad) if g is not None))
        ctx.wanted, ctx.formats = wanted, (hidden.dtype, head.dtype)  # pyright: ignore[reportAttributeAccessIssue]
        return loss

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: FunctionCtx, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        wanted: _Wanted = ctx.wanted  # pyright: ignore[reportAttributeAccessIssue]
        saved = list(ctx.saved_tensors)  # pyright: ignore[reportAttributeAccessIssue]
        formats = ctx.formats  # pyright: ignore[reportAttributeAccessIssue]
        hidden_grad = _scaled(saved.pop(0), grad, formats[0]) if wanted.hidden else None
        head_grad = _scaled(saved.pop(0), grad, formats[1]) if wanted.head else None
        return hidden_grad, head_grad, None, None, None, None


def _accumulator(head: Tensor, once: bool) -> Tensor:
    """Zeros for the head's gradient: in fp32 unless a single chunk is all there is."""
    return torch.zeros_like(head, dtype=head.dtype if once else torch.float32)


def _log_probabilities(logits: Float[Tensor, "rows vocab"]) -> Float[Tensor, "rows vocab"]:
    """In the place of the logits."""
    return logits.sub_(logits.logsumexp(1, keepdim=True))


def _error(
    scores: Float[Tensor, "rows vocab"],
    labels: Int[Tensor, "rows 1"],
    weights: Float[Tensor, "rows 1"],
) -> Float[Tensor, "rows vocab"]:
    """Gradient of the weighted losses by the logits, in the place of the log probabilities."""
    return scores.exp_().mul_(weights).scatter_add_(1, labels, -weights)


def _scaled(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """The product, rounded once."""
    return torch.mul(gradient, factor, out=torch.empty_like(gradient, dtype=dtype))
