"""Kernels that begin before the one ahead has ended (programmatic dependent launch).

The steps of single tokens are made of kernels of a few microseconds, of which a start is a good
part. Every program of such a kernel waits for the one ahead, all of it, before it reads what that
wrote or writes anything; what no kernel writes, such as weights, it may read before.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

FIRST_CAPABILITY = (9, 0)
"""Of GPUs that can do that."""


@cache
def begins_early(device: torch.device) -> bool:
    """Whether kernels do that there; launches ask for it by `launch_option`."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FIRST_CAPABILITY


def launch_option(is_early: bool) -> dict[str, bool]:
    """Triton's option for a launch; its interpreter does not know it."""
    return {"launch_pdl": True} if is_early else {}


@triton.jit
def let_next_begin() -> None:
    """The kernel behind may begin as soon as every program of this one has come so far."""
    gdc_launch_dependents()


@triton.jit
def wait_for_ahead() -> None:
    """What the kernels ahead wrote may be read from here on."""
    gdc_wait()


@triton.jit
def take_over(is_early: tl.constexpr) -> None:
    """Both, where there is nothing to read before."""
    if is_early:
        let_next_begin()
        wait_for_ahead()
