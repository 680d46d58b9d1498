"""Pictures that look like photographs and show nothing nameable: two colours in natural forms.

Land under sky, clouds, blobs, fibres, lights out of focus. The colours are known, all else is form.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from internvl2.synthetic import camera
from internvl2.synthetic.draw import Draw
from internvl2.synthetic.page import RGB

Field = NDArray[np.floating]
"""Height times width, about 0 to 1."""

_SIDE = 112
"""Forms are made so large, then enlarged."""


def photo(draw: Draw, size: tuple[int, int], first: RGB, second: RGB) -> Image.Image:
    """Both colours, each over a third of the picture or more, shaded, grainy, stored with loss."""
    source = np.random.default_rng(draw.integer(0, 2**31))
    form = draw.choice(tuple(_FORMS.values()))(source)
    share = np.float32(draw.number(0.4, 0.6))
    edge = np.float32(draw.choice((0.01, 0.03, 0.12)))
    weight = np.clip((form - np.quantile(form, share)) / edge + 0.5, 0, 1)[..., None]
    colours = weight * np.array(first, np.float32) + (1 - weight) * np.array(second, np.float32)
    light = (_cloud(source, 3, 5) - 0.5) * draw.number(20, 70)
    texture = (_cloud(source, draw.integer(20, 50), 2) - 0.5) * draw.number(0, 50)
    levels = np.clip(colours + (light + texture)[..., None], 0, 255).astype(np.uint8)
    image = Image.fromarray(levels).resize(size, camera.BILINEAR)
    if draw.chance(0.6):
        image = camera.noise(draw, image, draw.integer(4, 18))
    return camera.jpeg(image, draw.integer(45, 95)) if draw.chance(0.4) else image


def _cloud(source: np.random.Generator, coarse: int, octaves: int) -> Field:
    """Noise that has less of the finer scales, as clouds do."""
    total = np.zeros((_SIDE, _SIDE), np.float32)
    for octave in range(octaves):
        cells = min(_SIDE, coarse * 2**octave)
        total += _smooth(source, cells, cells) / 2**octave
    return (total - total.min()) / max(float(np.ptp(total)), 1e-6)


def _smooth(source: np.random.Generator, rows: int, columns: int) -> Field:
    """So many random levels, as a smooth field."""
    few = Image.fromarray(source.integers(0, 256, (rows, columns), dtype=np.uint8))
    return np.asarray(few.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC), np.float32) / 255


def _land(source: np.random.Generator) -> Field:
    """Up and down, with a line of hills between."""
    height = np.linspace(0, 1, _SIDE, dtype=np.float32)[:, None]
    hills = _smooth(source, 1, int(source.integers(3, 9)))[:1]
    ragged = _smooth(source, 1, 40)[:1]
    rough = _cloud(source, 12, 3) * source.uniform(0, 0.1)
    return height + (0.3 * hills + 0.05 * ragged + rough).astype(np.float32)


def _clouds(source: np.random.Generator) -> Field:
    return _cloud(source, int(source.integers(2, 7)), 5)


def _fibres(source: np.random.Generator) -> Field:
    """Wood, grass or cloth: long one way, short the other."""
    rows, columns = int(source.integers(2, 7)), int(source.integers(20, 70))
    field = _smooth(source, rows, columns) + 0.5 * _smooth(source, 2 * rows, columns)
    return field.T if source.random() < 0.5 else field


def _blobs(source: np.random.Generator) -> Field:
    """Round forms of several sizes, leaves or stones or lights."""
    y, x = np.mgrid[0:_SIDE, 0:_SIDE].astype(np.float32)
    field = np.zeros((_SIDE, _SIDE), np.float32)
    for _ in range(int(source.integers(4, 16))):
        middle_x, middle_y = source.uniform(0, _SIDE, 2)
        across, down = source.uniform(8, 32, 2)
        distance = ((x - middle_x) / across) ** 2 + ((y - middle_y) / down) ** 2
        field = np.maximum(field, 1 - distance.astype(np.float32))
    return field + 0.15 * _cloud(source, 8, 3)


_FORMS: Mapping[str, Callable[[np.random.Generator], Field]] = MappingProxyType(
    {"land": _land, "clouds": _clouds, "fibres": _fibres, "blobs": _blobs}
)
