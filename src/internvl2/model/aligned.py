"""Products with rows that begin at multiples of 64 numbers, whatever their length.

The family's vocabularies are odd (92,553, 151,655), so that rows of scores laid end to end begin at
odd places, and fast products on GPUs write only to aligned ones: others are several times slower.
"""

import torch
from jaxtyping import Float
from torch import Tensor

ALIGNED = 64
"""Numbers at whose multiples rows begin: 128 bytes in bf16."""


def aligned_copy(
    numbers: Float[Tensor, "rows columns"], dtype: torch.dtype
) -> Float[Tensor, "rows columns"]:
    """A matrix for further products, in another type, with zeros between its rows.

    Some products read a row on to the end of a block, oneDNN's on CPUs with AMX among them, and
    multiply what they find there with zeros: of a NaN, which new memory may hold, that makes NaN.
    """
    rows, columns = numbers.shape
    copy = _room(rows, columns, numbers.device, dtype)
    copy[:, columns:] = 0
    return copy[:, :columns].copy_(numbers)


def aligned_product(
    x: Float[Tensor, "rows inputs"], weight: Float[Tensor, "outputs inputs"]
) -> Float[Tensor, "rows outputs"]:
    """What `F.linear` gives without a bias; it has no gradients."""
    outputs = len(weight)
    return torch.mm(x, weight.T, out=_room(len(x), outputs, x.device, x.dtype)[:, :outputs])


def _room(
    rows: int, columns: int, device: torch.device, dtype: torch.dtype
) -> Float[Tensor, "rows wide"]:
    wide = -(-columns // ALIGNED) * ALIGNED
    return torch.empty(rows, wide, device=device, dtype=dtype)
