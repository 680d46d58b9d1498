"""What the frozen vision tower made of tiles, on disk: a file per tile, found by the tile's pixels.

A file is written under another name and renamed when it is whole, so that any number of processes
may read and write at once and a killed one leaves nothing half done. It ends in a checksum; a
damaged one counts as missing, and is written anew.
"""

import logging
import os
import shutil
import time
import uuid
import zlib
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

logger = logging.getLogger(__name__)

KEY_BYTES = 20
CHECKSUM_BYTES = 4
PARTIAL = ".partial"
ABANDONED_SECONDS = 3600
"""A file that is still partial after so long belongs to a process that was killed."""


@dataclass(frozen=True, slots=True)
class TileStore:
    """Features of one vision tower; may be sent to worker processes."""

    folder: Path
    entry_bytes: int
    """Size of what is kept of a tile."""

    def open(self) -> None:
        """Make the folder, and remove what killed processes left in it."""
        partial = self.folder / PARTIAL
        partial.mkdir(parents=True, exist_ok=True)
        for file in partial.iterdir():
            if time.time() - file.stat().st_mtime > ABANDONED_SECONDS:
                file.unlink(missing_ok=True)

    def read(self, key: bytes, values: UInt8[np.ndarray, " bytes"]) -> bool:
        """Fill `values` with what is kept under a key; False where nothing intact is."""
        path = self._path(key)
        try:
            with path.open("rb", buffering=0) as file:
                size = file.readinto(values.data)
                checksum = file.read(CHECKSUM_BYTES + 1)
        except FileNotFoundError:
            return False
        if size != self.entry_bytes or checksum != _checksum(values):
            logger.warning("%s is damaged; its tile is encoded again", path)
            return False
        return True

    def write(self, key: bytes, values: UInt8[np.ndarray, " bytes"]) -> None:
        """Keep something under a key; a folder that was deleted meanwhile is made again."""
        if len(values) != self.entry_bytes:
            raise ValueError(f"{len(values)} bytes to keep of a tile, not {self.entry_bytes}")
        path, partial = self._path(key), self.folder / PARTIAL / uuid.uuid4().hex
        try:
            for folder in (partial.parent, path.parent):
                folder.mkdir(parents=True, exist_ok=True)
            with partial.open("xb") as file:
                file.write(values.data)
                file.write(_checksum(values))
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise OSError(
                error.errno, f"features of a tile were not written to {path}: {error.strerror}"
            ) from error

    def count(self) -> int:
        """How many tiles are known."""
        shelves = (shelf for shelf in self.folder.iterdir() if shelf.name != PARTIAL)
        return sum(len(os.listdir(shelf)) for shelf in shelves if shelf.is_dir())

    def free_bytes(self) -> int:
        """Room on the disk."""
        return shutil.disk_usage(self.folder).free

    def _path(self, key: bytes) -> Path:
        name = key.hex()
        return self.folder / name[:2] / name[2:]


def tile_key(tile: UInt8[np.ndarray, "size size 3"]) -> bytes:
    """A hash of a tile's pixels: a changed picture, budget or way to cut gives another key."""
    return blake2b(np.ascontiguousarray(tile).data, digest_size=KEY_BYTES).digest()


def _checksum(values: UInt8[np.ndarray, " bytes"]) -> bytes:
    return zlib.crc32(values.data).to_bytes(CHECKSUM_BYTES, "little")
