"""Products with rows that begin at multiples of 64 numbers, whatever their length.

The family's vocabularies are odd (92,553, 151,655), so that rows of scores laid end to end begin at
odd places, and fast products on GPUs write only to aligned ones: others are several times slower.
"""

import torch
from jaxtyping import Float
from torch import Tensor

ALIGNED = 64
"""Numbers at whose multiples rows begin: 128 bytes in bf16."""


def aligned_rows(rows: int, columns: int, like: Tensor) -> Float[Tensor, "rows columns"]:
    """Room for a matrix, on the device and in the type of `like`."""
    return like.new_empty(rows, -(-columns // ALIGNED) * ALIGNED)[:, :columns]


def aligned_product(
    x: Float[Tensor, "rows inputs"], weight: Float[Tensor, "outputs inputs"]
) -> Float[Tensor, "rows outputs"]:
    """What `F.linear` gives without a bias; it has no gradients."""
    return torch.mm(x, weight.T, out=aligned_rows(len(x), len(weight), x))
