"""What `training.py` trains on: random samples of one step, in the packs that our planner makes."""

from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from internvl2.config import InternVLConfig
from internvl2.family import find
from internvl2.processing.prompt import MediaSpan, Prompt
from internvl2.train.data.filling import Costs, Limits, Waiting, plan_packs
from internvl2.train.data.packing import (
    Sample,
    TrainBatch,
    pack_samples,
    tile_buckets,
    with_tile_bucket,
)
from internvl2.train.monitoring.flops import Flops, pack_flops
from internvl2.train.recipe import Recipe

LIMITS = Limits(tokens=8192, tiles=30)
TILES_PER_SAMPLE = (1, 3, 4, 5, 6, 7)
TEXT_TOKENS = (100, 320)
LEARNED_SHARE = 0.85
"""Of a sample's text; a tenth of its tokens, since most of them are visual."""


def shape(member: str, tiny: bool) -> InternVLConfig:
    """A released shape of InternVL2, or one of its kind for machines without a GPU."""
    config = find(f"internvl2-{member}").config
    if not tiny:
        return config
    vision = replace(
        config.vision,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        intermediate_size=64,
        image_size=64,
        patch_size=8,
    )
    decoder = replace(
        config.decoder,
        vocab_size=512,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        intermediate_size=64,
    )
    return replace(config, vision=vision, decoder=decoder, tile_size=64, image_token_id=500)


@dataclass(frozen=True)
class Work:
    """The samples of one optimizer step, in the packs that our planner made of them."""

    config: InternVLConfig
    limits: Limits
    packs: tuple[tuple[Sample, ...], ...]

    @classmethod
    def make(
        cls, config: InternVLConfig, packs: int, limits: Limits = LIMITS, seed: int = 0
    ) -> "Work":
        """The first packs of a long list of samples, as a run in full swing meets them."""
        smaller = 256 // config.tokens_per_tile
        limits = replace(limits, tokens=limits.tokens // smaller)
        random = np.random.default_rng(seed)
        tiles = random.choice(TILES_PER_SAMPLE, 32 * packs)
        text = random.integers(*TEXT_TOKENS, 32 * packs) // smaller
        lengths = tiles * config.tokens_per_tile + text
        sizes = [Waiting(i, int(lengths[i]), int(tiles[i])) for i in range(len(tiles))]
        plans = plan_packs(sizes, limits, Costs.of(config))[:packs]
        made = (tuple(_sample(config, sizes[i], seed) for i in plan.samples) for plan in plans)
        return cls(config, limits, tuple(made))

    def joined(self, number: int) -> "Work":
        """The same samples in packs of so many of these, as larger `packing` would have them."""
        groups = [self.packs[i : i + number] for i in range(0, len(self.packs), number)]
        limits = replace(
            self.limits, tokens=self.limits.tokens * number, tiles=self.limits.tiles * number
        )
        return Work(self.config, limits, tuple(tuple(chain(*group)) for group in groups))

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Of all packs."""
        return tuple(sample for pack in self.packs for sample in pack)

    @property
    def tokens(self) -> int:
        """Tokens of the samples; padding does not count."""
        return sum(len(sample.prompt.token_ids) for sample in self.samples)

    @property
    def tiles(self) -> int:
        """Tiles of the samples."""
        return sum(len(sample.prompt.tiles) for sample in self.samples)

    @property
    def learned(self) -> int:
        """Labelled tokens."""
        return sum(sum(sample.prompt.is_target) for sample in self.samples)

    def flops(self, recipe: Recipe) -> Flops:
        """What a step takes, whoever does it: no padding, no recomputation, labelled rows only."""
        lengths = [len(sample.prompt.token_ids) for sample in self.samples]
        counts = (lengths, self.tiles, self.learned)
        return pack_flops(self.config, recipe.kept, *counts, recipe.lora)

    def batches(self) -> list[TrainBatch]:
        """The packs as our trainer's loader gives them."""
        buckets = tile_buckets(self.limits.tiles)
        found = []
        for samples in self.packs:
            pack = pack_samples(samples, self.limits.tokens)
            bucket = next(size for size in buckets if size >= pack.num_tiles)
            found.append(TrainBatch.of(with_tile_bucket(pack, self.config.tile_size, bucket)))
        return found


def _sample(config: InternVLConfig, size: Waiting, seed: int) -> Sample:
    """Random words and pixels: a few words, a picture, a question and an answer."""
    image = config.image_token_id
    assert image is not None
    random = np.random.default_rng((seed, size.sample))
    visual = size.tiles * config.tokens_per_tile
    words = random.integers(1, image - 10, size.tokens - visual).tolist()
    ids = [*words[:2], *([image] * visual), *words[2:]]
    learned = int(LEARNED_SHARE * len(words))
    targets = [False] * (len(ids) - learned) + [True] * learned
    side = config.tile_size
    tiles = random.integers(0, 256, (size.tiles, side, side, 3), dtype=np.uint8)
    thumbnail = size.tiles > 1
    span = MediaSpan(2, 2 + visual, 0, size.tiles, size.tiles - thumbnail, 1, thumbnail, b"")
    return Sample(Prompt(ids, targets, tiles, (span,)), f"sample {size.sample}")
