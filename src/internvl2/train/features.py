"""The feature cache: what a frozen vision tower makes of a tile is computed once and kept on disk.

Workers look tiles up by their pixels (`data/tile_store.py`), so a changed picture is another tile.
Features lie in a folder named after everything that decides them, so other weights find nothing.
What a pack lacks is computed before its forward pass, and written by a thread meanwhile.
"""

import json
import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from internvl2 import device as devices
from internvl2.model.internvl import InternVL
from internvl2.model.vision import IMAGENET_MEAN, IMAGENET_STD
from internvl2.train.data.known_tiles import KnownFeatures
from internvl2.train.data.packing import TrainBatch
from internvl2.train.data.tile_store import TileStore
from internvl2.train.parallel import World
from internvl2.train.recipe import Recipe
from internvl2.train.sharding import is_divided, whole
from internvl2.train.step_loss import PackLoss

logger = logging.getLogger(__name__)

FORMAT = 1
"""To be raised when tiles come to mean something else to the tower."""
MOST_WAITING = 4
"""Packs whose features may wait in the host's memory to be written."""


class FeatureCache:
    """Features of a model's frozen tower, below a folder that runs and processes may share."""

    def __init__(self, loss: PackLoss, folder: Path, world: World) -> None:
        self._loss, self._world = loss, world
        model = loss.model
        config, weight = model.config, model.vision.patch_embedding.weight
        self._dtype = weight.dtype
        self._shape = (config.tokens_per_tile, config.vision.hidden_size * config.shuffle**2)
        size = self._shape[0] * self._shape[1] * weight.element_size()
        self.store = TileStore(folder / tower_fingerprint(model), size)
        if world.is_first:
            self.store.open()
        world.wait()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="features")
        self._writing: deque[Future[None]] = deque()

    def require_room(self, tiles: int) -> None:
        """Say what so many tiles take; raise, in every process, where the disk has less.

        `tiles` counts in the first process alone.
        """
        mine = [0, 0, 0]
        if self._world.is_first:
            mine = [tiles, self.store.count(), self.store.free_bytes()]
        tiles, known, free = map(int, self._world.sum(mine))
        needed = max(0, tiles - known) * self.store.entry_bytes
        told = (
            f"features of {tiles} tiles take {_gb(tiles * self.store.entry_bytes)} GB; those of "
            f"{known} tiles are in {self.store.folder}, whose disk has {_gb(free)} GB free"
        )
        if needed > free:
            raise ValueError(
                f"feature_cache: {told}; name a folder on a larger disk, lower max_tiles, or "
                "leave out feature_cache"
            )
        logger.info("feature cache: %s", told)

    @torch.no_grad()
    def completed(self, batch: TrainBatch) -> TrainBatch:
        """The pack with features for all of its tiles, those it lacked computed now.

        A divided tower is run by all processes for a pack, or by none.
        """
        known = batch.known
        if known is None or not known.room:
            return batch
        shape = (known.room, *self._shape)
        features = torch.zeros(shape, dtype=self._dtype, device=known.features.device)
        if len(known.features):
            stored = known.features.view(self._dtype).view(-1, *self._shape)
            features.index_copy_(0, known.places, stored)
        if self._anyone_lacks(known):
            computed = self._loss.tile_features(batch.tiles)[: len(known.keys)]
            features.index_copy_(0, known.missing, computed)
            self._write(known.keys, computed)
        return replace(batch, features=features)

    def finish(self) -> None:
        """Wait until everything that was computed is written; raises what went wrong there."""
        while self._writing:
            self._writing.popleft().result()

    def close(self) -> None:
        """End the thread, once it has nothing to write."""
        self._thread.shutdown(wait=True)

    def _anyone_lacks(self, known: KnownFeatures) -> bool:
        lacking = len(known.keys)
        return bool(self._world.sum([lacking])[0] if is_divided(self._loss) else lacking)

    def _write(self, keys: Sequence[bytes], computed: Float[Tensor, "tiles visual wide"]) -> None:
        while len(self._writing) >= MOST_WAITING:
            self._writing.popleft().result()
        device = computed.device
        streams = devices.copies_by_itself(device)
        copy = torch.empty(computed.shape, dtype=computed.dtype, pin_memory=streams)
        copy.copy_(computed, non_blocking=streams)
        stream = torch.get_device_module(device).current_stream(device) if streams else None
        copied = None if stream is None else stream.record_event()
        self._writing.append(self._thread.submit(_keep, self.store, keys, copy, copied))


def open_cache(recipe: Recipe, loss: PackLoss, world: World) -> FeatureCache | None:
    """The cache that a recipe asks for; every process must ask."""
    if recipe.feature_cache is None:
        return None
    folder = Path(recipe.feature_cache)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"feature_cache = {folder} is a file; name a folder")
    return FeatureCache(loss, folder, world)


def tower_fingerprint(model: InternVL) -> str:
    """A name that is another one when anything that decides a tile's features is.

    Every process must ask where weights are divided.
    """
    config, tower = model.config, model.vision
    facts = {
        "format": FORMAT,
        "vision": asdict(config.vision),
        "layers": config.used_vision_layers,
        "tile_size": config.tile_size,
        "shuffle": [config.shuffle, config.ps_version],
        "normalisation": [IMAGENET_MEAN, IMAGENET_STD],
        "dtype": str(tower.patch_embedding.weight.dtype),
    }
    state = blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16)
    unused = tuple(f"layers.{n}." for n in range(config.used_vision_layers, len(tower.layers)))
    for name, parameter in tower.named_parameters():
        if not name.startswith(unused):
            state.update(name.encode())
            state.update(_raw(whole(parameter).cpu()).data)
    return state.hexdigest()


def _keep(
    store: TileStore, keys: Sequence[bytes], features: Tensor, copied: torch.Event | None
) -> None:
    """Writes a pack's features when they have come from the device."""
    if copied is not None:
        copied.synchronize()
    for key, values in dict(zip(keys, features, strict=True)).items():
        store.write(key, _raw(values))


def _raw(tensor: Tensor) -> np.ndarray:
    """The bytes of a tensor."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy()


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f}"
