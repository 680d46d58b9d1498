"""Pictures and videos of a rewritten data set: paths seen from it, copies, or bytes in files."""

import hashlib
import os
import re
import shutil
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from internvl2.processing.conversation import Picture, Video
from internvl2.processing.fetch import MediaError, RemoteLimits, decode_data_url
from internvl2.processing.pixels import PictureOptions, describe, identify, read_source

FOLDER = "media"
_URL = re.compile(r"(https?|data):", re.IGNORECASE)
_VIDEO_KINDS = {
    4: {b"ftyp": ".mp4"},
    0: {b"\x1a\x45\xdf\xa3": ".mkv", b"RIFF": ".avi", b"GIF8": ".gif", b"FLV": ".flv"},
}
"""Suffixes by what stands at a place of a file."""


@dataclass
class MediaFiles:
    """Where the media of a data set are once it is written."""

    partial: Path
    """Folder that is being filled."""
    final: Path
    """Folder that it will be; paths are relative to it."""
    copied: bool
    """Every file comes along, into `media/`."""
    remote: set[str] = field(default_factory=set)
    """Hosts whose media are left where they are."""

    def path_of(self, medium: Picture | Video) -> str:
        """What a record says: a path from the data set's folder, or a URL."""
        source = medium.source
        if isinstance(source, bytes):
            return self._written(source, medium)
        if not isinstance(source, str | Path):
            raise MediaError(f"{source!r} is no path, URL or bytes of a {_kind(medium)}")
        if isinstance(source, str) and _URL.match(source):
            return self._of_url(source, medium)
        path = _real(Path(source))
        if not path.exists():
            raise MediaError(f"{describe(source, _kind(medium))} does not exist")
        return self._copied(path) if self.copied else _relative(path, self.final)

    def stored(self, medium: Picture | Video) -> dict[str, Any]:
        """What a row of Parquet holds: bytes of what is to come along, else the path alone."""
        if isinstance(medium.source, bytes):
            return {"bytes": medium.source, "path": None}
        if isinstance(medium, Picture) and self.copied:
            content = self._content(medium)
            if content is not None:
                return {"bytes": content, "path": None}
        return {"bytes": None, "path": self.path_of(medium)}

    def _content(self, picture: Picture) -> bytes | None:
        """The file of a picture; None for one that is left where it is."""
        source = picture.source
        if isinstance(source, str) and _URL.match(source):
            return _decoded(source, picture) if _is_data(source) else None
        if not isinstance(source, str | Path):
            raise MediaError(f"{source!r} is no path, URL or bytes of a picture")
        found = read_source(source, "picture", RemoteLimits())
        return found.read_bytes() if isinstance(found, Path) else found

    def _of_url(self, url: str, medium: Picture | Video) -> str:
        if not self.copied:
            return url
        if _is_data(url):
            return self._written(_decoded(url, medium), medium)
        self.remote.add(url.split("/")[2])
        return url

    def _written(self, content: bytes, medium: Picture | Video) -> str:
        suffix = _video_suffix(content) if isinstance(medium, Video) else _suffix(content)
        name = self._name(hashlib.sha256(content), suffix)
        target = self.partial / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        return name

    def _copied(self, path: Path) -> str:
        """The copy's path, which follows from the original's, so that nothing is copied twice."""
        name = self._name(hashlib.sha256(os.fsencode(path)), f"-{path.name}")
        target = self.partial / name
        if not target.exists():
            if not path.is_dir():
                _require_readable(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                shutil.copytree(path, target)
            else:
                shutil.copyfile(path, target)
        return name

    def _name(self, digest: Any, ending: str) -> str:
        """A name below `media/`, in one of 256 folders."""
        found = digest.hexdigest()
        return f"{FOLDER}/{found[:2]}/{found[2:18]}{ending}"


def _is_data(url: str) -> bool:
    return url[:5].lower() == "data:"


def _decoded(url: str, medium: Picture | Video) -> bytes:
    return decode_data_url(url, RemoteLimits().max_bytes(_kind(medium)))


def _kind(medium: Picture | Video) -> Any:
    return "video" if isinstance(medium, Video) else "picture"


def _require_readable(path: Path) -> None:
    """Raise a fault of the sample; what else goes wrong with a copy is one of the destination."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise MediaError(f"{path} cannot be read: {error.strerror}") from None


def _real(path: Path) -> Path:
    """The path without links to folders, so that `..` leads where it seems to."""
    return _real_folder(path.parent) / path.name


@lru_cache(maxsize=1024)
def _real_folder(folder: Path) -> Path:
    return folder.resolve()


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, _real_folder(folder.parent) / folder.name)).as_posix()


def _suffix(content: bytes) -> str:
    with identify(content, describe(content, "picture"), PictureOptions()) as image:
        return f".{(image.format or 'picture').lower()}"


def _video_suffix(content: bytes) -> str:
    for place, kinds in _VIDEO_KINDS.items():
        for start, suffix in kinds.items():
            if content[place : place + len(start)] == start:
                return suffix
    raise MediaError(f"{describe(content, 'video')} is of no known kind; mp4, mkv, avi, gif or flv")
