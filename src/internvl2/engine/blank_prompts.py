"""Prompts that say nothing, for an engine that gets ready before anybody asks it."""

from collections.abc import Iterator

import numpy as np

from internvl2.config import InternVLConfig
from internvl2.engine.tile_encoder import recorded_sizes
from internvl2.processing.prompt import MediaSpan, Prompt


def shortest_prompt(config: InternVLConfig) -> Prompt:
    """A single token."""
    side = config.tile_size
    return Prompt([0], [False], np.zeros((0, side, side, 3), np.uint8))


def tower_prompts(config: InternVLConfig, max_tiles: int, longest: int) -> Iterator[Prompt]:
    """Pictures that have the tower record its runs: two of each size, the largest first.

    A run is recorded when its size comes for the second time. No prompt has `longest` tokens.
    """
    for tiles in reversed(recorded_sizes(max_tiles)):
        tokens, side = tiles * config.tokens_per_tile, config.tile_size
        if tokens + 1 >= longest:
            continue
        for time in range(2):
            pixels = np.zeros((tiles, side, side, 3), np.uint8)
            known = f"blank {time} {tiles}".encode()
            span = MediaSpan(0, tokens, 0, tiles, tiles, 1, thumbnail=False, digest=known)
            yield Prompt([0] * (tokens + 1), [False] * (tokens + 1), pixels, (span,))
