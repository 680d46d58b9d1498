"""Which tiles of a pack the feature cache knows, as arrays in a worker and as tensors later."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int64, UInt8

from internvl2.train.data.tile_store import TileStore, tile_key

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class KnownTiles:
    """Which of a pack's tiles need no vision tower, for what it made of them is stored."""

    features: UInt8[np.ndarray, "known bytes"]
    places: Int64[np.ndarray, " known"]
    """Numbers of those tiles in the pack."""
    missing: Int64[np.ndarray, " missing"]
    """Numbers of the others."""
    keys: tuple[bytes, ...]
    """Under which those are to be stored."""
    all_keys: tuple[bytes, ...]
    """Of all tiles of the pack's pictures, in order."""
    room: int
    """So many tiles the pack has together with the black ones of its bucket."""


@dataclass(frozen=True)
class KnownFeatures:
    """The same as tensors."""

    features: "torch.Tensor"
    """UInt8 [known, bytes]: numbers in the tower's format."""
    places: "torch.Tensor"
    missing: "torch.Tensor"
    keys: tuple[bytes, ...]
    all_keys: tuple[bytes, ...]
    room: int

    @classmethod
    def of(cls, known: KnownTiles) -> "KnownFeatures":
        """On the CPU."""
        import torch

        return cls(
            torch.from_numpy(known.features),
            torch.from_numpy(known.places),
            torch.from_numpy(known.missing),
            known.keys,
            known.all_keys,
            known.room,
        )

    def moved(self, move: "Callable[[torch.Tensor], torch.Tensor]") -> "KnownFeatures":
        """With all tensors moved."""
        return replace(
            self,
            features=move(self.features),
            places=move(self.places),
            missing=move(self.missing),
        )


def find_known(
    tiles: UInt8[np.ndarray, "tiles size size 3"], store: TileStore, room: int
) -> KnownTiles:
    """Look every tile up."""
    keys = [tile_key(tile) for tile in tiles]
    features = np.empty((len(tiles), store.entry_bytes), np.uint8)
    places: list[int] = []
    for place, key in enumerate(keys):
        if store.read(key, features[len(places)]):
            places.append(place)
    missing = sorted(set(range(len(tiles))) - set(places))
    return KnownTiles(
        features=features[: len(places)],
        places=np.array(places, np.int64),
        missing=np.array(missing, np.int64),
        keys=tuple(keys[place] for place in missing),
        all_keys=tuple(keys),
        room=room,
    )
