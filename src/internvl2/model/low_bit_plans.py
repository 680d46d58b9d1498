"""Which kernels multiply with matrices in few bits on a CUDA device, found out by trying.

Few rows take as long as reading the matrix does, which the kernels do once, in its few bits. Many
rows are bound by arithmetic: there a product in plain PyTorch, with the weight dequantised for it
or in fp8, takes over. Where it does is measured, for each shape of matrix.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from internvl2 import device as devices
from internvl2.model.kernel_choice import FIRST_CAPABILITY, KernelChoice, Trial
from internvl2.model.low_bit import Fp8Linear
from internvl2.model.low_bit_linear import Dequantized, LowBitLinear, Plan, Tiles, Vectors

HEIGHTS = (2, 4, 8)
"""Outputs of a program that multiplies one row."""
MOST_WARPS = 4
WARP = 32
"""Threads."""
TILES = {
    16: (Tiles(16, 32, 256, warps=4, stages=4), Tiles(16, 64, 128, warps=4, stages=4)),
    32: (Tiles(32, 64, 128, warps=4, stages=4),),
    64: (Tiles(64, 64, 128, warps=4, stages=3),),
    256: (Tiles(64, 128, 128, warps=4, stages=3),),
}
"""For products of up to so many rows."""
TILES_PER_PROCESSOR = 2
"""With fewer, the inputs are shared out among programs until there are as many."""
MANY = 2**62
"""A limit that no product reaches."""
SCALED_ROWS = 80
"""Rows that the product of PyTorch in fp8 is tried on."""
SCALED_TOLERANCE = 0.1
"""What rounding the inputs to fp8 changes, as a share of the largest output."""


@torch.inference_mode()
def plan_products(model: nn.Module, choice: KernelChoice) -> None:
    """Gives each map in few bits the kernels that are faster than plain PyTorch on its device.

    Maps that are joined come first: the choice depends on their shape.
    """
    plans: dict[Hashable, Sequence[tuple[int, Plan | None]]] = {}
    for module in model.modules():
        if not isinstance(module, LowBitLinear) or not _has_kernels(module):
            continue
        case = _case(module)
        if case not in plans:
            plans[case] = tuple(_plans(module, choice))
        module.plans = plans[case]


def vectors(inputs: int, codes_at_once: int) -> Sequence[Vectors]:
    """Kernels for one row of so many inputs, each thread with one load for an output at a time."""
    threads = -(-inputs // codes_at_once)
    warps = min(MOST_WARPS, 1 << (-(-threads // WARP) - 1).bit_length())
    return [Vectors(height, warps) for height in HEIGHTS]


def _has_kernels(linear: LowBitLinear) -> bool:
    device = linear.codes.device
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < FIRST_CAPABILITY:
        return False
    return linear.fits_kernels


def _case(linear: LowBitLinear) -> Hashable:
    shape = (linear.in_features, linear.out_features, getattr(linear, "group", None))
    return (type(linear).__name__, *shape, linear.bias is not None, linear.codes.device)


def _plans(linear: LowBitLinear, choice: KernelChoice) -> Iterator[tuple[int, Plan | None]]:
    """The fastest way for each number of rows, and the usual one for all others."""
    usual = _usual(linear, choice)
    for rows, candidates in _candidates(linear):
        found = usual
        for candidate in candidates:
            if choice.prepare(_trial(linear, rows, candidate, found)):
                found = candidate
        yield rows, found
    yield MANY, usual


def _usual(linear: LowBitLinear, choice: KernelChoice) -> Plan | None:
    """How PyTorch computes products: None as always, or dequantised where its fp8 does not run."""
    if not isinstance(linear, Fp8Linear):
        return None
    trial = Trial(
        "products in fp8",
        fused=partial(linear.product, plan=None),
        plain=partial(linear.product, plan=Dequantized()),
        inputs=(_states(linear, SCALED_ROWS),),
        case=_case(linear),
        tolerance=SCALED_TOLERANCE,
    )
    return None if choice.prepare(trial) else Dequantized()


def _candidates(linear: LowBitLinear) -> Iterator[tuple[int, Sequence[Plan]]]:
    yield 1, vectors(linear.in_features, linear.codes_at_once)
    if linear.dtype is torch.float32:
        return  # which matrix units shorten
    for rows, tiles in TILES.items():
        yield rows, [_filling(linear, tile, rows) for tile in tiles]


def _filling(linear: LowBitLinear, tile: Tiles, rows: int) -> Tiles:
    """The same tiles with inputs shared out so far that every multiprocessor has work."""
    tiles = -(-linear.out_features // tile.outputs) * -(-rows // tile.rows)
    wanted = -(-TILES_PER_PROCESSOR * devices.processors(linear.codes.device) // tiles)
    # A share is worth its sum when it is longer than the tiles that are read ahead.
    return replace(tile, shares=max(1, min(wanted, linear.in_features // (4 * tile.inputs))))


def _trial(linear: LowBitLinear, rows: int, candidate: Plan, found: Plan | None) -> Trial:
    rounds_inputs = found is None and isinstance(linear, Fp8Linear)
    return Trial(
        f"products with {type(linear).__name__} of up to {rows} rows",
        fused=partial(linear.product, plan=candidate),
        plain=partial(linear.product, plan=found),
        inputs=(_states(linear, rows),),
        case=(_case(linear), rows, candidate, found),
        tolerance=SCALED_TOLERANCE if rounds_inputs else None,
        must_be_faster=True,
    )


def _states(linear: LowBitLinear, rows: int) -> Float[Tensor, "rows inputs"]:
    """Drawn without touching the random numbers of whoever loads a model."""
    device = linear.codes.device
    generator = torch.Generator(device).manual_seed(0)
    shape = rows, linear.in_features
    return torch.randn(shape, generator=generator, dtype=linear.dtype, device=device)
