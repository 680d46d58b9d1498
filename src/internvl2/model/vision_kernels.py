"""The kernels that a vision tower may compute with in place of plain PyTorch."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class VisionKernels:
    """Kernels between a tower's products; where one is None plain PyTorch computes the same."""

    scaled_sum_norm: (
        Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None, float], tuple[Tensor, Tensor]]
        | None
    ) = None
    """`triton_kernels.vision.scaled_sum_norm`."""
    biased_gelu: Callable[[Tensor, Tensor], Tensor] | None = None
    """`triton_kernels.vision.biased_gelu`."""
    norm_queries_and_keys: Callable[[Tensor, Tensor, Tensor, float], Tensor] | None = None
    """`triton_kernels.vision.norm_queries_and_keys`."""
    attend: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    """Attention of heads over whole tiles: [tiles, heads, patches, head_dim] each."""


PLAIN = VisionKernels()
