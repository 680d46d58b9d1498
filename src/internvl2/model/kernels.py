"""Norms and gates: fused where torch_npu or Triton has a kernel, plain torch elsewhere.

What attention is computed with is decided in `attention.py`, what turns queries and keys in
`rotary.py`, and which kernels in Triton take part in `fused.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from internvl2 import device as devices
from internvl2.model.attention import Attention, DecodeKernel, PagedAttention, PrefillKernel


@dataclass(frozen=True, slots=True)
class RowKernels:
    """A matrix times a single row, and what stands around that (`triton_kernels.row_product`)."""

    output: Callable[..., Tensor]
    """Behind attention."""
    normed: Callable[..., tuple[Tensor, Tensor]]
    """Queries, keys and values of a normed sum."""
    gated: Callable[..., tuple[Tensor, Tensor]]
    """The gated half of an MLP, of a normed sum."""
    down: Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class FusedKernels:
    """Kernels between a decoder's products; where one is None plain PyTorch computes the same."""

    sum_norm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]] | None = None
    """`triton_kernels.sum_norm`."""
    gate: Callable[[Tensor], Tensor] | None = None
    """`triton_kernels.gate`."""
    turn_and_store: Callable[..., Tensor] | None = None
    """`triton_kernels.turn_and_store`."""
    paged_decode: DecodeKernel | None = None
    """`triton_kernels.paged_decode`."""
    prefill: PrefillKernel | None = None
    """`triton_kernels.packed_prefill`, where that is faster."""
    row: RowKernels | None = None
    """For steps of one token, where they are faster."""
    head: Callable[..., Tensor] | None = None
    """`triton_kernels.row_product` for the head, where that is faster."""
    scores: Callable[[Tensor, Tensor], Tensor] | None = None
    """`aligned.aligned_product` for the head and several rows, where that is faster."""

    def within(self, attend: Attention) -> Attention:
        """The same attention with the kernels that there are for it, where it is over a cache."""
        if not isinstance(attend, PagedAttention):
            return attend
        return replace(attend, decode_kernel=self.paged_decode, prefill_kernel=self.prefill)


PLAIN = FusedKernels()


class RMSNorm(nn.RMSNorm):
    """`nn.RMSNorm` over the last axis, with weights."""

    def forward(self, x: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        """Every row divided by its root mean square, times the weights."""
        fused = devices.fused_kernel("npu_rms_norm", x.device)
        if fused is None or self.eps is None or self.weight.dtype != x.dtype:
            return super().forward(x)
        return fused(x, self.weight, epsilon=self.eps)[0]

    def of_sum(
        self,
        x: Float[Tensor, "tokens dim"],
        added: Float[Tensor, "tokens dim"],
        kernels: FusedKernels,
    ) -> tuple[Float[Tensor, "tokens dim"], Float[Tensor, "tokens dim"]]:
        """A stream with something added to it, and the norm of that."""
        if kernels.sum_norm is None or self.eps is None:
            x = x + added
            return x, self(x)
        return kernels.sum_norm(x, added, self.weight, self.eps)


def gated(
    gate: Float[Tensor, "tokens inner"], up: Float[Tensor, "tokens inner"]
) -> Float[Tensor, "tokens inner"]:
    """SiLU of the gate, times `up`."""
    fused = devices.fused_kernel("npu_swiglu", gate.device)
    if fused is None:
        return F.silu(gate) * up
    return fused(torch.cat([gate, up], dim=-1), dim=-1)


def gated_halves(
    product: Float[Tensor, "tokens both"], kernels: FusedKernels
) -> Float[Tensor, "tokens inner"]:
    """The same where gate and `up` are halves of one product."""
    if kernels.gate is not None:
        return kernels.gate(product)
    gate, up = product.chunk(2, dim=-1)
    return gated(gate, up)
