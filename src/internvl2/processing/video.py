"""Choose and read the frames that stand for a video.

Frames are sampled as the official code samples them, from files, animated GIF or WebP, folders of
pictures and frames already decoded. Each is shrunk as soon as it is read, so that many frames of a
large video never lie in memory together.
"""

import math
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from internvl2.processing.animation import open_animation
from internvl2.processing.fetch import MediaError
from internvl2.processing.pixels import (
    PictureOptions,
    describe,
    first_bytes,
    open_picture,
    read_source,
    require_size,
)
from internvl2.processing.resize import Arithmetic, Pixels, shrink
from internvl2.processing.video_file import open_video

DecodedFrames = Sequence[Image.Image | np.ndarray]
VideoSource = str | Path | bytes | DecodedFrames

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
MOST_FRAMES = 1024
"""Beyond any context of the family; frames are held until the prompt is complete."""
_FOREVER = 100_000.0
"""Seconds that stand for "no bound" in the official sampling."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bounds:
    """The part of a video to look at, in seconds; None is its beginning or end."""

    start: float | None = None
    end: float | None = None

    def __post_init__(self) -> None:
        if self.start is not None and not 0 <= self.start < math.inf:
            raise MediaError(f"video start is {self.start:g} s; it must be 0 or more")
        if self.end is not None and not 0 < self.end < math.inf:
            raise MediaError(f"video end is {self.end:g} s; it must be above 0")
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise MediaError(f"video start {self.start:g} s is not before its end {self.end:g} s")

    @property
    def given(self) -> bool:
        """Whether any bound was asked for."""
        return self.start is not None or self.end is not None

    def as_pair(self) -> tuple[float, float] | None:
        """As the official sampling takes it."""
        if not self.given:
            return None
        end = _FOREVER if self.end is None else self.end
        return (0.0 if self.start is None else self.start, end)


@dataclass(frozen=True, slots=True)
class Frames:
    """What stands for a video, in the order of showing."""

    images: tuple[Image.Image, ...]
    """RGB; a frame sampled twice is the same picture twice."""
    indices: tuple[int, ...]
    """Which frames of the video these are."""
    timestamps: tuple[float, ...]
    """Seconds from the first frame of the video; all 0 where frames have no times."""


@dataclass(frozen=True, slots=True)
class DecodedFrame:
    """A frame that its user has decoded: a picture, or the pixels of one."""

    size: tuple[int, int]
    """Width and height."""
    decode: Callable[[], Image.Image]
    """The same as an RGB picture."""
    pixels: Pixels | None
    """The array that the user has; None where it is a picture."""


def sample_indices(
    bound: tuple[float, float] | None, fps: float, last_frame: int, num_frames: int, first: int = 0
) -> list[int]:
    """Middles of `num_frames` equal parts of the video (official `get_index`).

    `bound` is in seconds; a video with fewer frames than asked for repeats some.
    """
    start, end = bound or (-_FOREVER, _FOREVER)
    start_index = max(first, round(start * fps))
    end_index = min(round(end * fps), last_frame)
    part = float(end_index - start_index) / num_frames
    return [int(start_index + part / 2 + round(part * k)) for k in range(num_frames)]


def read_frames(
    source: VideoSource,
    num_frames: int = 8,
    start: float | None = None,
    end: float | None = None,
    options: PictureOptions | None = None,
    shrink_to: int | None = None,
) -> Frames:
    """`num_frames` frames of a video: a file, URL, folder of pictures, encoded bytes, or frames.

    `start` and `end` bound it in seconds. With `shrink_to` every frame is resized at once to a
    square of that side, which are the pixels that its single tile has.
    """
    options = options or PictureOptions()
    keep = _shrinker(shrink_to, options.arithmetic)
    request = _Request(num_frames, Bounds(start, end), options, keep)
    if not isinstance(source, str | Path | bytes):
        return _from_sequence(source, request)
    if not isinstance(source, bytes) and _is_folder(source):
        return _from_folder(Path(source), request)
    name = describe(source, "video")
    content = read_source(source, "video", options.remote)
    if _is_animation(first_bytes(content, 12)):
        return _from_animation(content, name, request)
    return _from_file(content, name, request)


def open_frames(
    source: DecodedFrames,
    num_frames: int = 8,
    start: float | None = None,
    end: float | None = None,
    options: PictureOptions | None = None,
) -> tuple[DecodedFrame, ...]:
    """The frames that `read_frames` would take of decoded ones; of arrays nothing is copied yet."""
    options = options or PictureOptions()
    request = _Request(num_frames, Bounds(start, end), options, _shrinker(None, options.arithmetic))
    indices = _decoded_indices(source, request)
    # Pictures may be files of which nobody has read the pixels so far.
    has_pictures = any(isinstance(source[index], Image.Image) for index in indices)
    opened = _each_once(
        lambda index: _open_frame(source[index], index, options),
        indices,
        options.threads if has_pictures else 1,
    )
    return tuple(opened[index] for index in indices)


def count_frames(source: VideoSource, num_frames: int) -> int:
    """How many frames `read_frames` gives, without reading any."""
    if isinstance(source, str | Path | bytes):
        return num_frames
    return min(len(source), num_frames)


@dataclass(frozen=True, slots=True)
class _Request:
    num_frames: int
    bounds: Bounds
    options: PictureOptions
    keep: Callable[[Image.Image], Image.Image]

    def __post_init__(self) -> None:
        asked = f"{self.num_frames} frames of a video were asked for"
        if self.num_frames < 1:
            raise MediaError(f"{asked}; at least 1 is needed")
        if self.num_frames > MOST_FRAMES:
            raise MediaError(f"{asked}; at most {MOST_FRAMES}")

    def indices(self, total: int, fps: float, name: str) -> list[int]:
        """Which frames to take of `total`."""
        start = self.bounds.start or 0.0
        if round(start * fps, 6) >= total:
            raise MediaError(
                f"{name} lasts {total / fps:.2f} s; a start of {start:g} s is outside it"
            )
        if round(start * fps) >= total:
            return [total - 1] * self.num_frames
        sampled = sample_indices(self.bounds.as_pair(), fps, total - 1, self.num_frames)
        return [min(index, total - 1) for index in sampled]


def _shrinker(side: int | None, arithmetic: Arithmetic) -> Callable[[Image.Image], Image.Image]:
    if side is None:
        return lambda image: image
    return lambda image: shrink(image, side, arithmetic)


def _is_folder(source: str | Path) -> bool:
    try:
        return Path(source).is_dir()
    except (OSError, ValueError):
        return False


def _is_animation(start: bytes) -> bool:
    return start[:4] == b"GIF8" or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")


def _from_file(content: bytes | Path, name: str, request: _Request) -> Frames:
    options = request.options
    with open_video(
        content, name, upright=not options.official, max_pixels=options.max_pixels
    ) as video:
        indices = request.indices(video.timeline.num_frames, video.timeline.fps, name)
        images = video.take(indices, request.keep)
        return _frames(images, indices, video.seconds(indices))


def _from_animation(content: bytes | Path, name: str, request: _Request) -> Frames:
    with open_animation(content, name, request.options) as animation:
        fps = animation.frames_per_second() if request.bounds.given else 1.0
        indices = request.indices(animation.num_frames, fps, name)
        taken = animation.take(indices, request.keep)
        return _frames(taken.images, indices, [taken.seconds[index] for index in indices])


def _from_folder(folder: Path, request: _Request) -> Frames:
    name = describe(folder, "video")
    try:
        files = [path for path in folder.iterdir() if _is_picture_file(path)]
    except OSError as error:
        raise MediaError(f"{name} cannot be read: {error.strerror}") from error
    if not files:
        raise MediaError(f"{name} is a folder without pictures ({', '.join(PICTURE_SUFFIXES)})")
    files.sort(key=lambda path: _natural(path.name))
    indices = _still_indices(len(files), name, request)
    return _from_still(indices, request, lambda index: open_picture(files[index], request.options))


def _from_sequence(frames: DecodedFrames, request: _Request) -> Frames:
    indices = _decoded_indices(frames, request)
    return _from_still(
        indices,
        request,
        lambda index: _open_frame(frames[index], index, request.options).decode(),
    )


def _decoded_indices(frames: DecodedFrames, request: _Request) -> list[int]:
    if not len(frames):
        raise MediaError("a video of decoded frames is empty; at least one frame is needed")
    indices = _still_indices(len(frames), f"video of {len(frames)} decoded frames", request)
    # No more frames than asked for: whoever decoded them has chosen them.
    return list(range(len(frames))) if len(frames) <= request.num_frames else indices


def _still_indices(total: int, name: str, request: _Request) -> list[int]:
    """Which frames to take where they have no times."""
    if request.bounds.given:
        raise MediaError(f"{name} has no times, so start and end in seconds mean nothing in it")
    return request.indices(total, 1.0, name)


def _from_still(
    indices: list[int], request: _Request, read: Callable[[int], Image.Image]
) -> Frames:
    """Frames that are pictures of their own."""
    kept = _each_once(
        lambda index: request.keep(read(index)), indices, max(1, request.options.threads)
    )
    return _frames(kept, indices, [0.0] * len(indices))


def _each_once(work: Callable[[int], T], indices: Sequence[int], threads: int) -> dict[int, T]:
    """What becomes of each frame, those that come twice done once, by at most so many threads."""
    different = list(dict.fromkeys(indices))
    if min(threads, len(different)) <= 1:
        return {index: work(index) for index in different}
    with ThreadPoolExecutor(min(threads, len(different))) as pool:
        return dict(zip(different, pool.map(work, different), strict=True))


def _frames(
    images: dict[int, Image.Image], indices: Sequence[int], seconds: Sequence[float]
) -> Frames:
    return Frames(tuple(images[index] for index in indices), tuple(indices), tuple(seconds))


def _open_frame(
    frame: Image.Image | np.ndarray, index: int, options: PictureOptions
) -> DecodedFrame:
    if isinstance(frame, np.ndarray):
        pixels = _require_pixels(frame, index)
        size = (pixels.shape[1], pixels.shape[0])
        require_size(size, options)
        return DecodedFrame(size, partial(Image.fromarray, pixels), pixels)
    picture = open_picture(frame, options)
    return DecodedFrame(picture.size, lambda: picture, None)


def _require_pixels(frame: np.ndarray, index: int) -> Pixels:
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
        raise MediaError(
            f"frame {index} of a video is {frame.dtype}{list(frame.shape)}; "
            "need uint8[height, width, 3]"
        )
    return frame


def _is_picture_file(path: Path) -> bool:
    hidden = path.name.startswith(".")
    return not hidden and path.suffix.lower() in PICTURE_SUFFIXES and path.is_file()


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts frame_2 before frame_10."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]
