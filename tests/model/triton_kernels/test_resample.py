"""The kernel that resizes has Pillow's pixels, bit for bit."""

import numpy as np
import pytest
import torch
from PIL import Image

from internvl2.processing.image import Grid, cut

pytestmark = pytest.mark.compiled


def noise(width, height):
    """Its edges and its contrast are cut off by every filter that is slightly wrong."""
    rng = np.random.default_rng(width + height)
    return Image.fromarray(255 * rng.integers(0, 2, (height, width, 3), np.uint8))


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((45, 90), Grid(2, 1)),
        ((130, 61), Grid(1, 1)),
        ((56, 28), Grid(2, 1)),  # as large as its tiles
        ((28, 300), Grid(1, 3)),  # so tall that rows may go first
        ((1, 1), Grid(1, 1)),
    ],
)
def test_tiles_are_those_that_pillow_makes(device, size, grid):
    from internvl2.engine.device_cutter import PictureResizer

    images = [noise(*size), noise(*size).transpose(Image.Transpose.ROTATE_180)]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).to(device)
    tiles = PictureResizer(device).tiles(pixels, grid, 28, thumbnail=True)
    assert (tiles.cpu().numpy() == np.stack([cut(image, grid, 28) for image in images])).all()
