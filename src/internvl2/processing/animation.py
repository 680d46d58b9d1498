"""Read frames of an animated GIF or WebP in order, no further than the last one wanted."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from internvl2.processing.fetch import MediaError
from internvl2.processing.pixels import DECODE_ERRORS, PictureOptions, damaged, identify, to_rgb

_DEFAULT_SECONDS = 0.1
"""How long a frame without a duration is shown, as browsers do."""


@dataclass(frozen=True, slots=True)
class Taken:
    """Frames by index, and when each frame up to the last of them begins, in seconds."""

    images: dict[int, Image.Image]
    seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Animation:
    """An open animation."""

    image: Image.Image
    name: str
    options: PictureOptions

    @property
    def num_frames(self) -> int:
        """How many frames the file holds."""
        return getattr(self.image, "n_frames", 1)

    def frames_per_second(self) -> float:
        """Average over the file."""
        return self.num_frames / sum(self._show(index) for index in range(self.num_frames))

    def take(self, indices: Sequence[int], keep: Callable[[Image.Image], Image.Image]) -> Taken:
        """The frames at `indices`, each handed through `keep`."""
        wanted, images, starts, now = set(indices), {}, [], 0.0
        for index in range(max(wanted) + 1):
            duration = self._show(index)
            if index in wanted:
                images[index] = keep(to_rgb(self.image.copy(), self.name, self.options))
            starts.append(now)
            now += duration
        return Taken(images, tuple(starts))

    def _show(self, index: int) -> float:
        """Go to a frame and say for how many seconds it is shown."""
        self.image.seek(index)
        self.image.load()
        milliseconds = self.image.info.get("duration") or 0
        return milliseconds / 1000 if milliseconds > 0 else _DEFAULT_SECONDS


@contextmanager
def open_animation(
    content: bytes | Path, name: str, options: PictureOptions
) -> Iterator[Animation]:
    """The animation in a file or in memory; whatever goes wrong inside is a `MediaError`."""
    with identify(content, name, options) as image:
        try:
            yield Animation(image, name, options)
        except MediaError:
            raise
        except DECODE_ERRORS as error:
            raise damaged(name, error) from error
