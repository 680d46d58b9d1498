"""Pictures on their way to the tower: as few arrays as they lie in, each encoded once."""

import pytest
import torch

from internvl2.engine.scheduler import Chunk
from internvl2.engine.sequence import SamplingParams, Sequence
from internvl2.engine.tile_encoder import TileEncoder
from internvl2.engine.vision_cache import VisionCache


class Sums(TileEncoder):
    """A tower that makes one visual token of a tile, the sum of its pixels."""

    def __init__(self):
        self.given = []

    def encode(self, pictures):
        self.given.append([len(tiles) for tiles in pictures])
        return [torch.tensor([[float(tile.sum())]]) for tiles in pictures for tile in tiles]


@pytest.fixture
def tower():
    return Sums()


def chunk_of(prompt, number=0):
    sequence = Sequence(number, prompt, SamplingParams(), frozenset(), 0, ())
    return Chunk(sequence, 0, len(prompt.token_ids))


def sums(chunk):
    tiles = chunk.sequence.prompt.tiles
    spans = chunk.sequence.prompt.media
    each = [tiles[span.first_tile : span.first_tile + span.num_tiles] for span in spans]
    return [[float(tile.sum()) for tile in some] for some in each]


def read(cache, chunk):
    return [rows[:, 0].tolist() for rows in cache.rows(chunk)]


def test_pictures_that_lie_side_by_side_go_to_the_tower_as_one_array(tower, make_prompt):
    cache = VisionCache(tower, max_bytes=0)
    chunks = [
        chunk_of(make_prompt([5], [(1, 2), (2, 1), (3, 1)]), 0),
        chunk_of(make_prompt([5], [(4, 3)]), 1),
    ]
    cache.prepare(chunks)
    assert tower.given == [[4, 3]]
    assert [read(cache, chunk) for chunk in chunks] == [sums(chunk) for chunk in chunks]


def test_a_known_picture_between_others_stays_behind(tower, make_prompt):
    cache = VisionCache(tower, max_bytes=2**20)
    cache.prepare([chunk_of(make_prompt([5], [(2, 1)]), 0)])
    chunk = chunk_of(make_prompt([5], [(1, 2), (2, 1), (3, 1), (4, 1)]), 1)
    cache.prepare([chunk])
    assert tower.given == [[1], [2, 2]]
    assert read(cache, chunk) == sums(chunk)


def test_a_picture_that_comes_twice_is_encoded_once(tower, make_prompt):
    cache = VisionCache(tower, max_bytes=0)
    chunk = chunk_of(make_prompt([5], [(1, 1), (2, 1), (1, 1), (3, 2)]))
    cache.prepare([chunk])
    assert tower.given == [[2, 2]]
    assert cache.num_encoded == 4
    assert read(cache, chunk) == sums(chunk)
