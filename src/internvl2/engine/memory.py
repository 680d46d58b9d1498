"""What weights, cache and activations take, and how large a cache fits into free memory.

Decided from the config before anything is loaded, so that what cannot fit fails early and says
what would.
"""

from dataclasses import dataclass

import torch

from internvl2.config import InternVLConfig, Quantization
from internvl2.model.internvl import InternVL
from internvl2.model.low_bit import quantize_for_answers, stored_bytes

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
    block_size: int = 16
    max_context: int | None = None
    cache_tokens: int | None = None
    memory_share: float = 0.9
    """How much of an accelerator's free memory may be used."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes per purpose, and the sizes that follow."""

    weight_bytes: int
    activation_bytes: int
    """Most that the vision tower or a step of the decoder takes for a moment."""
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
    config: InternVLConfig, dtype: torch.dtype, quantization: Quantization | None
) -> int:
    """What the weights of a model take, its decoder's in fewer bits where they are held so."""
    with torch.device("meta"):
        model = InternVL(config).to(dtype)
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
) -> MemoryPlan:
    """How to divide `free_bytes` of a device, or NotEnoughMemory.

    A model that `is_loaded` has its weights in place already.
    """
    _check(request)
    weights = 0 if is_loaded else weight_bytes(config, dtype, quantization)
    activations = _activation_bytes(config, dtype, request)
    per_token = _bytes_per_token(config, dtype)
    context = request.max_context or longest_context(config)
    usable = int(free_bytes * (1.0 if device.type == "cpu" else request.memory_share))
    room = max(0, usable - weights - activations) // per_token
    wanted = _wanted_tokens(request, context, per_token, device)
    needed = _needed_tokens(request, context)
    if room < needed:
        raise NotEnoughMemory(
            _explain(weights, activations, needed, per_token, usable, dtype, device, request)
        )
    num_blocks = max(1, min(wanted, room) // request.block_size)
    return MemoryPlan(weights, activations, per_token, num_blocks, request.block_size, context)


def longest_context(config: InternVLConfig) -> int:
    """Most tokens of a sequence unless asked otherwise.

    Rotary kinds that adapt to the length have no hard limit, only what they were trained for.
    """
    limit = config.decoder.max_positions
    return limit if config.decoder.rotary.kind == "plain" else max(limit, 8192)


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


def _bytes_per_token(config: InternVLConfig, dtype: torch.dtype) -> int:
    """Keys and values of all layers, and the copy of two layers' that attention gathers."""
    decoder = config.decoder
    layer = 2 * decoder.num_kv_heads * decoder.head_dim * dtype.itemsize
    return (decoder.num_layers + 2) * layer


def _activation_bytes(config: InternVLConfig, dtype: torch.dtype, request: MemoryRequest) -> int:
    """Estimates from above; the vision tower and the decoder do not run at the same time."""
    decoder = config.decoder
    tile = config.peak_values_per_tile * dtype.itemsize
    width = 4 * decoder.hidden_size + 4 * decoder.num_heads * decoder.head_dim
    token = (width + 3 * decoder.intermediate_size) * dtype.itemsize
    logits = 3 * 4 * decoder.vocab_size * request.max_sequences
    return max(tile * request.vision_tiles, token * request.max_batch_tokens + logits)


def _explain(
    weights: int,
    activations: int,
    needed: int,
    per_token: int,
    usable: int,
    dtype: torch.dtype,
    device: torch.device,
    request: MemoryRequest,
) -> str:
    total = weights + activations + needed * per_token
    blocks = (usable - weights - activations) // (per_token * request.block_size)
    most = blocks * request.block_size
    advice = []
    if most >= 512 and request.cache_tokens is not None:
        advice.append(f"a cache of at most {most} tokens (cache_tokens)")
    elif most >= 512:
        advice.append(f"a context of at most {most} tokens (max_context)")
    halved = total - (weights + needed * per_token) / 2
    if weights and dtype.itemsize == 4 and halved <= usable:
        advice.append(f"dtype bfloat16 (weights {weights / 2 / GIB:.2f} GiB)")
    advice.append("fewer sequences or a smaller member of the family")
    return (
        f"not enough memory on {device}: {weights / GIB:.2f} GiB of weights, "
        f"{activations / GIB:.2f} GiB of activations and {needed * per_token / GIB:.2f} GiB of "
        f"cache for {needed} tokens make {total / GIB:.2f} GiB; {usable / GIB:.2f} GiB can be "
        f"used. What would fit: {'; '.join(advice)}"
    )
