"""Tiles of recent pictures, so that a picture which comes again is not decoded again.

A picture is known by the bytes that it is made of, before anything is decoded, and by how it is
cut. The least recently used are dropped first.
"""

import hashlib
import threading
from collections import OrderedDict

import numpy as np
from jaxtyping import UInt8

Tiles = UInt8[np.ndarray, "tiles size size 3"]


class TileCache:
    """Tiles by key, at most so many bytes of them; any thread may ask."""

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ValueError(f"the tile cache has {max_bytes} bytes; it must have 0 or more")
        self._max_bytes = max_bytes
        self._tiles: OrderedDict[bytes, Tiles] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """What is kept."""
        return self._num_bytes

    def find(self, key: bytes) -> Tiles | None:
        """The tiles of a picture seen before; shared, not to be written to."""
        with self._lock:
            tiles = self._tiles.get(key)
            if tiles is not None:
                self._tiles.move_to_end(key)
            return tiles

    def keep(self, key: bytes, tiles: Tiles) -> None:
        """Remembers tiles, unless they alone are too many."""
        with self._lock:
            if key in self._tiles or tiles.nbytes > self._max_bytes:
                return
            self._tiles[key] = tiles
            self._num_bytes += tiles.nbytes
            while self._num_bytes > self._max_bytes:
                _, dropped = self._tiles.popitem(last=False)
                self._num_bytes -= dropped.nbytes


def digest_of_bytes(content: bytes | memoryview) -> bytes:
    """A hash of a file's bytes; most processors have instructions for this one."""
    return hashlib.sha256(content).digest()


def digest(tiles: np.ndarray) -> bytes:
    """A hash of tiles: equal for equal pixels in equal shapes."""
    shape = repr(tiles.shape).encode()
    state = hashlib.sha256(len(shape).to_bytes(8, "little") + shape)
    state.update(np.ascontiguousarray(tiles).data)
    return state.digest()
