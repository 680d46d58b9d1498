"""Products of a decoder's layers with a single row, each in programs of the shape that is fastest.

One shape does not fit all: rows of 8-bit codes have half the bytes of rows in bf16, so that what
every program reads besides, the input and the norm, weighs twice as much.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from internvl2.model.decoder import DecoderLayer
from internvl2.model.joined import RowMatrix, row_matrix
from internvl2.model.kernel_choice import KernelChoice, Trial
from internvl2.model.kernels import RMSNorm, RowKernels

if TYPE_CHECKING:
    from internvl2.model.triton_kernels.row_product import Shape


@dataclass(frozen=True, slots=True)
class _Product:
    """One of a layer's products, and what its shapes are tried on."""

    kernel: Callable[..., Any]
    inputs: tuple[Tensor, ...]
    matrix: RowMatrix
    norm: RMSNorm | None = None

    def in_shape(self, shape: "Shape") -> Callable[..., Any]:
        """The product of inputs."""
        settings: dict[str, Any] = {"matrix": self.matrix, "shape": shape}
        if self.norm is not None:
            settings |= {"norm": self.norm.weight, "eps": self.norm.eps}
        return partial(self.kernel, **settings)


def usual_row_kernels() -> RowKernels:
    """The kernels in programs of their usual shape."""
    from internvl2.model.triton_kernels import row_product as kernels

    product = kernels.row_product
    return RowKernels(product, kernels.normed_row_product, kernels.gated_row_product, product)


def fastest_row_kernels(
    layer: DecoderLayer, choice: KernelChoice, random: Callable[[int, int], Tensor]
) -> RowKernels:
    """The kernels in the shapes that are fastest for layers like this one, held in rows.

    `random` draws numbers. To be called where the usual kernels are known to run.
    """
    usual, attention, mlp = usual_row_kernels(), layer.attention, layer.mlp
    assert attention.joined is not None
    assert mlp.joined is not None
    states, opening = attention.joined.matrix, mlp.joined.matrix
    output, down = row_matrix(attention.o), row_matrix(mlp.down)
    row, out, inner = (random(1, matrix.weight.shape[1]) for matrix in (states, output, down))
    products = (
        _Product(usual.output, (out,), output),
        _Product(usual.normed, (row, row), states, layer.attention_norm),
        _Product(usual.gated, (row, row), opening, layer.mlp_norm),
        _Product(usual.down, (inner,), down),
    )
    return RowKernels(*(partial(p.kernel, shape=_fastest(p, choice)) for p in products))


def _fastest(product: _Product, choice: KernelChoice) -> "Shape":
    from internvl2.model.triton_kernels.row_product import shapes_for

    weight = product.matrix.weight
    found, *others = shapes_for(weight.shape[1])
    for shape in others:
        trial = Trial(
            "products with one row in another shape",
            product.in_shape(shape),
            product.in_shape(found),
            product.inputs,
            case=(product.norm is None, tuple(weight.shape), weight.dtype, shape, found),
            must_be_faster=True,
            other=f"the kernel in {found}",
        )
        if choice.prepare(trial):
            found = shape
    return found
