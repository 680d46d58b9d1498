"""Devices to plan for: those that are here, or a known kind by its name."""

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from internvl2 import device as devices

if TYPE_CHECKING:
    import torch

GIB = 2**30
CONTEXT = 0.75
"""GiB that a driver takes of a device besides PyTorch's own memory."""


@dataclass(frozen=True, slots=True)
class Speeds:
    """What a maker states of a device."""

    tflops: float
    """Dense bf16 matrix products with fp32 sums per second, in 10^12."""
    bandwidth: float
    """GB/s of its memory."""
    link: float | None = None
    """GB/s of its direct links to others; None where variants have none."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Devices of one kind."""

    name: str
    kind: Literal["cuda", "npu", "mps", "cpu"]
    memory: float
    """GiB that training can take of each device."""
    speeds: Speeds | None = None
    has_bf16: bool = True
    count: int = 1


@dataclass(frozen=True, slots=True)
class _Kind:
    memory: float
    """GiB that programs see; unless a name says which, of the smallest variant (910B: of most)."""
    speeds: Speeds | None
    has_bf16: bool = True


KINDS = {
    "b200": _Kind(178.0, Speeds(2250.0, 8000.0, 1800.0)),
    "h200": _Kind(139.8, Speeds(989.0, 4800.0, 900.0)),
    "h100 pcie": _Kind(79.2, Speeds(756.0, 2000.0)),
    "h100 nvl": _Kind(93.0, Speeds(835.0, 3900.0)),
    "h100": _Kind(79.2, Speeds(989.0, 3350.0, 900.0)),
    "h800": _Kind(79.2, Speeds(989.0, 3350.0, 400.0)),
    "h20": _Kind(95.0, Speeds(148.0, 4000.0, 900.0)),
    "a100": _Kind(39.4, Speeds(312.0, 1555.0, 600.0)),
    "a800": _Kind(79.2, Speeds(312.0, 2039.0, 400.0)),
    "l40s": _Kind(44.4, Speeds(362.0, 864.0)),
    "l40": _Kind(44.4, Speeds(181.0, 864.0)),
    "l4": _Kind(22.0, Speeds(121.0, 300.0)),
    "6000 ada": _Kind(47.4, Speeds(364.0, 960.0)),
    "a6000": _Kind(47.4, Speeds(155.0, 768.0)),
    "a40": _Kind(44.4, Speeds(150.0, 696.0)),
    "a10g": _Kind(22.0, Speeds(70.0, 600.0)),
    "a10": _Kind(22.0, Speeds(125.0, 600.0)),
    "4090": _Kind(23.5, Speeds(165.0, 1008.0)),
    "3090": _Kind(23.6, Speeds(71.0, 936.0)),
    "v100": _Kind(15.8, None, has_bf16=False),
    "t4": _Kind(14.6, None, has_bf16=False),
    "910b": _Kind(60.0, None),
}
"""By the words of a device's own name; the first whose words are all there counts. Speeds are of
the makers' data sheets; there are none where those of others tell nothing about training."""


def known(name: str) -> Machine:
    """A device of that name (`h100`, `NVIDIA A100-SXM4-80GB`); an error where it is not known."""
    kind = _find(name)
    if kind is None:
        raise ValueError(
            f"unknown device {name!r}; known: {', '.join(KINDS)}; give --plan-memory GIB as well "
            "to plan for another one, without its speed"
        )
    return Machine(
        name,
        "npu" if "910b" in name.lower() else "cuda",
        (_stated_memory(name) or kind.memory) - CONTEXT,
        kind.speeds,
        kind.has_bf16,
    )


def here(device: "torch.device") -> Machine:
    """The devices of this machine, with the memory that is free on the first."""
    import torch

    memory = devices.free_memory(device) / GIB
    bf16 = devices.choose_dtype(device, "bfloat16") is torch.bfloat16
    if device.type in ("cpu", "mps"):
        return Machine(device.type, device.type, memory, has_bf16=bf16)  # pyright: ignore[reportArgumentType]
    module = torch.get_device_module(device)
    name = module.get_device_name(device)
    kind = _find(name)
    kind_of_device: Literal["cuda", "npu"] = "cuda" if device.type == "cuda" else "npu"
    speeds = kind.speeds if kind else None
    return Machine(name, kind_of_device, memory, speeds, bf16, module.device_count())


def given(
    name: str | None, memory: float | None, count: int | None, device: str | None = None
) -> Machine:
    """What somebody asks for; the rest as the named kind has it, or as `device` of this machine."""
    if memory is not None and memory <= CONTEXT:
        raise ValueError(f"--plan-memory is {memory}; it must be above {CONTEXT} GiB")
    if count is not None and count < 1:
        raise ValueError(f"--plan-gpus is {count}; it must be at least 1")
    if name is None and memory is None:
        machine = here(devices.pick(device))
    elif name is None or (memory is not None and _find(name) is None):
        machine = Machine(name or f"a GPU of {memory:g} GiB", "cuda", 0)
    else:
        machine = known(name)
    if memory is not None:
        machine = replace(machine, memory=memory - CONTEXT)
    return machine if count is None else replace(machine, count=count)


def _find(name: str) -> _Kind | None:
    text = re.sub(r"(ascend)?\s?910b\d*", " 910b ", name.lower())
    words = set(re.split(r"[^a-z0-9]+", text))
    return next((kind for key, kind in KINDS.items() if set(key.split()) <= words), None)


def _stated_memory(name: str) -> float | None:
    """What a name like A100-SXM4-80GB says; programs see a little less of it."""
    found = re.search(r"(\d+)\s?gb", name.lower())
    return int(found[1]) - 0.8 if found else None
