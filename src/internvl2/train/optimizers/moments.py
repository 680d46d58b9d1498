"""Averages of gradients in 8 bits: a code per number and an fp32 scale per 128 numbers of a row.

Codes stand for powers of equal steps (squares for the mean, fourth powers for the squares' mean),
so that small numbers beside large ones keep their size: after the 8-bit optimizers of 2110.02861,
whose table of codes would need a search that not every device has. Rounding is random, up or down
with the probability that keeps the expectation. To the nearest, an average that changes by 0.1 % a
step would never move, since its codes are 1 % apart.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int8, UInt8
from torch import Tensor

BLOCK = 128
"""Neighbours in a row that share a scale."""
TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class SignedCodes:
    """Numbers of either sign."""

    codes: Int8[Tensor, "rows row"]
    scales: Float32[Tensor, "rows blocks"]


@dataclass(frozen=True)
class PositiveCodes:
    """Numbers that are not below 0."""

    codes: UInt8[Tensor, "rows row"]
    scales: Float32[Tensor, "rows blocks"]


def has_whole_blocks(parameter: Tensor) -> bool:
    """Whether the rows of a parameter are made of blocks; others keep fp32 averages."""
    return parameter.ndim >= 2 and parameter.shape[1:].numel() % BLOCK == 0


def encode_signed(
    values: Float32[Tensor, "rows row"], noise: Float[Tensor, "rows row"]
) -> SignedCodes:
    """Codes of `values`; `noise`, evenly spread in 0..1, rounds them."""
    blocks = values.unflatten(1, (-1, BLOCK))
    scales = blocks.abs().amax(2)
    sizes = (blocks.abs() / scales.clamp(min=TINY)[..., None]).sqrt() * 127
    sizes = (sizes + noise.view_as(sizes)).floor().clamp(max=127)
    return SignedCodes((sizes * blocks.sign()).to(torch.int8).flatten(1), scales)


def decode_signed(
    codes: Int8[Tensor, "rows row"], scales: Float32[Tensor, "rows blocks"]
) -> Float32[Tensor, "rows row"]:
    """The numbers that codes stand for."""
    roots = codes.unflatten(1, (-1, BLOCK)).float() / 127
    return (roots * roots.abs() * scales[..., None]).flatten(1)


def encode_positive(
    values: Float32[Tensor, "rows row"], noise: Float[Tensor, "rows row"]
) -> PositiveCodes:
    """Codes of `values`; none is coded as 0, for they divide."""
    blocks = values.unflatten(1, (-1, BLOCK))
    scales = blocks.amax(2)
    sizes = (blocks / scales.clamp(min=TINY)[..., None]).sqrt().sqrt() * 255
    sizes = (sizes + noise.view_as(sizes)).floor().clamp(1, 255)
    return PositiveCodes(sizes.to(torch.uint8).flatten(1), scales)


def decode_positive(
    codes: UInt8[Tensor, "rows row"], scales: Float32[Tensor, "rows blocks"]
) -> Float32[Tensor, "rows row"]:
    """The numbers that codes stand for."""
    roots = (codes.unflatten(1, (-1, BLOCK)).float() / 255).square()
    return (roots * roots * scales[..., None]).flatten(1)
