"""A picture that was cut before is known by its bytes, and neither decoded nor cut again."""

import io
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from internvl2.config import DecoderConfig, InternVLConfig, RotaryConfig, VisionConfig
from internvl2.processing import media
from internvl2.processing.conversation import Picture
from internvl2.processing.image import Grid, PictureOptions, choose_grid
from internvl2.processing.media import MediaReader
from internvl2.processing.pixels import EncodedPicture, MediaError
from internvl2.processing.tile_cache import TileCache

CONFIG = InternVLConfig(
    VisionConfig(16, 1, 2, 32, image_size=56),
    DecoderConfig("qwen2", 1000, 16, 1, 2, 2, 8, 32, 4096, RotaryConfig(1e4)),
    "internvl2_5",
    tile_size=56,
)


@pytest.fixture
def work(monkeypatch):
    """How often pictures were decoded and cut."""
    counts = Counter()
    decode, cut = EncodedPicture.decode, media.cut

    def counted_decode(self):
        counts["decoded"] += 1
        return decode(self)

    def counted_cut(*arguments):
        counts["cut"] += 1
        return cut(*arguments)

    monkeypatch.setattr(EncodedPicture, "decode", counted_decode)
    monkeypatch.setattr(media, "cut", counted_cut)
    return counts


def photo(width=120, height=60, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def encoded(image, kind="PNG", **details):
    file = io.BytesIO()
    image.save(file, kind, **details)
    return file.getvalue()


def reader_of(max_bytes=2**20, config=CONFIG, **options):
    return MediaReader(config, PictureOptions(**options), TileCache(max_bytes))


def shown(reader, source, grid=None):
    (opened,) = reader.open(Picture(source), 6)
    return reader.cut(opened, grid or choose_grid(*opened.size, 56, 1, 6), digests=True)


def test_the_same_bytes_are_decoded_and_cut_once_wherever_they_come_from(work, tmp_path):
    content = encoded(photo())
    path = tmp_path / "a.png"
    path.write_bytes(content)
    reader = reader_of()
    first, *others = [shown(reader, source) for source in (content, path, str(path))]
    assert work == {"decoded": 1, "cut": 1}
    assert all(other.digest == first.digest for other in others)
    assert all((other.tiles == first.tiles).all() for other in others)


def test_a_picture_of_pillow_is_known_by_its_pixels(work):
    reader = reader_of()
    first, again, other = (shown(reader, photo(seed=seed)) for seed in (1, 1, 2))
    assert first.digest == again.digest != other.digest
    assert work == {"cut": 2}


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_kept_tiles_are_those_that_a_reader_without_a_cache_cuts(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(photo(), kind, exif=exif)
    for config in (CONFIG, replace(CONFIG, dynamic_tiles=False, pad2square=True)):
        plain = MediaReader(config, PictureOptions())
        kept = reader_of(config=config)
        expected = shown(plain, content)
        assert [one.size for one in kept.open(Picture(content), 6)] == [
            one.size for one in plain.open(Picture(content), 6)
        ]
        for _ in range(2):
            assert (shown(kept, content).tiles == expected.tiles).all()


def test_another_grid_or_way_of_reading_is_another_picture():
    content, cache = encoded(photo()), TileCache(2**20)
    readers = [
        MediaReader(CONFIG, options, cache)
        for options in (
            PictureOptions(),
            PictureOptions(official=True),
            PictureOptions(arithmetic="fast"),
        )
    ]
    digests = [shown(reader, content).digest for reader in readers]
    digests.append(shown(readers[0], content, Grid(3, 1)).digest)
    assert len(set(digests)) == 4


def test_the_least_recently_used_tiles_make_room(work):
    contents = [encoded(photo(seed=seed)) for seed in range(3)]
    one = shown(reader_of(), contents[0]).tiles.nbytes
    reader = reader_of(2 * one)
    work.clear()
    for index in (0, 1, 0, 2, 0, 1):
        shown(reader, contents[index])
    assert work["decoded"] == 4
    assert reader.cache is not None
    assert reader.cache.num_bytes == 2 * one


def test_a_cache_without_room_keeps_nothing(work):
    reader, content = reader_of(0), encoded(photo())
    assert shown(reader, content).digest == shown(reader, content).digest
    assert work["decoded"] == 2


def test_a_damaged_file_is_named_when_its_tiles_are_wanted(tmp_path):
    path = tmp_path / "torn.png"
    path.write_bytes(encoded(photo())[:900])
    with pytest.raises(MediaError, match=r"torn\.png is damaged"):
        shown(reader_of(), path)
