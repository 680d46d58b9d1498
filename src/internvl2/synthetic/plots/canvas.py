"""Writing on a chart: text at an anchor, upright or turned, and smooth lines."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from internvl2.synthetic.fonts import font, pen
from internvl2.synthetic.forms import RGB, Point
from internvl2.synthetic.plots.style import Style

SMOOTHING = 2


class Canvas:
    """A picture under way, with the faces and the ink of its style."""

    def __init__(self, style: Style) -> None:
        self.style = style
        self.image = Image.new("RGB", (style.width, style.height), style.ground)
        self.draw = ImageDraw.Draw(self.image)
        self.font = font(style.face, style.size)
        self.pen = pen(style.face, style.size)
        self.title_pen = pen(style.face, style.title_size)

    def width_of(self, text: str) -> int:
        """How wide a text of the usual size is."""
        return self.pen.width(text)

    def write(self, at: Point, text: str, anchor: str, ink: RGB | None = None) -> None:
        """Writes in the usual size; `anchor` as Pillow names it: (l, m, r) and (a, m, s, d)."""
        width = self.pen.width(text)
        left = at[0] - {"l": 0, "m": width / 2, "r": width}[anchor[0]]
        drop = {"a": 0.8, "m": 0.36, "s": 0, "d": -0.24}[anchor[1]] * self.style.size
        self.pen.write(self.image, round(left), round(at[1] + drop), text, ink or self.style.ink)

    def write_title(self, at: Point, text: str) -> None:
        """Writes in the title's size, centred, resting on the point."""
        left = round(at[0] - self.title_pen.width(text) / 2)
        self.title_pen.write(self.image, left, round(at[1]), text, self.style.ink)

    def write_turned(self, at: Point, text: str, angle: int, anchor: str) -> None:
        """Writes along a rising line; `at` is its middle (m), top (t) or top right (r)."""
        mask = turned_text(self.font, text, angle)
        x, y = at
        left = x - mask.width / 2
        if anchor == "r" and angle != 90:
            left = x - mask.width + self.style.size / 2
        top = y if anchor in "tr" else y - mask.height / 2
        self.image.paste(self.style.ink, (round(left), round(top)), mask)

    def stroke(self, points: Sequence[Point], width: float, rgb: RGB) -> None:
        """Draws a smooth line through the points."""
        reach = width + 2
        left, top = (int(min(p[i] for p in points) - reach) for i in (0, 1))
        right, bottom = (int(max(p[i] for p in points) + reach) + 1 for i in (0, 1))
        mask = Image.new("L", ((right - left) * SMOOTHING, (bottom - top) * SMOOTHING))
        scaled = [((x - left) * SMOOTHING, (y - top) * SMOOTHING) for x, y in points]
        pen = ImageDraw.Draw(mask)
        pen.line(scaled, fill=255, width=round(width * SMOOTHING), joint="curve")
        self.image.paste(rgb, (left, top), mask.reduce(SMOOTHING))


def turned_text(face: ImageFont.FreeTypeFont, text: str, angle: int) -> Image.Image:
    """The mask of a text turned counter-clockwise."""
    left, top, right, bottom = face.getbbox(text)
    mask = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
    ImageDraw.Draw(mask).text((1 - left, 1 - top), text, fill=255, font=face)
    if angle == 90:
        return mask.transpose(Image.Transpose.ROTATE_90)
    return mask.rotate(angle, Image.Resampling.BILINEAR, expand=True)
