"""Sizes of an engine, and what they ask of its memory."""

from dataclasses import dataclass

import torch

from internvl2.engine.memory import MemoryRequest


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Sizes of an engine; None leaves the choice to it."""

    max_context: int | None = None
    """Most tokens of a conversation and its answer; None takes what the model was made for."""
    max_sequences: int | None = None
    """Most answers written at the same time; None takes 64 on an accelerator and 8 on a CPU."""
    cache_tokens: int | None = None
    """Size of the key-value cache; None takes what fits (a modest share of it on a CPU)."""
    memory_share: float = 0.9
    """How much of an accelerator's free memory may be used."""
    max_batch_tokens: int | None = None
    """Most tokens of one step, longer prompts are cut; None takes 9216, enough for 32 frames of a
    video and what is written between them, or 2048 on a CPU."""
    block_size: int = 16
    """Tokens per block of the cache."""
    prefix_reuse: bool = True
    """Whether equal beginnings of conversations are computed once."""
    vision_cache_bytes: int = 256 * 2**20
    """Visual tokens kept for pictures that may come again; 0 keeps none."""
    tile_cache_bytes: int = 256 * 2**20
    """Tiles kept, in the host's memory, for pictures whose bytes may come again; 0 keeps none."""
    vision_tiles: int | None = None
    """Most tiles in one run of the vision tower; None takes 32, or 4 on a CPU."""
    graphs: bool | None = None
    """Whether steps of written tokens, and runs of the tower over few tiles, are recorded as CUDA
    graphs; None does so on a GPU."""
    device_cutting: bool | None = None
    """Whether pictures are resized and cut on the device, into the same tiles; None does so on a
    GPU. Larger ones than a dozen megapixels are cut by the host everywhere."""

    def memory_request(self, device: torch.device) -> MemoryRequest:
        """What an engine on this device should hold, its usual sizes filled in."""
        is_cpu = device.type == "cpu"
        return MemoryRequest(
            max_sequences=_or_usual(self.max_sequences, 8 if is_cpu else 64),
            max_batch_tokens=_or_usual(self.max_batch_tokens, 2048 if is_cpu else 9216),
            vision_tiles=_or_usual(self.vision_tiles, 4 if is_cpu else 32),
            vision_cache_bytes=self.vision_cache_bytes,
            block_size=self.block_size,
            max_context=self.max_context,
            cache_tokens=self.cache_tokens,
            memory_share=self.memory_share,
            records=_on_gpu("graphs", self.graphs, device),
            cuts=_on_gpu("device_cutting", self.device_cutting, device),
        )


def _on_gpu(name: str, wanted: bool | None, device: torch.device) -> bool:
    """Whether to do what only GPUs can, or ValueError where it is wanted and cannot be."""
    if wanted and device.type != "cuda":
        raise ValueError(f"the option {name} needs a CUDA device; this engine is on {device}")
    return device.type == "cuda" if wanted is None else wanted


def _or_usual(value: int | None, usual: int) -> int:
    return usual if value is None else value
