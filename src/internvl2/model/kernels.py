"""Norms and gates: fused where torch_npu has a kernel, plain torch elsewhere.

What attention is computed with is decided in `attention.py`, what turns queries and keys in
`rotary.py`.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from internvl2 import device as devices


class RMSNorm(nn.RMSNorm):
    """`nn.RMSNorm` over the last axis, with weights."""

    def forward(self, x: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        """Every row divided by its root mean square, times the weights."""
        fused = devices.fused_kernel("npu_rms_norm", x.device)
        if fused is None or self.eps is None or self.weight.dtype != x.dtype:
            return super().forward(x)
        return fused(x, self.weight, epsilon=self.eps)[0]


def gated(
    gate: Float[Tensor, "tokens inner"], up: Float[Tensor, "tokens inner"]
) -> Float[Tensor, "tokens inner"]:
    """SiLU of the gate, times `up`."""
    fused = devices.fused_kernel("npu_swiglu", gate.device)
    if fused is None:
        return F.silu(gate) * up
    return fused(torch.cat([gate, up], dim=-1), dim=-1)
