"""What weights, cache and activations take, and how large a cache fits into free memory.

Decided from the config before anything is loaded, so that what cannot fit fails early and says
what would.
"""

from bisect import bisect_left
from dataclasses import dataclass, replace

import torch

from internvl2.config import InternVLConfig, Quantization
from internvl2.engine.activations import StepSizes, step_bytes
from internvl2.engine.batch_sizes import sizes_up_to
from internvl2.engine.device_cutter import RESERVED_BYTES
from internvl2.engine.tile_encoder import recorded_sizes
from internvl2.model.internvl import InternVL
from internvl2.model.low_bit import quantize_for_answers, stored_bytes
from internvl2.model.tensor_parallel import DividedInternVL, Share

GIB = 2**30
CPU_CACHE_TOKENS = 32768
CPU_CACHE_BYTES = 2 * GIB
USUAL_CONTEXT = 4096
"""A picture of 13 tiles, a question and an answer; an engine with less is of little use."""


class NotEnoughMemory(ValueError):
    """The model, its cache and a step's activations do not fit; the message says what would."""


@dataclass(frozen=True, slots=True)
class MemoryRequest:
    """What an engine should hold; None leaves the choice to the plan."""

    max_sequences: int
    max_batch_tokens: int
    vision_tiles: int
    vision_cache_bytes: int = 0
    """Visual tokens kept for pictures that may come again."""
    block_size: int = 16
    max_context: int | None = None
    cache_tokens: int | None = None
    memory_share: float = 0.9
    """How much of an accelerator's free memory may be used."""
    records: bool = False
    """Whether steps of written tokens and runs of the tower are recorded as CUDA graphs."""
    cuts: bool = False
    """Whether pictures are cut on the device."""
    gathers: bool = False
    """Whether attention of these copies what it reads, for want of a kernel."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes per purpose, and the sizes that follow."""

    weight_bytes: int
    activation_bytes: int
    """Visual tokens that are kept, and the most that a step takes for a moment."""
    bytes_per_token: int
    num_blocks: int
    block_size: int
    max_context: int

    @property
    def cache_tokens(self) -> int:
        """Tokens whose keys and values are kept."""
        return self.num_blocks * self.block_size

    @property
    def cache_bytes(self) -> int:
        """Bytes of the cache tensors."""
        return self.cache_tokens * self.bytes_per_token


def count_parameters(config: InternVLConfig) -> int:
    """Parameters of a model of this config, counted without making it."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in InternVL(config).parameters())


def weight_bytes(
    config: InternVLConfig,
    dtype: torch.dtype,
    quantization: Quantization | None,
    share: Share | None = None,
) -> int:
    """What the weights of a model take, its decoder's in fewer bits where they are held so.

    With a share, what one of several processes holds of them.
    """
    with torch.device("meta"):
        model = InternVL(config) if share is None else DividedInternVL(config, share)
        model.to(dtype)
    if quantization is not None:
        quantize_for_answers(model, quantization)
    return stored_bytes(model)


def plan(
    config: InternVLConfig,
    dtype: torch.dtype,
    device: torch.device,
    free_bytes: int,
    request: MemoryRequest,
    *,
    is_loaded: bool = False,
    quantization: Quantization | None = None,
    share: Share | None = None,
) -> MemoryPlan:
    """How to divide `free_bytes` of a device, or NotEnoughMemory.

    A model that `is_loaded` has its weights in place already. With a share, it is about the device
    of one of several processes that divide the model.
    """
    _check(request)
    weights = 0 if is_loaded else weight_bytes(config, dtype, quantization, share)
    config = config if share is None else share.config(config)
    usable = int(free_bytes * (1.0 if device.type == "cpu" else request.memory_share))
    needs = _Needs(config, dtype, device, request, weights, usable, quantization)
    context = request.max_context or longest_context(config)
    wanted = _wanted_tokens(request, context, needs.per_token, device)
    needed = _needed_tokens(request, context)
    most = needs.most_blocks(context, wanted // request.block_size)
    if most * request.block_size < needed // request.block_size * request.block_size:
        raise NotEnoughMemory(_explain(needs, context, needed, most * request.block_size))
    activations = needs.activations(min(context, most * request.block_size))
    return MemoryPlan(weights, activations, needs.per_token, most, request.block_size, context)


def longest_context(config: InternVLConfig) -> int:
    """Most tokens of a sequence unless asked otherwise.

    Rotary kinds that adapt to the length have no hard limit, only what they were trained for.
    """
    limit = config.decoder.max_positions
    return limit if config.decoder.rotary.kind == "plain" else max(limit, 8192)


@dataclass(frozen=True)
class _Needs:
    """What is to be held, and the bytes there are for it."""

    config: InternVLConfig
    dtype: torch.dtype
    device: torch.device
    request: MemoryRequest
    weights: int
    usable: int
    quantization: Quantization | None

    @property
    def per_token(self) -> int:
        """Keys and values of all layers, and the copy of two layers' that attention gathers."""
        decoder = self.config.decoder
        layer = 2 * decoder.num_kv_heads * decoder.head_dim * self.dtype.itemsize
        return (decoder.num_layers + 2) * layer

    def activations(self, context: int) -> int:
        """Bytes that are neither weights nor keys and values, for sequences so long."""
        request = self.request
        recordings, tile_sizes = 0, (0,)
        if request.records:
            tile_sizes = recorded_sizes(request.vision_tiles)
            # Each size of a batch with every way to choose tokens.
            recordings = 4 * len(sizes_up_to(request.max_sequences)) + len(tile_sizes)
        sizes = StepSizes(
            request.max_batch_tokens,
            request.max_sequences,
            request.vision_tiles,
            context,
            recordings,
            request.gathers,
            tile_sizes[-1],
            self.quantization,
        )
        steps = step_bytes(self.config, self.dtype, self.device, sizes)
        return steps + request.vision_cache_bytes + (RESERVED_BYTES if request.cuts else 0)

    def most_blocks(self, context: int, wanted: int) -> int:
        """Blocks that fit, of those wanted; no sequence is longer than all of them."""
        size = self.request.block_size

        def excess(blocks: int) -> int:
            activations = self.activations(min(context, blocks * size))
            return self.weights + activations + blocks * size * self.per_token - self.usable

        return max(0, bisect_left(range(wanted + 1), 1, key=excess) - 1)


def _check(request: MemoryRequest) -> None:
    for name in ("max_sequences", "max_batch_tokens", "vision_tiles", "block_size"):
        if getattr(request, name) < 1:
            raise ValueError(f"{name} is {getattr(request, name)}; it must be at least 1")
    for name in ("max_context", "cache_tokens"):
        value = getattr(request, name)
        if value is not None and value < request.block_size:
            raise ValueError(
                f"{name} is {value}; it must be at least one cache block of {request.block_size}"
            )
    if not 0 < request.memory_share <= 1:
        raise ValueError(f"memory_share is {request.memory_share}; it must be above 0, at most 1")


def _wanted_tokens(
    request: MemoryRequest, context: int, per_token: int, device: torch.device
) -> int:
    if request.cache_tokens is not None:
        return request.cache_tokens
    most = -(-context // request.block_size) * request.block_size * request.max_sequences
    if device.type != "cpu":
        return most
    modest = min(CPU_CACHE_TOKENS, CPU_CACHE_BYTES // per_token)
    return min(most, max(modest, _needed_tokens(request, context)))


def _needed_tokens(request: MemoryRequest, context: int) -> int:
    """Fewer tokens than this are not worth starting with."""
    if request.cache_tokens is not None:
        return request.cache_tokens
    needed = context if request.max_context is not None else min(context, USUAL_CONTEXT)
    return -(-needed // request.block_size) * request.block_size


def _explain(needs: _Needs, context: int, needed: int, most: int) -> str:
    request, weights, usable = needs.request, needs.weights, needs.usable
    activations, cache = needs.activations(min(context, needed)), needed * needs.per_token
    total = weights + activations + cache
    advice = []
    if most >= 512 and request.cache_tokens is not None:
        advice.append(f"a cache of at most {most} tokens (cache_tokens)")
    elif most >= 512:
        advice.append(f"a context of at most {most} tokens (max_context)")
    half = replace(needs, dtype=torch.bfloat16, weights=weights // 2)
    halved = half.activations(min(context, needed)) + half.weights + needed * half.per_token
    if weights and needs.dtype.itemsize == 4 and halved <= usable:
        advice.append(f"dtype bfloat16 (weights {half.weights / GIB:.2f} GiB)")
    advice.append("fewer sequences or a smaller member of the family")
    return (
        f"not enough memory on {needs.device}: {weights / GIB:.2f} GiB of weights, "
        f"{activations / GIB:.2f} GiB of activations and {cache / GIB:.2f} GiB of "
        f"cache for {needed} tokens make {total / GIB:.2f} GiB; {usable / GIB:.2f} GiB can be "
        f"used. What would fit: {'; '.join(advice)}"
    )
