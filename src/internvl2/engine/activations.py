"""What the largest steps take beside weights and cache, estimated from above.

A step encodes pictures, then runs the decoder, then chooses tokens; visual tokens outlast the tower
that makes them. `tests/engine/test_memory_peak.py` compares this with what an allocator counts.
"""

from dataclasses import dataclass

import torch

from internvl2.config import InternVLConfig, Quantization
from internvl2.engine.batch_sizes import MOST_PADDING

FP8_BYTES = 16
"""Per number of a token that is rounded to fp8: its magnitude, the quotient, that in bounds."""
SAMPLING_BYTES = 64
"""Per row and token of the vocabulary: logits, penalties, sorted values, noise."""
RECORDING_BYTES = 8 * 2**20
"""What a CUDA graph of some hundred kernels keeps for itself; an estimate from above."""
UPLOADS = 2
"""Batches of tiles on the device that come and are read in turns."""
WORKSPACE_BYTES = 64 * 2**20
"""What libraries keep for products on the stream that graphs are recorded on."""


@dataclass(frozen=True, slots=True)
class StepSizes:
    """How large a step can be."""

    batch_tokens: int
    sequences: int
    vision_tiles: int
    context: int
    """Tokens of the longest sequence."""
    recordings: int = 0
    """CUDA graphs that steps of written tokens and runs of the tower may be recorded as."""
    gathers: bool = False
    """Whether attention copies what written tokens read, where no kernel reads it in its place."""
    recorded_tiles: int = 0
    """Tiles of the largest recorded run of the tower."""
    quantization: Quantization | None = None
    """How the decoder's matrices are held."""


def step_bytes(
    config: InternVLConfig, dtype: torch.dtype, device: torch.device, sizes: StepSizes
) -> int:
    """Most bytes that a step takes for a moment; the cache of visual tokens comes on top."""
    features = _feature_bytes(config, dtype, sizes)
    tower = _tower_bytes(config, dtype) * sizes.vision_tiles
    # Encoded pictures exist twice while they are taken apart.
    steps = features + max(tower, features, _decoder_bytes(config, dtype, device, sizes))
    if device.type == "cuda":
        steps += UPLOADS * sizes.vision_tiles * 3 * config.tile_size**2
    steps += _product_bytes(config, dtype, device, sizes)
    return steps + (_recorded_bytes(config, dtype, sizes) if sizes.recordings else 0)


def _feature_bytes(config: InternVLConfig, dtype: torch.dtype, sizes: StepSizes) -> int:
    """Visual tokens of the pictures that a step reads from.

    Beyond the step's own tokens that is what the longest sequence has read so far, and the rest of
    the picture in which the step ends.
    """
    tokens = sizes.batch_tokens + 2 * sizes.context
    return tokens * config.decoder.hidden_size * dtype.itemsize


def _tower_bytes(config: InternVLConfig, dtype: torch.dtype) -> int:
    """A tile on its way through the vision tower and the projector."""
    pixels = 3 * config.tile_size**2
    normalizing = pixels * (1 + 2 * torch.float32.itemsize + dtype.itemsize)
    wide = config.vision.hidden_size * config.shuffle**2
    projecting = config.tokens_per_tile * (3 * wide + 3 * config.decoder.hidden_size)
    values = max(config.peak_values_per_tile, projecting)
    return normalizing + (values + pixels) * dtype.itemsize


def _decoder_bytes(
    config: InternVLConfig, dtype: torch.dtype, device: torch.device, sizes: StepSizes
) -> int:
    mask = 0
    if not (device.type == "cuda" and dtype.itemsize == 2):
        # Who sees whom, made and turned round as truth values, then added as numbers.
        mask = sizes.batch_tokens * sizes.context * (2 + dtype.itemsize)
    sampling = SAMPLING_BYTES * config.decoder.vocab_size * sizes.sequences
    return _token_bytes(config, dtype) * sizes.batch_tokens + mask + sampling


def _product_bytes(
    config: InternVLConfig, dtype: torch.dtype, device: torch.device, sizes: StepSizes
) -> int:
    """What the largest product makes of a matrix in few bits, or of the tokens for one in fp8."""
    decoder = config.decoder
    if sizes.quantization is None:
        return 0
    if sizes.quantization == "fp8":
        return sizes.batch_tokens * decoder.intermediate_size * FP8_BYTES
    # On CUDA devices gate and up are one matrix.
    matrices = 2 if device.type == "cuda" else 1
    numbers = matrices * decoder.hidden_size * decoder.intermediate_size
    copies = {"int8": 1, "int4": 3}[sizes.quantization]
    return numbers * copies * dtype.itemsize


def _recorded_bytes(config: InternVLConfig, dtype: torch.dtype, sizes: StepSizes) -> int:
    """Memory that recorded steps keep between them, since their addresses must not change.

    The batches of all sizes share one pool, in which pieces of different sizes leave gaps.
    """
    decoder = config.decoder
    logits = decoder.vocab_size * (dtype.itemsize + 2 * torch.float32.itemsize)
    tables = sizes.context * torch.int64.itemsize
    rows = sizes.sequences + MOST_PADDING
    batches = rows * (2 * (_token_bytes(config, dtype) + logits) + tables)
    if sizes.gathers:
        # Keys and values, as they are gathered and as they are multiplied, of all widths together.
        token = 4 * decoder.num_kv_heads * decoder.head_dim * dtype.itemsize
        batches += 2 * rows * sizes.context * token
    batches += _recorded_tower_bytes(config, dtype, sizes.recorded_tiles)
    return batches + sizes.recordings * RECORDING_BYTES + WORKSPACE_BYTES


def _recorded_tower_bytes(config: InternVLConfig, dtype: torch.dtype, tiles: int) -> int:
    """Runs of the tower: smaller ones find room where the largest has computed, but for gaps."""
    encoded = config.tokens_per_tile * config.decoder.hidden_size * dtype.itemsize
    tile = _tower_bytes(config, dtype) + 3 * config.tile_size**2 + encoded
    return (tiles + tiles // 4) * tile


def _token_bytes(config: InternVLConfig, dtype: torch.dtype) -> int:
    """A token on its way through a layer."""
    decoder = config.decoder
    width = 4 * decoder.hidden_size + 4 * decoder.num_heads * decoder.head_dim
    return (width + 3 * decoder.intermediate_size) * dtype.itemsize
