"""A scheduled step becomes tensors, runs through the model, and comes back as tokens.

The runner owns the cache tensors. A step of written tokens only is padded to a batch bucket and
lives in buffers at fixed addresses, with lengths and block tables on the device; the host waits
once, for the sampled ids. The last block of the cache is scratch that padding writes to.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from internvl2 import device as devices
from internvl2.engine.launched import LaunchedStep, nothing_sampled
from internvl2.engine.sampler import SamplingBatch, sample
from internvl2.engine.scheduler import Chunk, Step
from internvl2.engine.sequence import Sequence
from internvl2.engine.vision_cache import VisionCache, overlapping
from internvl2.family import parameters
from internvl2.model.attention import DecodeSpan, PagedAttention, PrefillSpan
from internvl2.model.internvl import InternVL
from internvl2.model.rotary import Positions

SMALL_STEP = 2**28
"""Products of numbers in a step of written tokens that one thread of a CPU does soonest: it is done
in the time that other threads need to wake up for each of a hundred small matrices."""


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """Sizes that are fixed for the life of a runner."""

    num_blocks: int
    block_size: int = 16
    max_sequences: int = 8
    longest: int = 4096
    """Most tokens of one sequence."""
    pad_decodes: bool = False
    """Pads steps of written tokens to a power of two, the few shapes that CUDA graphs need."""
    vision_bytes: int = 256 * 2**20
    """Visual tokens kept for pictures that may come again."""
    vision_tiles: int = 16
    """Most tiles that go through the vision tower together."""


@dataclass(frozen=True)
class _Stream:
    """The tokens of a step, on the device, in the order prefills, decodes, padding."""

    numbers: Int[Tensor, "four tokens"]
    """Token id, index, rotary length and cache slot of each token."""

    @property
    def tokens(self) -> Int[Tensor, " tokens"]:
        return self.numbers[0]

    @property
    def positions(self) -> Positions:
        return Positions(self.numbers[1], self.numbers[2])

    @property
    def slots(self) -> Int[Tensor, " tokens"]:
        return self.numbers[3]


class ModelRunner:
    """Runs steps of the scheduler on one device."""

    def __init__(self, model: InternVL, options: RunnerOptions) -> None:
        weight = model.decoder.embedding.weight
        self.model = model
        self.options = options
        self.device = weight.device
        decoder = model.config.decoder
        shape = (
            decoder.num_layers,
            options.num_blocks + 1,
            options.block_size,
            decoder.num_kv_heads,
            decoder.head_dim,
        )
        self.keys = torch.zeros(shape, dtype=weight.dtype, device=self.device)
        self.values = torch.zeros_like(self.keys)
        self.vision = VisionCache(
            model, self.device, max_bytes=options.vision_bytes, max_tiles=options.vision_tiles
        )
        self._weights = parameters(model.config).decoder
        self._scratch_slot = options.num_blocks * options.block_size
        rows = self._bucket(options.max_sequences)
        blocks = -(-options.longest // options.block_size)
        self._numbers = torch.zeros(4, rows, dtype=torch.int64, device=self.device)
        self._tables = torch.zeros(rows, blocks, dtype=torch.int64, device=self.device)
        self._lengths = torch.ones(rows, dtype=torch.int64, device=self.device)

    @torch.inference_mode()
    def begin(self, step: Step) -> LaunchedStep:
        """Queues the work of a step and the copy of the tokens that it chooses."""
        sampling = [chunk.sequence for chunk in step.chunks if chunk.samples]
        batch = SamplingBatch.of(sampling, self.device)
        self._clear_begun_blocks(step.chunks)
        with self._threads(step):
            logits = self._prompts(step) if step.prefills else self._decodes(step.decodes)
        for chunk in step.prefills:
            if chunk.stop >= chunk.sequence.prompt_length:
                self.vision.release(chunk.sequence.id)
        if not sampling:
            return nothing_sampled()
        return LaunchedStep.of(tuple(sampling), sample(logits, batch))

    def release(self, sequence: Sequence) -> None:
        """Forgets what is kept for a sequence that has ended."""
        self.vision.release(sequence.id)

    def _threads(self, step: Step) -> AbstractContextManager[None]:
        is_small = not step.prefills and step.num_tokens * self._weights < SMALL_STEP
        return devices.threads(1) if is_small and self.device.type == "cpu" else nullcontext()

    def _clear_begun_blocks(self, chunks: tuple[Chunk, ...]) -> None:
        """Empties the blocks that this step begins and does not fill.

        Attention multiplies what lies behind a sequence's end by 0, which leaves what an earlier
        sequence wrote there without effect unless that has overflowed.
        """
        size = self.options.block_size
        lasts = [(chunk, chunk.stop // size) for chunk in chunks if chunk.stop % size]
        begun = [c.sequence.blocks[last] for c, last in lasts if last * size >= c.start]
        if begun:
            blocks = self._upload(np.array(begun, np.int64))
            self.keys.index_fill_(1, blocks, 0.0)
            self.values.index_fill_(1, blocks, 0.0)

    def _decodes(self, decodes: tuple[Chunk, ...]) -> Float[Tensor, "rows vocab"]:
        """A step of written tokens alone, in the fixed buffers."""
        rows = self._bucket(len(decodes))
        padding = rows - len(decodes)
        numbers = np.pad(self._numbers_of(decodes), ((0, 0), (0, padding)))
        numbers[3, len(decodes) :] = self._scratch_slot
        tables = self._tables_of(decodes, rows)
        lengths = np.ones(rows, np.int64)
        lengths[: len(decodes)] = [chunk.stop for chunk in decodes]
        stream = _Stream(_fill(self._numbers[:, :rows], numbers))
        attend = PagedAttention(
            self.keys,
            self.values,
            stream.slots,
            decodes=DecodeSpan(
                0,
                _fill(self._tables[:rows, : tables.shape[1]], tables),
                _fill(self._lengths[:rows], lengths),
                tuple(lengths.tolist()),
            ),
        )
        x = self.model.embed(stream.tokens)
        hidden = self.model.decoder(x, stream.positions, attend)
        return self.model.logits(hidden)[: len(decodes)]

    def _prompts(self, step: Step) -> Float[Tensor, "rows vocab"]:
        """A step with chunks of prompts, and written tokens behind them."""
        self.vision.prepare(step.prefills)
        stream = _Stream(self._upload(self._numbers_of(step.chunks)))
        attend = PagedAttention(
            self.keys,
            self.values,
            stream.slots,
            self._prefill_spans(step.prefills),
            self._decode_span(step),
        )
        x = self._embed(stream.tokens, step.prefills)
        hidden = self.model.decoder(x, stream.positions, attend)
        ends = np.cumsum([chunk.stop - chunk.start for chunk in step.chunks]) - 1
        last = [end for end, chunk in zip(ends, step.chunks, strict=True) if chunk.samples]
        return self.model.logits(hidden[self._upload(np.array(last, np.int64))])

    def _embed(
        self, tokens: Int[Tensor, " tokens"], prefills: tuple[Chunk, ...]
    ) -> Float[Tensor, "tokens dim"]:
        """Embeddings, with visual tokens where the prompts have pictures.

        Placed by the spans of the prompts, not by token id: a model may write the id of
        `<IMG_CONTEXT>`, which then is a token like any other.
        """
        x = self.model.embed(tokens)
        places: list[np.ndarray] = []
        visual: list[Tensor] = []
        first = 0
        for chunk in prefills:
            visual += self.vision.rows(chunk)
            for span in overlapping(chunk):
                start, stop = max(span.start, chunk.start), min(span.stop, chunk.stop)
                places.append(np.arange(start, stop) - chunk.start + first)
            first += chunk.stop - chunk.start
        if not places:
            return x
        return x.index_copy(0, self._upload(np.concatenate(places)), torch.cat(visual).to(x.dtype))

    def _prefill_spans(self, prefills: tuple[Chunk, ...]) -> tuple[PrefillSpan, ...]:
        spans: list[PrefillSpan] = []
        first = 0
        for chunk in prefills:
            last = first + chunk.stop - chunk.start
            used = -(-chunk.stop // self.options.block_size)
            blocks = self._upload(np.array(chunk.sequence.blocks[:used], np.int64))
            spans.append(PrefillSpan(first, last, chunk.start, blocks))
            first = last
        return tuple(spans)

    def _decode_span(self, step: Step) -> DecodeSpan | None:
        if not step.decodes:
            return None
        tables = self._tables_of(step.decodes, len(step.decodes))
        lengths = np.array([chunk.stop for chunk in step.decodes], np.int64)
        first = sum(chunk.stop - chunk.start for chunk in step.prefills)
        on_device = self._upload(tables), self._upload(lengths)
        return DecodeSpan(first, *on_device, tuple(lengths.tolist()))

    def _numbers_of(self, chunks: tuple[Chunk, ...]) -> Int[np.ndarray, "four tokens"]:
        size = self.options.block_size
        numbers = np.empty((4, sum(chunk.stop - chunk.start for chunk in chunks)), np.int64)
        first = 0
        for chunk in chunks:
            sequence = chunk.sequence
            index = np.arange(chunk.start, chunk.stop)
            part = numbers[:, first : first + len(index)]
            part[0] = sequence.token_ids[chunk.start : chunk.stop]
            part[1] = index
            part[2] = np.maximum(sequence.prompt_length, index + 1)
            first_block = chunk.start // size
            blocks = np.array(sequence.blocks[first_block : (chunk.stop - 1) // size + 1])
            part[3] = blocks[index // size - first_block] * size + index % size
            first += len(index)
        return numbers

    def _tables_of(self, decodes: tuple[Chunk, ...], rows: int) -> Int[np.ndarray, "rows blocks"]:
        width = max(len(chunk.sequence.blocks) for chunk in decodes)
        if self.options.pad_decodes:
            width = min(_power_of_two(width), self._tables.shape[1])
        tables = np.zeros((rows, width), np.int64)
        for row, chunk in enumerate(decodes):
            # Unused entries repeat a block of the sequence itself: others' may have overflowed.
            tables[row] = chunk.sequence.blocks[0]
            tables[row, : len(chunk.sequence.blocks)] = chunk.sequence.blocks
        return tables

    def _bucket(self, rows: int) -> int:
        return _power_of_two(rows) if self.options.pad_decodes else rows

    def _upload(self, values: np.ndarray) -> Tensor:
        return devices.upload(torch.from_numpy(values), self.device)


def _fill(buffer: Tensor, values: np.ndarray) -> Tensor:
    source = torch.from_numpy(values)
    if devices.copies_by_itself(buffer.device):
        source = source.pin_memory()
    return buffer.copy_(source, non_blocking=True)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
