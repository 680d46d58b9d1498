"""The bundled faces, and a pen that writes with them ten times faster than Pillow's own text.

A pen keeps each glyph it ever drew as a small mask; writing is pasting masks. Letters are placed at
whole pixels without kerning (Pillow's basic layout does little more), so that a picture is the same
on every machine with the same Pillow. Where the faces come from: assets/fonts/README.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from io import BytesIO
from types import MappingProxyType
from typing import Literal

from PIL import Image, ImageFont

from internvl2.synthetic.words import Split

Kind = Literal["sans", "serif", "mono", "condensed", "round", "hand", "chinese"]
Ink = int | tuple[int, int, int]

_TRAIN: Mapping[Kind, tuple[str, ...]] = MappingProxyType(
    {
        "sans": (
            "dejavu-sans", "dejavu-sans-bold", "liberation-sans", "liberation-sans-bold",
            "liberation-sans-italic", "open-sans", "roboto", "carlito", "carlito-bold",
        ),
        "serif": (
            "dejavu-serif", "liberation-serif", "liberation-serif-bold", "liberation-serif-italic",
            "roboto-slab", "gentium", "vollkorn", "eb-garamond",
        ),
        "mono": ("dejavu-mono", "liberation-mono", "anonymous-pro"),
        "condensed": ("open-sans-condensed-bold", "roboto-condensed", "yanone"),
        "round": ("quicksand", "comfortaa"),
        "hand": ("dancing-script", "breip"),
        "chinese": ("noto-sans-sc", "noto-serif-sc"),
    }
)  # fmt: skip
_TEST: Mapping[Kind, tuple[str, ...]] = MappingProxyType(
    {
        "sans": ("lato", "lato-bold", "cabin"),
        "serif": ("caladea",),
        "mono": ("fira-mono",),
        "chinese": ("wqy-microhei",),
    }
)
PRINT: tuple[Kind, ...] = ("sans", "serif", "mono", "condensed", "round")
"""Kinds that have every letter and sign; `hand` has ASCII alone."""


def faces(split: Split, *kinds: Kind) -> tuple[str, ...]:
    """Names of the faces of a split, of these kinds (else all that print Latin letters)."""
    of_split = _TRAIN if split == "train" else _TEST
    return tuple(name for kind in kinds or PRINT for name in of_split.get(kind, ()))


@cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A face at a size in pixels."""
    basic = ImageFont.Layout.BASIC
    return ImageFont.truetype(BytesIO(_face_bytes(name)), size, layout_engine=basic)


@cache
def pen(name: str, size: int) -> Pen:
    """The pen of a face at a size; use few sizes, for each keeps its glyphs."""
    return Pen(font(name, size))


@dataclass(frozen=True, slots=True)
class _Glyph:
    mask: Image.core.ImagingCore
    left: int
    top: int
    right: int
    bottom: int
    advance: int
    is_blank: bool


class Pen:
    """Writes lines of text at a baseline."""

    def __init__(self, face: ImageFont.FreeTypeFont) -> None:
        self.size = int(face.size)
        self.ascent, self.descent = face.getmetrics()
        self._face = face
        self._glyphs: dict[str, _Glyph] = {}

    def width(self, text: str, tracking: int = 0) -> int:
        """How far a text reaches, with so many pixels added after each letter."""
        glyphs = self._glyphs
        total = len(text) * tracking
        for letter in text:
            glyph = glyphs.get(letter) or self._load(letter)
            total += glyph.advance
        return total

    def write(
        self, canvas: Image.Image, x: int, baseline: int, text: str, ink: Ink, tracking: int = 0
    ) -> int:
        """Writes from x on and returns where the text ends; what lies outside is cut off."""
        glyphs, paste = self._glyphs, canvas.im.paste  # Image.paste takes twice as long
        inside_x, inside_y = canvas.size
        for letter in text:
            glyph = glyphs.get(letter) or self._load(letter)
            box = (x + glyph.left, baseline + glyph.top, x + glyph.right, baseline + glyph.bottom)
            if not glyph.is_blank:
                if box[0] < 0 or box[1] < 0 or box[2] > inside_x or box[3] > inside_y:
                    canvas.paste(ink, box, Image.Image()._new(glyph.mask))
                else:
                    paste(ink, box, glyph.mask)
            x += glyph.advance + tracking
        return x

    def box(self, text: str) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the pixels a text has, written at (0, 0)."""
        x, left, top, right, bottom = 0, 10**6, 10**6, -(10**6), -(10**6)
        for letter in text:
            glyph = self._glyphs.get(letter) or self._load(letter)
            if not glyph.is_blank:
                left, right = min(left, x + glyph.left), max(right, x + glyph.right)
                top, bottom = min(top, glyph.top), max(bottom, glyph.bottom)
            x += glyph.advance
        return left, top, right, bottom

    def _load(self, letter: str) -> _Glyph:
        mask, (left, top) = self._face.getmask2(letter, "L", anchor="ls")
        advance = round(self._face.getlength(letter))
        inked = mask.getbbox()
        is_blank = inked is None
        if inked is not None:
            mask = mask.crop(inked)
            left, top = left + inked[0], top + inked[1]
        width, height = mask.size
        glyph = _Glyph(mask, left, top, left + width, top + height, advance, is_blank)
        self._glyphs[letter] = glyph
        return glyph


@cache
def _face_bytes(name: str) -> bytes:
    path = files("internvl2") / "assets" / "fonts" / f"{name}.ttf"
    if not path.is_file():
        raise ValueError(f"unknown face {name!r}; see the list in synthetic/fonts.py")
    return path.read_bytes()
