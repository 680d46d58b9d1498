"""Looks of a photograph: shadow, noise, blur, perspective, JPEG, and textured grounds."""

from dataclasses import dataclass
from functools import cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from internvl2.synthetic.draw import Draw
from internvl2.synthetic.page import RGB, between

Quad = tuple[tuple[float, float], tuple[float, float], tuple[float, float], tuple[float, float]]
"""Where the corners go: top left, top right, bottom right, bottom left."""

GREY, GRAIN = 128, 512
BILINEAR = Image.Resampling.BILINEAR


def gradient(draw: Draw, size: tuple[int, int], first: RGB, second: RGB) -> Image.Image:
    """A ground that changes from one colour to the other, along a slanted direction."""
    corners = Image.new("RGB", (2, 2))
    turned = draw.integer(0, 3)
    middle = between(first, second, draw.number(0.2, 0.8))
    around = [first, middle, second, middle]
    for index, place in enumerate(((0, 0), (1, 0), (1, 1), (0, 1))):
        corners.putpixel(place, around[(index + turned) % 4])
    return _softly(corners, size)


def blotches(draw: Draw, size: tuple[int, int], cells: int) -> Image.Image:
    """A ground of soft blotches, as of plaster, leaves or clouds out of focus."""
    base, spread = draw.colour(30, 225), draw.integer(10, 70)
    tints = bytearray()
    for _ in range(cells * cells):
        lighter = draw.integer(-spread, spread)
        tints += bytes(
            min(255, max(0, channel + lighter + draw.integer(-12, 12))) for channel in base
        )
    return _softly(Image.frombytes("RGB", (cells, cells), bytes(tints)), size)


def stripes(draw: Draw, size: tuple[int, int]) -> Image.Image:
    """A ground of rows, as of bricks or boards."""
    base, width = draw.colour(60, 200), draw.integer(14, 60)
    ground = Image.new("RGB", size, base)
    joint = between(base, (0, 0, 0) if draw.chance(0.6) else (255, 255, 255), 0.25)
    for top in range(0, size[1], width):
        ground.paste(joint, (0, top, size[0], top + 2))
    if draw.chance(0.5):
        for row, top in enumerate(range(0, size[1], width)):
            for left in range((row % 2) * width, size[0], 2 * width):
                ground.paste(joint, (left, top, left + 2, min(top + width, size[1])))
    return ground


def noise(draw: Draw, image: Image.Image, strength: int) -> Image.Image:
    """Grain on every channel, up to so much brighter or darker."""
    grain = _grain(strength // 4 * 4 + 4)
    piece = Image.new("RGB", image.size)
    left, top = draw.integer(0, GRAIN - 1), draw.integer(0, GRAIN - 1)
    for x in range(-left, image.width, GRAIN):
        for y in range(-top, image.height, GRAIN):
            piece.paste(grain, (x, y))
    return ImageChops.add(image, piece, 1, -GREY)


def shadow(draw: Draw, image: Image.Image, depth: float) -> Image.Image:
    """A side or corner of the picture darker than the others."""
    light = Image.new("L", (2, 2), 255)
    for _ in range(draw.integer(1, 2)):
        place = (draw.integer(0, 1), draw.integer(0, 1))
        light.putpixel(place, 255 - round(255 * draw.number(0.3, 1.0) * depth))
    black = Image.new("RGB", image.size)
    return Image.composite(image, black, _softly(light, image.size))


def blurred(image: Image.Image, radius: float) -> Image.Image:
    """The picture out of focus."""
    return image.filter(ImageFilter.BoxBlur(radius))


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """The picture after being stored with loss."""
    stored = BytesIO()
    image.save(stored, "JPEG", quality=quality)
    return Image.open(stored).convert("RGB")


def worn(draw: Draw, image: Image.Image, difficulty: float) -> Image.Image:
    """A page as scanned or photographed, at times: darker at a side, grainy, stored with loss."""
    if draw.chance(0.08 * difficulty):
        image = shadow(draw, image, 0.4)
    if draw.chance(0.08 * difficulty):
        image = noise(draw, image, draw.integer(4, 20))
    if draw.chance(0.06 * difficulty):
        image = jpeg(image, draw.integer(45, 95))
    return image


@dataclass(frozen=True)
class Panel:
    """Two colours: where the ink is, in one channel, which turns in half the time of three."""

    mask: Image.Image
    fill: RGB
    ink: RGB

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.mask.size


def place_flat(ground: Image.Image, panel: Panel, left: int, top: int) -> None:
    """Puts a panel on the ground as it is."""
    width, height = panel.size
    ground.paste(panel.fill, (left, top, left + width, top + height))
    ground.paste(panel.ink, (left, top), panel.mask)


def place(ground: Image.Image, panel: Panel, corners: Quad) -> None:
    """Puts a panel on the ground with its corners at these points, seen in perspective."""
    left, top = (int(min(corner[axis] for corner in corners)) for axis in (0, 1))
    right, bottom = (int(max(corner[axis] for corner in corners)) + 1 for axis in (0, 1))
    size = (right - left, bottom - top)
    inside: Quad = tuple((x - left, y - top) for x, y in corners)  # type: ignore[assignment]
    terms = _perspective(inside, panel.size)
    turned = panel.mask.transform(size, Image.Transform.PERSPECTIVE, terms, BILINEAR)
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).polygon(_drawn_in(inside), fill=255)
    ground.paste(panel.fill, (left, top), mask)
    ground.paste(panel.ink, (left, top), ImageChops.darker(turned, mask))


def _softly(few: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A few pixels as a smooth picture; its pixels go two by two, which takes half the time."""
    half = ((size[0] + 1) // 2, (size[1] + 1) // 2)
    return few.resize(half, BILINEAR).resize(size, Image.Resampling.NEAREST)


@cache
def _grain(strength: int) -> Image.Image:
    """Much of it, made once, for pictures to be covered with."""
    source = np.random.default_rng(strength)
    levels = source.integers(GREY - strength, GREY + strength + 1, (GRAIN, GRAIN), dtype=np.uint8)
    return Image.merge("RGB", [Image.fromarray(levels)] * 3)


def _drawn_in(corners: Quad) -> list[tuple[float, float]]:
    """The corners a pixel nearer to their middle, for the outermost one is mixed with black."""
    middle_x, middle_y = (sum(corner[axis] for corner in corners) / 4 for axis in (0, 1))
    return [
        (x + (1.5 if x < middle_x else -1.5), y + (1.5 if y < middle_y else -1.5))
        for x, y in corners
    ]


def _perspective(corners: Quad, size: tuple[int, int]) -> list[float]:
    """Pillow's eight terms that lead from a point of the picture back to the panel."""
    width, height = size
    sources = ((0, 0), (width, 0), (width, height), (0, height))
    rows, values = [], []
    for (x, y), (u, v) in zip(corners, sources, strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y])
        values += [u, v]
    return [float(term) for term in np.linalg.solve(np.array(rows), np.array(values))]
