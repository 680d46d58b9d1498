"""Single words and numbers on a picture, with boxes tight to the pixel."""

from dataclasses import dataclass

from PIL import Image, ImageDraw

from internvl2.synthetic.draw import Draw
from internvl2.synthetic.fonts import font
from internvl2.synthetic.forms import COLOURS, RGB, Box
from internvl2.synthetic.scenes import Ground

COARSE_FROM, STEP = 24, 4
"""Larger letters come in steps, for each size that is used stays in memory."""
INKS = ("black", "black", "black", "blue", "red", "green", "purple", "brown")


@dataclass(frozen=True)
class Lettering:
    """The ink of a text without a pixel around it, and its rows above the base line."""

    mask: Image.Image
    rise: int

    @property
    def width(self) -> int:
        """Pixels from its left to its right end."""
        return self.mask.width

    @property
    def height(self) -> int:
        """Pixels from its top to its bottom."""
        return self.mask.height

    def paste(self, canvas: Image.Image, left: int, top: int, ink: RGB) -> Box:
        """Paints the text with its ink's corner there, and returns its tight box."""
        canvas.paste(ink, (left, top), self.mask)
        return Box(left, top, left + self.width, top + self.height)


def letter(face: str, size: int, text: str, width: int | None = None) -> Lettering:
    """The ink of a text, in a smaller size where it would be wider than `width`."""
    size -= size % STEP if size > COARSE_FROM else 0
    chosen = font(face, size)
    length = chosen.getlength(text)
    if width is not None and length > width:
        return letter(face, int(size * width / length), text)
    base = round(1.3 * size)
    sheet = Image.new("L", (round(length + 0.6 * size) + 4, 2 * size))
    ImageDraw.Draw(sheet).text((0.3 * size, base), text, fill=255, font=chosen, anchor="ls")
    box = sheet.getbbox()
    assert box is not None, f"{text!r} leaves no ink in {face}"
    return Lettering(sheet.crop(box), base - box[1])


def choose_ink(draw: Draw, ground: Ground) -> RGB:
    """A colour that reads well on the ground, black as a rule."""
    if ground.is_dark:
        return COLOURS[draw.choice(("white", "white", "yellow", "orange"))]
    return COLOURS[draw.choice(INKS)]
