"""A fake of torch_npu for machines without an Ascend card: the device `npu` over host memory.

A folder on PYTHONPATH that holds this module gives a process the device: its memory with a limit,
its streams, its generators, `torch.npu`, autocast, the process group `hccl` and the fused kernels,
whose documented contracts are enforced. It says nothing about speed or rounding on a card.

Read from the environment: FAKE_NPU_BYTES (memory of a device, 64 GiB), FAKE_NPU_COUNT (devices, 1),
FAKE_NPU_STRICT (0 stops refusing what a card refuses), FAKE_NPU_BF16 (0 for a card without bf16),
FAKE_NPU_OPS (file that gets the name of each operator), FAKE_NPU_CACHE (where builds are kept).
"""

import sys

import torch

from ._build import load_device

__version__ = "2.13.0+fake"

_device = load_device()
torch.utils.rename_privateuse1_backend("npu")
_device.register_hooks()

from . import npu  # noqa: E402

torch._register_device_module("npu", npu)
sys.modules["torch.npu"] = npu
torch.utils.generate_methods_for_privateuse1_backend(
    for_tensor=True, for_module=True, for_packed_sequence=True, for_storage=True
)

from . import foreign, hccl, testing  # noqa: E402
from .elementwise import npu_rms_norm, npu_rotary_mul, npu_swiglu  # noqa: E402
from .inference import npu_fused_infer_attention_score  # noqa: E402
from .training import npu_fusion_attention  # noqa: E402

hccl.register()
if _device.is_strict():
    foreign.refuse()

__all__ = [
    "npu",
    "npu_fused_infer_attention_score",
    "npu_fusion_attention",
    "npu_rms_norm",
    "npu_rotary_mul",
    "npu_swiglu",
    "testing",
]
