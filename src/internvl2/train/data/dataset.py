"""The samples of a run by their number: measured without decoding, or encoded for the model.

Everything about a sample follows from the run's seed and the sample's number, so any process can
make it at any time.
"""

import io
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from internvl2.processing.conversation import Message, Part, Picture
from internvl2.processing.processor import EncodeOptions, Processor, PromptSize
from internvl2.train.data.filling import Limits
from internvl2.train.data.formats import Record, SampleError, Source
from internvl2.train.data.order import mix, sample_at
from internvl2.train.data.packing import Sample

__all__ = ["Dataset", "Fault", "Sample"]

LOWEST_QUALITY = 75
HIGHEST_QUALITY = 100


@dataclass(frozen=True, slots=True)
class Fault:
    """A sample that could not be used."""

    where: str
    reason: str

    def error(self) -> SampleError:
        """What stops a run that skips nothing."""
        return SampleError(self.where, self.reason)


@dataclass(frozen=True)
class Dataset:
    """A mixture in the order of a run; may be sent to worker processes."""

    source: Source
    processor: Processor
    limits: Limits
    """What a pack holds; a larger sample is a fault, for nothing is ever cut off."""
    max_tiles: int | None = None
    """Tile budget that the pictures of a record share; None takes the model's."""
    seed: int = 0
    shuffle: bool = True

    def __post_init__(self) -> None:
        if not len(self.source):
            raise ValueError("the data sets hold no sample")

    def __len__(self) -> int:
        """Samples of one epoch."""
        return len(self.source)

    def measure(self, ordinal: int) -> PromptSize | Fault:
        """What the sample will take, or why it cannot be used; no picture is decoded."""
        record = self._record(ordinal)
        if isinstance(record, Fault):
            return record
        try:
            size = self.processor.measure(self.messages(record), options=self._options())
        except (ValueError, OSError) as error:
            return Fault(record.where, str(error))
        return self._too_many(size.tiles, record) or size

    def encode(self, ordinal: int) -> Sample | Fault:
        """The sample as the model reads it, or why it cannot be used."""
        record = self._record(ordinal)
        if isinstance(record, Fault):
            return record
        try:
            prompt = self.processor.encode(self.messages(record), options=self._options())
        except (ValueError, OSError) as error:
            return Fault(record.where, str(error))
        if fault := self._too_many(len(prompt.tiles), record):
            return fault
        if record.augment:
            prompt = replace(prompt, tiles=self._recompressed(prompt.tiles, ordinal))
        return Sample(prompt, record.where)

    def record(self, ordinal: int) -> Record:
        """The sample as it is stored; a `SampleError` where it cannot be used."""
        return self.source[sample_at(ordinal, len(self.source), self.seed, self.shuffle)]

    def messages(self, record: Record) -> tuple[Message, ...]:
        """The conversation, its tile budget shared by the pictures that have none of their own."""
        budget = record.max_tiles or self.max_tiles or self.processor.config.max_tiles
        pictures = sum(isinstance(p, Picture) for m in record.messages for p in m.content)
        share = max(1, budget // max(1, pictures))
        return tuple(
            replace(message, content=tuple(_budgeted(part, share) for part in message.content))
            for message in record.messages
        )

    def _record(self, ordinal: int) -> Record | Fault:
        try:
            return self.record(ordinal)
        except SampleError as error:
            return Fault(error.where, error.reason)

    def _too_many(self, tiles: int, record: Record) -> Fault | None:
        if tiles <= self.limits.tiles:
            return None
        most = f"a pack holds {self.limits.tiles} (packing.tiles)"
        return Fault(record.where, f"it has {tiles} tiles; {most}")

    def _options(self) -> EncodeOptions:
        return EncodeOptions(
            max_context=self.limits.tokens, add_generation_prompt=False, digests=False
        )

    def _recompressed(
        self, tiles: UInt8[np.ndarray, "tiles size size 3"], ordinal: int
    ) -> UInt8[np.ndarray, "tiles size size 3"]:
        """Every tile as a JPEG of quality 75 to 100 would show it (official `data_augment`)."""
        qualities = HIGHEST_QUALITY - LOWEST_QUALITY + 1
        changed = np.empty_like(tiles)
        for number, tile in enumerate(tiles):
            file = io.BytesIO()
            quality = LOWEST_QUALITY + mix(self.seed, ordinal, number) % qualities
            Image.fromarray(tile).save(file, "JPEG", quality=quality)
            changed[number] = np.asarray(Image.open(file).convert("RGB"))
        return changed


def _budgeted(part: Part, share: int) -> Part:
    if isinstance(part, Picture) and part.max_tiles is None:
        return replace(part, max_tiles=share)
    return part
