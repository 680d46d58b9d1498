"""Features of tiles on disk are whole or missing, whoever writes them and however it ends."""

import os
import shutil
import time

import numpy as np
import pytest

from internvl2.train.data.tile_store import PARTIAL, TileStore, tile_key

KEY = b"k" * 20


@pytest.fixture
def store(tmp_path) -> TileStore:
    store = TileStore(tmp_path / "tower", 8)
    store.open()
    return store


def kept(store: TileStore) -> list[int] | None:
    """What is found under the key."""
    found = np.zeros(8, np.uint8)
    return found.tolist() if store.read(KEY, found) else None


def values(number: int = 0) -> np.ndarray:
    return np.arange(number, number + 8, dtype=np.uint8)


def test_what_was_kept_is_found_by_every_store_of_the_folder(store):
    assert kept(store) is None
    store.write(KEY, values())
    assert kept(TileStore(store.folder, 8)) == values().tolist()
    assert store.count() == 1


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b"\xff" + b[1:], lambda b: b""]
)
def test_a_damaged_file_counts_as_missing_until_it_is_written_anew(store, damage, caplog):
    store.write(KEY, values())
    (file,) = store.folder.glob("??/*")
    file.write_bytes(damage(file.read_bytes()))
    assert kept(store) is None
    assert "is damaged; its tile is encoded again" in caplog.text
    store.write(KEY, values())
    assert kept(store) == values().tolist()


def test_what_a_killed_process_left_is_never_read_and_goes_after_an_hour(store):
    fresh, old = (store.folder / PARTIAL / name for name in ("fresh", "old"))
    for file in (fresh, old):
        file.write_bytes(b"half")
    os.utime(old, (0, time.time() - 4000))
    store.open()
    assert [file.name for file in (store.folder / PARTIAL).iterdir()] == ["fresh"]
    assert store.count() == 0


def test_a_folder_that_was_deleted_is_made_again(store):
    shutil.rmtree(store.folder)
    assert kept(store) is None
    store.write(KEY, values())
    assert kept(store) == values().tolist()


def test_a_full_disk_is_named_and_leaves_nothing(store, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match=r"features of a tile were not written to .*No space left"):
        store.write(KEY, values())
    assert not list((store.folder / PARTIAL).iterdir())


def test_tiles_are_known_by_their_pixels():
    tile = np.zeros((4, 4, 3), np.uint8)
    other = tile.copy()
    other[3, 3, 2] = 1
    assert tile_key(tile) == tile_key(tile.copy()) != tile_key(other)
