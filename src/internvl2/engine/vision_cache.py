"""Visual tokens of the pictures in use, and of recent ones: each picture is encoded once.

Kept by the digest of a picture's tiles, the least recently used dropped first when they take more
than their bytes. A picture that a prompt is still being read with stays whatever the limit.
"""

from collections import OrderedDict
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from internvl2.engine.scheduler import Chunk
from internvl2.engine.tile_encoder import TileEncoder, Tiles
from internvl2.processing.prompt import MediaSpan, Prompt


@dataclass(frozen=True)
class _Missing:
    """A picture to encode."""

    prompt: Prompt
    span: MediaSpan

    @property
    def stop(self) -> int:
        """One past its last tile among the prompt's."""
        return self.span.first_tile + self.span.num_tiles

    def follows(self, other: "_Missing") -> bool:
        """Whether its tiles lie behind another picture's, in the same array."""
        return self.prompt is other.prompt and self.span.first_tile == other.stop


class VisionCache:
    """Encodes what is missing, in batches of tiles, and gives the visual tokens of a step."""

    def __init__(self, encoder: TileEncoder, *, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ValueError(f"the vision cache has {max_bytes} bytes; it must have 0 or more")
        self._encoder = encoder
        self._max_bytes = max_bytes
        self._features: OrderedDict[bytes, Float[Tensor, "visual dim"]] = OrderedDict()
        self._num_bytes = 0
        self._held: dict[int, dict[bytes, Float[Tensor, "visual dim"]]] = {}
        self.num_encoded = 0
        """Tiles that went through the vision tower so far."""

    @property
    def num_held(self) -> int:
        """Sequences whose pictures are being read."""
        return len(self._held)

    def prepare(self, chunks: Rows[Chunk]) -> None:
        """Encodes the pictures that these chunks read from and that are not there yet."""
        missing: dict[bytes, _Missing] = {}
        for chunk in chunks:
            prompt = chunk.sequence.prompt
            held = self._held.get(chunk.sequence.id, {})
            for span in overlapping(chunk):
                if span.digest not in held and span.digest not in self._features:
                    missing.setdefault(span.digest, _Missing(prompt, span))
        if missing:
            self._encode(list(missing.values()))
        for chunk in chunks:
            for span in overlapping(chunk):
                self._hold(chunk.sequence.id, span.digest)
        while self._num_bytes > self._max_bytes:
            _, dropped = self._features.popitem(last=False)
            self._num_bytes -= dropped.nbytes

    def rows(self, chunk: Chunk) -> list[Float[Tensor, "visual dim"]]:
        """The visual tokens inside a prepared chunk, one tensor a picture, in order."""
        held = self._held.get(chunk.sequence.id, {})
        return [
            held[span.digest][max(chunk.start, span.start) - span.start : chunk.stop - span.start]
            for span in overlapping(chunk)
        ]

    def release(self, sequence_id: int) -> None:
        """Lets go of the pictures of a sequence whose prompt is read, or which has ended."""
        self._held.pop(sequence_id, None)

    def _hold(self, sequence_id: int, digest: bytes) -> None:
        held = self._held.setdefault(sequence_id, {})
        if digest in self._features:
            self._features.move_to_end(digest)
            held[digest] = self._features[digest]

    def _encode(self, pictures: list[_Missing]) -> None:
        encoded = self._encoder.encode(_joined(pictures))
        self.num_encoded += len(encoded)
        first = 0
        for picture in pictures:
            last = first + picture.span.num_tiles
            # A copy, so that dropping one picture frees its memory.
            features = torch.cat(encoded[first:last])
            self._features[picture.span.digest] = features
            self._num_bytes += features.nbytes
            first = last


def _joined(pictures: list[_Missing]) -> list[Tiles]:
    """All their tiles, as few arrays: threads of the host meet at the end of each one's upload."""
    begun = [i for i, one in enumerate(pictures) if not i or not one.follows(pictures[i - 1])]
    runs = [pictures[start:stop] for start, stop in pairwise([*begun, len(pictures)])]
    return [run[0].prompt.tiles[run[0].span.first_tile : run[-1].stop] for run in runs]


def overlapping(chunk: Chunk) -> list[MediaSpan]:
    """The pictures whose visual tokens lie in a chunk, wholly or in part."""
    media = chunk.sequence.prompt.media
    return [span for span in media if span.start < chunk.stop and span.stop > chunk.start]
