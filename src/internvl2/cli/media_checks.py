"""Whether the files that a question names can be used, told before a model is loaded."""

import re
from pathlib import Path

_URL = re.compile(r"(https?|data):", re.IGNORECASE)


def is_url(source: str) -> bool:
    """Whether a source is fetched rather than read from disk."""
    return bool(_URL.match(source))


def check_picture(source: str, official: bool) -> None:
    """Opens a picture on disk, so that a broken one is told at once; URLs are left for later."""
    from internvl2.processing.pixels import PictureOptions, open_picture

    if not is_url(source):
        open_picture(source, PictureOptions(official=official))


def check_video(source: str) -> None:
    """Refuses a path where nothing lies."""
    if not source:
        raise ValueError("the path of the video is empty")
    if not is_url(source) and not Path(source).exists():
        raise FileNotFoundError(f"video {source} does not exist")


def check_saving(target: Path, pictures: int, video: str | None) -> None:
    """Refuses to draw boxes where it is not clear over what, or into which kind of file."""
    from internvl2.processing.video import PICTURE_SUFFIXES

    if pictures != 1 or video is not None:
        given = f"{pictures} pictures" + (" and a video" if video is not None else "")
        raise ValueError(f"--save-boxes draws over exactly one picture; there are {given}")
    if target.suffix.lower() not in PICTURE_SUFFIXES:
        raise ValueError(f"--save-boxes {target}: unknown kind of picture; give a .png or .jpg")
    if not target.parent.is_dir():
        raise ValueError(f"--save-boxes {target}: there is no folder {target.parent}")
