"""What a device will compute with, and why: formats, kernels, threads, memory, processes.

`read_facts` asks the machine; everything else follows from the facts alone, so that devices that
are not here can be described too. `require` refuses what a device cannot do, and says what it can.
"""

import os
import platform
import shutil
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch

from internvl2 import device as devices
from internvl2.config import DTypeName
from internvl2.cores import Cores, read_cores
from internvl2.model.attention import takes_varlen
from internvl2.model.fused import LARGE_SHARED_MEMORY
from internvl2.model.kernel_choice import FIRST_CAPABILITY
from internvl2.model.packed import can_pack

Kind = Literal["cpu", "cuda", "npu", "mps"]

GIB = 2**30
HALF = (torch.bfloat16, torch.float16)
FIRST_FLASH = (8, 0)
"""Compute capability of Ampere."""


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """All that decides what a device computes with."""

    kind: Kind
    name: str
    """As its maker calls it."""
    index: int = 0
    count: int = 1
    """Devices of this kind."""
    multiplies_bf16: bool = True
    packs: bool = False
    """Whether linear maps in bf16 are packed for oneDNN; of a CPU."""
    capability: tuple[int, int] | None = None
    """CUDA's generation."""
    free_memory: int = 0
    cores: Cores = field(default_factory=lambda: Cores(1, 1))
    threads: int = 1
    """What torch computes with on the host."""
    has_compiler: bool = False
    """Triton for a GPU, a C++ compiler for a CPU."""
    versions: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.kind if self.kind in ("cpu", "mps") else f"{self.kind}:{self.index}"


@dataclass(frozen=True, slots=True)
class Choice:
    """One thing that was decided, and why."""

    what: str
    chosen: str
    why: str


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """What a device computes with."""

    device: str
    name: str
    choices: tuple[Choice, ...]

    def lines(self) -> str:
        """The report for people."""
        width = max(len(choice.what) for choice in self.choices)
        shown = [f"  {c.what:<{width}}  {c.chosen}: {c.why}" for c in self.choices]
        return "\n".join([f"{self.device} ({self.name})", *shown])

    def as_json(self) -> dict[str, object]:
        """The report for programs."""
        choices = {choice.what: _chosen(choice) for choice in self.choices}
        return {"device": self.device, "name": self.name, "choices": choices}


def report(
    facts: DeviceFacts, stored: DTypeName, wanted: str | None, head_dim: int
) -> DeviceReport:
    """What a device does for a checkpoint stored in a format, with decoder heads of a size."""
    dtype = devices.format_for(
        facts.kind, stored, wanted, multiplies_bf16=lambda: facts.multiplies_bf16
    )
    choices = (
        _number_format(facts, dtype, stored, wanted),
        *_kernels(facts, dtype, head_dim),
        _threads(facts),
        _memory(facts),
        _compilation(facts),
        _processes(facts),
        Choice("versions", ", ".join(facts.versions), "as installed"),
    )
    return DeviceReport(str(facts), facts.name, choices)


def read_facts(device: torch.device) -> DeviceFacts:
    """What this machine says of a device."""
    is_cpu, is_cuda = device.type == "cpu", device.type == "cuda"
    compilers = ("g++", "clang++") if is_cpu else ()
    return DeviceFacts(
        kind=device.type,  # pyright: ignore[reportArgumentType]
        name=_name(device),
        index=0 if is_cpu else device.index or 0,
        count=1 if is_cpu else torch.accelerator.device_count(),
        multiplies_bf16=devices.multiplies_bf16(device),
        packs=can_pack(device, torch.bfloat16),
        capability=torch.cuda.get_device_capability(device) if is_cuda else None,
        free_memory=devices.free_memory(device),
        cores=read_cores(),
        threads=torch.get_num_threads(),
        has_compiler=any(map(shutil.which, compilers)) or (is_cuda and bool(find_spec("triton"))),
        versions=_versions(device),
    )


def _number_format(
    facts: DeviceFacts, dtype: torch.dtype, stored: DTypeName, wanted: str | None
) -> Choice:
    chosen = str(dtype).removeprefix("torch.")
    slow = ""
    if facts.kind == "cpu" and dtype in HALF and not (facts.packs and dtype is torch.bfloat16):
        slow = "; slow, but it works: this CPU multiplies float32 faster"
    if wanted is not None:
        return Choice("number format", chosen, f"asked for{slow}")
    if chosen == stored:
        return Choice("number format", chosen, f"the checkpoint's, which {facts.name} multiplies")
    if facts.kind == "cpu":
        why = f"the checkpoint's is {stored}, but a CPU is faster in float32 unless it has "
        return Choice("number format", chosen, why + "AMX or AVX-512 BF16")
    why = f"the checkpoint's is {stored}, for which {facts.name} has no arithmetic"
    return Choice("number format", chosen, why)


def _kernels(facts: DeviceFacts, dtype: torch.dtype, head_dim: int) -> tuple[Choice, ...]:
    if facts.kind == "cuda":
        return _cuda_kernels(facts, dtype, head_dim)
    if facts.kind == "npu":
        return _npu_kernels(facts)
    if facts.kind == "cpu":
        return _cpu_kernels(facts, dtype)
    why = "the one kernel that PyTorch has for Apple's GPUs"
    places = ("attention, prefill", "attention, decode", "attention, vision")
    return tuple(Choice(place, "scaled_dot_product_attention", why) for place in places)


def _cuda_kernels(facts: DeviceFacts, dtype: torch.dtype, head_dim: int) -> tuple[Choice, ...]:
    assert facts.capability is not None
    generation = ".".join(map(str, facts.capability))
    if takes_varlen(facts.capability, dtype, head_dim):
        first = "variable-length flash attention"
        if facts.has_compiler and facts.capability[0] in LARGE_SHARED_MEMORY:
            first += ", or a kernel in Triton where that is faster"
        why = f"compute capability {generation}, {_short(dtype)}, heads of {head_dim}"
    elif facts.capability < FIRST_FLASH:
        first = "scaled_dot_product_attention, memory-efficient kernel"
        why = f"compute capability {generation}: flash attention begins at 8.0"
    else:
        first = "scaled_dot_product_attention"
        why = f"flash attention takes no {_short(dtype)} with heads of {head_dim}"
    tower = (
        "flash kernel"
        if facts.capability >= FIRST_FLASH and dtype in HALF
        else "memory-efficient kernel"
    )
    return (
        Choice("attention, prefill", first, why),
        *_decode_kernels(facts),
        Choice(
            "attention, vision",
            f"scaled_dot_product_attention, {tower}",
            "tiles are of one size and need no mask",
        ),
    )


def _decode_kernels(facts: DeviceFacts) -> tuple[Choice, ...]:
    """What a step of written tokens is computed with on a CUDA device."""
    assert facts.capability is not None
    if facts.has_compiler and facts.capability >= FIRST_CAPABILITY:
        why = "tried against PyTorch when a model is loaded, which computes where a trial fails"
        return (
            Choice("attention, decode", "a kernel in Triton that reads the cache in place", why),
            Choice("decoder", "joined products, kernels in Triton between them", why),
        )
    return (
        Choice(
            "attention, decode",
            "scaled_dot_product_attention over gathered blocks",
            "a kernel that reads the cache in place needs Triton and compute capability 8.0",
        ),
        Choice("decoder", "joined products", "kernels between them need the same"),
    )


def _npu_kernels(facts: DeviceFacts) -> tuple[Choice, ...]:
    if not facts.multiplies_bf16:
        why = "torch_npu documents its fused kernels for Atlas A2 and later"
        places = ("attention, prefill", "attention, decode", "attention, vision")
        return tuple(Choice(place, "scaled_dot_product_attention", why) for place in places)
    packed = "whole sequences and tiles, lengths known to the host"
    return (
        Choice("attention, prefill", "npu_fusion_attention", packed),
        Choice(
            "attention, decode",
            "npu_fused_infer_attention_score",
            "it reads the cache through block tables",
        ),
        Choice("attention, vision", "npu_fusion_attention", packed),
    )


def _cpu_kernels(facts: DeviceFacts, dtype: torch.dtype) -> tuple[Choice, ...]:
    sdpa, has_products = "scaled_dot_product_attention", facts.packs and dtype is torch.bfloat16
    by_heads = "products of bf16, head by head"
    rows = "PyTorch's order of weights"
    tower_why = "PyTorch's kernel for CPUs would multiply in float32"
    return (
        Choice("attention, prefill", sdpa, "PyTorch's flash kernel for CPUs"),
        Choice("attention, decode", f"{sdpa}, one sequence at a time", "no padding to the longest"),
        Choice("attention, vision", by_heads, tower_why)
        if has_products
        else Choice("attention, vision", sdpa, "PyTorch's flash kernel for CPUs"),
        Choice("linear maps", "packed for oneDNN", "bf16 weights are read 2 to 3 times as fast")
        if has_products
        else Choice("linear maps", rows, "packing helps where the CPU has bf16 products, in bf16"),
    )


def _threads(facts: DeviceFacts) -> Choice:
    names = [name for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ]
    if facts.threads == facts.cores.threads:
        why = facts.cores.reason
    else:
        why = f"as {names[0] if names else 'torch'} says; {facts.cores.threads} would be "
        why += f"sensible: {facts.cores.reason}"
    if facts.kind == "cpu":
        why += "; one for the tokens of small models"
    return Choice("threads", str(facts.threads), why)


def _memory(facts: DeviceFacts) -> Choice:
    place = (
        "of the host, within the control group's limit" if facts.kind == "cpu" else "of the device"
    )
    return Choice("memory", f"{facts.free_memory / GIB:.1f} GiB free", place)


def _compilation(facts: DeviceFacts) -> Choice:
    what = "compilation"
    if facts.kind == "cuda" and facts.has_compiler:
        return Choice(what, "training, through Triton", "it pays on NVIDIA GPUs; answers need none")
    if facts.kind == "cuda":
        return Choice(
            what, "none", "Triton is not installed (pip install triton); all runs without"
        )
    if facts.kind == "cpu" and facts.has_compiler:
        return Choice(what, "none", "compile = true in a recipe would do it, with the C++ compiler")
    if facts.kind == "cpu":
        return Choice(what, "none", "there is no C++ compiler; all runs without")
    return Choice(what, "none", f"the kernels of {facts.kind} are called directly")


def _processes(facts: DeviceFacts) -> Choice:
    group = devices.process_group(facts.kind)
    if facts.kind == "mps":
        return Choice("process group", "none", "there is one Apple GPU in a machine")
    here = "" if facts.kind == "cpu" else f", {facts.count} of them here"
    return Choice("process group", group, f"for training with torchrun{here}")


def _name(device: torch.device) -> str:
    if device.type == "mps":
        return "Apple GPU"
    if device.type != "cpu":
        return str(torch.get_device_module(device).get_device_name(device))
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _versions(device: torch.device) -> tuple[str, ...]:
    found = [f"torch {torch.__version__}"]
    if device.type == "cuda":
        found.append(f"CUDA {torch.version.cuda}")
    if device.type == "npu":
        module = sys.modules["torch_npu"]
        found.append(f"torch_npu {getattr(module, '__version__', 'of unknown version')}")
    return tuple(found)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _chosen(choice: Choice) -> dict[str, str]:
    return {"chosen": choice.chosen, "why": choice.why}
