"""Bicubic resizing: Pillow's arithmetic, or PyTorch's, which is faster and gives nearly the same.

Pillow's pixels are those that the family was trained with, and everybody's choice unless asked
otherwise. PyTorch keeps the filter's weights in 16 bits: 0.3 to 0.9 % of the values of a grainy
photo differ by 1 of 255, a few in a million by 2 (benchmarks/preprocessing.py prints both).
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Arithmetic = Literal["exact", "fast"]
Resized = UInt8[np.ndarray, "height width 3"]


def resizer(image: Image.Image, arithmetic: Arithmetic) -> Callable[[tuple[int, int]], Resized]:
    """What gives an RGB picture's pixels in any width and height; threads may share it."""
    image.load()  # once, before threads read it
    if arithmetic == "exact":
        return lambda size: np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    pixels = np.array(image)
    return lambda size: _resize_fast(pixels, size)


def shrink(image: Image.Image, side: int, arithmetic: Arithmetic) -> Image.Image:
    """An RGB picture as a square of this side."""
    if arithmetic == "exact":
        return image.resize((side, side), Image.Resampling.BICUBIC)
    return Image.fromarray(resizer(image, arithmetic)((side, side)))


def _resize_fast(
    pixels: UInt8[np.ndarray, "rows columns 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "height width 3"]:
    width, height = size
    if pixels.shape[:2] == (height, width):
        return pixels
    import torch  # heavy, and only needed here
    import torch.nn.functional as F

    # A view with the channels last, in which the kernel for bytes is fastest.
    picture = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    resized = F.interpolate(picture, size=(height, width), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()
