"""A sample looked at as a run would read it: what it takes, and what is wrong with it.

Worker processes do this, so nothing here imports torch.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np

from internvl2.config import InternVLConfig
from internvl2.processing.conversation import Message, Part, Picture
from internvl2.processing.fetch import MediaError
from internvl2.processing.image import choose_grid, open_picture
from internvl2.processing.pixels import describe
from internvl2.processing.processor import EncodeOptions, Processor
from internvl2.processing.prompt import Prompt
from internvl2.train.data.dataset import Dataset
from internvl2.train.data.filling import Limits
from internvl2.train.data.formats import SampleError
from internvl2.train.doctor.findings import Finding, text_findings

TINY = 32
"""Pixels. A tile is 448, so that a side below this is enlarged 14 times and more."""
SQUEEZED = 2.0
"""From here on it is worth a word that one side is shrunk so much more than the other."""


@dataclass(frozen=True, slots=True)
class Size:
    """What a sample takes."""

    tokens: int
    learned: int
    """Tokens that the model learns to write."""
    visual: int
    tiles: int

    @classmethod
    def of(cls, prompt: Prompt) -> "Size":
        """What a prompt takes."""
        return cls(
            tokens=len(prompt.token_ids),
            learned=sum(prompt.is_target),
            visual=prompt.num_image_tokens,
            tiles=len(prompt.tiles),
        )


@dataclass(frozen=True, slots=True)
class Inspected:
    """What was found out about a sample."""

    where: str
    findings: tuple[Finding, ...]
    size: Size | None = None
    """None where it cannot be encoded."""
    digest: int = 0
    """64 bits that equal samples share: the same tokens over the same pixels; 0 where unknown."""


@dataclass(frozen=True)
class Opened:
    """A sample as the model reads it."""

    where: str
    findings: tuple[Finding, ...]
    messages: tuple[Message, ...] = ()
    """Their pictures are opened."""
    prompt: Prompt | None = None
    """None where there is none."""


@dataclass(frozen=True)
class Inspect:
    """Look at the samples from `start` to before `stop`."""

    start: int
    stop: int
    controls: re.Pattern[str]
    """Finds control tokens in text."""

    def __call__(self, dataset: Dataset) -> tuple[Inspected, ...]:
        """What was found, in the order of the samples."""
        numbers = range(self.start, self.stop)
        return tuple(inspect(dataset, ordinal, self.controls) for ordinal in numbers)


def inspect(dataset: Dataset, ordinal: int, controls: re.Pattern[str]) -> Inspected:
    """What a sample takes, and what is wrong with it."""
    opened = open_sample(dataset, ordinal, controls)
    if opened.prompt is None:
        return Inspected(opened.where, opened.findings)
    size = Size.of(opened.prompt)
    return Inspected(opened.where, opened.findings, size, _digest(opened.prompt))


def open_sample(dataset: Dataset, ordinal: int, controls: re.Pattern[str]) -> Opened:
    """The sample encoded, its pictures opened one by one, so that each tells what is wrong."""
    try:
        record = dataset.record(ordinal)
    except SampleError as error:
        return Opened(error.where, (_unread(error),))
    findings = list(text_findings(record.messages, controls))
    messages = _with_pictures(dataset.messages(record), dataset.processor, findings)
    if any(found.kind == "unreadable media" for found in findings):
        return Opened(record.where, tuple(findings))
    options = EncodeOptions(add_generation_prompt=False, digests=True)
    try:
        prompt = dataset.processor.encode(messages, options=options)
    except (MediaError, OSError) as error:
        findings.append(Finding("unreadable media", str(error)))
        prompt = None
    except ValueError as error:
        findings.append(Finding("unusable record", str(error)))
        prompt = None
    if prompt is not None:
        findings += _too_large(Size.of(prompt), dataset.limits)
    return Opened(record.where, tuple(findings), messages, prompt)


def _unread(error: SampleError) -> Finding:
    """A record that is broken as it is stored, or that says what cannot be."""
    if isinstance(error.__cause__, MediaError):
        return Finding("unreadable media", error.reason)
    return Finding(
        "unreadable record" if error.__cause__ is None else "unusable record", error.reason
    )


def _with_pictures(
    messages: Sequence[Message], processor: Processor, findings: list[Finding]
) -> tuple[Message, ...]:
    """The messages with opened pictures; what is wrong with those joins the findings."""

    def opened(part: Part) -> Part:
        if not isinstance(part, Picture):
            return part
        try:
            image = open_picture(part.source, processor.pictures)
        except (ValueError, OSError) as error:
            findings.append(Finding("unreadable media", str(error)))
            return part
        given = isinstance(part.source, str | Path | bytes)
        name = describe(part.source, "picture") if given else "a picture"
        budget = part.max_tiles or processor.config.max_tiles
        findings.extend(_shape(name, image.size, budget, processor.config))
        return replace(part, source=image)

    return tuple(
        replace(message, content=tuple(opened(part) for part in message.content))
        for message in messages
    )


def _shape(
    name: str, size: tuple[int, int], budget: int, config: InternVLConfig
) -> Iterator[Finding]:
    """What is odd about a picture's sides."""
    width, height = size
    if min(size) < TINY:
        yield Finding("tiny picture", f"{name} has {width}x{height} pixels")
    if not config.dynamic_tiles:
        return
    grid = choose_grid(width, height, config.tile_size, min(config.min_tiles, budget), budget)
    stretch = (width / height) / (grid.columns / grid.rows)
    factor = max(stretch, 1 / stretch)
    if factor >= SQUEEZED:
        shape = f"{grid.columns}x{grid.rows} tiles"
        reason = f"{name} has {width}x{height} pixels, seen as {shape}: squeezed {factor:.1f} times"
        yield Finding("extreme shape", reason)


def _too_large(size: Size, limits: Limits) -> Iterator[Finding]:
    if size.tokens > limits.tokens:
        most = f"a pack holds {limits.tokens} (packing.tokens)"
        yield Finding("too long", f"it has {size.tokens} tokens, {size.tiles} tiles; {most}")
    if size.tiles > limits.tiles:
        most = f"a pack holds {limits.tiles} (packing.tiles)"
        yield Finding("too many tiles", f"it has {size.tiles} tiles; {most}")


def _digest(prompt: Prompt) -> int:
    state = blake2b(np.asarray(prompt.token_ids, np.int64).tobytes(), digest_size=8)
    for span in prompt.media:
        state.update(span.digest)
    return int.from_bytes(state.digest(), "little") or 1
