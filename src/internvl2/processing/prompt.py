"""What a conversation becomes: token ids, tiles, and which tokens the model should learn."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8


@dataclass(frozen=True, slots=True)
class MediaSpan:
    """One picture, or one frame of a video, inside a prompt."""

    start: int
    """Index in `token_ids` of its first `<IMG_CONTEXT>`."""
    stop: int
    """One past its last `<IMG_CONTEXT>`."""
    first_tile: int
    """Index of its first tile among the prompt's tiles."""
    num_tiles: int
    columns: int
    rows: int
    thumbnail: bool
    """Whether the last tile is the whole picture, shrunk."""
    digest: bytes
    """Hash of the tiles, or of the file and how it was cut: equal digests give equal tokens."""


@dataclass(frozen=True)
class Prompt:
    """A conversation as the model reads it."""

    token_ids: list[int]
    is_target: list[bool]
    """Tokens that the model should learn to write; unused when serving."""
    tiles: UInt8[np.ndarray, "tiles size size 3"]
    """RGB; normalised on the device, so that host memory and transfers stay small."""
    media: tuple[MediaSpan, ...] = ()

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.is_target):
            raise ValueError(
                f"{len(self.token_ids)} token ids but {len(self.is_target)} target flags"
            )
        claimed = sum(span.num_tiles for span in self.media)
        if claimed != len(self.tiles):
            raise ValueError(f"the media spans claim {claimed} tiles; there are {len(self.tiles)}")

    @property
    def num_image_tokens(self) -> int:
        """Visual tokens among the prompt's tokens."""
        return sum(span.stop - span.start for span in self.media)
