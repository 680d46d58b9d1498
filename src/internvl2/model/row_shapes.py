"""Products of a decoder's layers with a single row, each by the programs that are fastest for it.

No kind fits all: rows of 8-bit codes have half the bytes of rows in bf16, so that what programs
read besides, the input and the norm, weighs twice as much.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from internvl2.model.decoder import DecoderAttention, DecoderLayer, GatedMLP
from internvl2.model.joined import RowMatrix, row_matrix
from internvl2.model.kernel_choice import KernelChoice, Trial
from internvl2.model.kernels import RMSNorm, RowKernels

if TYPE_CHECKING:
    from internvl2.model.triton_kernels.row_product import Shape
    from internvl2.model.triton_kernels.row_walk import Walk

LAYERS = 4
"""Whose products of a kind are timed one after the other: on some GPUs they overlap."""


@dataclass(frozen=True, slots=True)
class _Product:
    """One of a layer's products, in several layers, and what its shapes are tried on."""

    kernel: Callable[..., Any]
    inputs: tuple[Tensor, ...]
    matrices: tuple[RowMatrix, ...]
    norm: RMSNorm | None = None
    is_gated: bool = False

    def in_shape(self, shape: "Shape | Walk") -> Callable[..., Any]:
        """All layers' products of inputs, of which the last is what comes back."""
        norm = {} if self.norm is None else {"norm": self.norm.weight, "eps": self.norm.eps}

        def products(*inputs: Tensor) -> Any:
            return [
                self.kernel(*inputs, matrix=matrix, shape=shape, **norm) for matrix in self.matrices
            ][-1]

        return products


def usual_row_kernels() -> RowKernels:
    """The kernels in programs of their usual shape."""
    from internvl2.model.triton_kernels import row_product as kernels

    product = kernels.row_product
    return RowKernels(product, kernels.normed_row_product, kernels.gated_row_product, product)


def fastest_row_kernels(
    layers: Sequence[DecoderLayer], choice: KernelChoice, random: Callable[[int, int], Tensor]
) -> RowKernels:
    """The kernels in the shapes that are fastest for layers like these, held in rows.

    `random` draws numbers. To be called where the usual kernels are known to run.
    """
    usual, first, layers = usual_row_kernels(), layers[0], layers[:LAYERS]
    states = tuple(_joined(layer.attention) for layer in layers)
    opening = tuple(_joined(layer.mlp) for layer in layers)
    output = tuple(row_matrix(layer.attention.o) for layer in layers)
    down = tuple(row_matrix(layer.mlp.down) for layer in layers)
    row, out, inner = (random(1, part[0].weight.shape[1]) for part in (states, output, down))
    products = (
        _Product(usual.output, (out,), output),
        _Product(usual.normed, (row, row), states, first.attention_norm),
        _Product(usual.gated, (row, row), opening, first.mlp_norm, is_gated=True),
        _Product(usual.down, (inner,), down),
    )
    return RowKernels(*(partial(p.kernel, shape=_fastest(p, choice)) for p in products))


def _joined(module: DecoderAttention | GatedMLP) -> RowMatrix:
    assert module.joined is not None
    return module.joined.matrix


def _fastest(product: _Product, choice: KernelChoice) -> "Shape | Walk":
    from internvl2.model.triton_kernels.row_product import shapes_for

    weight = product.matrices[0].weight
    inputs, size = weight.shape[1], weight.element_size()
    found, *others = shapes_for(inputs, size, is_gated=product.is_gated)
    for shape in others:
        trial = Trial(
            f"products of {len(product.matrices)} layers with one row in {shape}",
            product.in_shape(shape),
            product.in_shape(found),
            product.inputs,
            case=(product.norm is None, tuple(weight.shape), weight.dtype, found),
            must_be_faster=True,
            other=f"in {found}",
        )
        if choice.prepare(trial):
            found = shape
    return found
