"""A scheduled step becomes tensors, runs through the model, and comes back as tokens.

The runner owns the cache tensors. With a recorder, steps of written tokens alone are recorded work
(`decoding`); prompts, and everything without a recorder, are computed call by call.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from internvl2 import device as devices
from internvl2.engine.decoding import Decoding
from internvl2.engine.graphs import Graphs, Recorder
from internvl2.engine.kv_tensors import KVTensors
from internvl2.engine.launched import Chosen, LaunchedStep, nothing_sampled
from internvl2.engine.sampler import Sampled, SamplingBatch, sample
from internvl2.engine.scheduler import Chunk, Step
from internvl2.engine.sequence import Sequence
from internvl2.engine.tile_encoder import TileEncoder
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

    def __init__(
        self, model: InternVL, options: RunnerOptions, recorder: Recorder | None = None
    ) -> None:
        weight = model.decoder.embedding.weight
        self.model = model
        self.options = options
        self.device = weight.device
        # A share of a model holds some of its heads.
        self.cache = KVTensors(
            model.decoder.config, options.num_blocks, options.block_size, weight.dtype, self.device
        )
        encoder = TileEncoder(
            model,
            self.device,
            max_tiles=options.vision_tiles,
            graphs=None if recorder is None else Graphs(recorder),
        )
        self.vision = VisionCache(encoder, max_bytes=options.vision_bytes)
        self._weights = parameters(model.config).decoder
        self._chosen: Chosen | None = None
        self._decoding: Decoding | None = None
        if recorder is not None:
            self._decoding = Decoding(
                model,
                self.cache,
                Graphs(recorder),
                max_sequences=options.max_sequences,
                longest=options.longest,
            )

    @property
    def runs_ahead(self) -> bool:
        """Whether the tokens that a step chooses stay where the next one reads them."""
        return self._decoding is not None

    @torch.inference_mode()
    def begin(self, step: Step) -> LaunchedStep:
        """Queues the work of a step and the copy of the tokens that it chooses."""
        chosen, self._chosen = self._chosen, None
        unread = chosen if step.follows else None
        with devices.current(self.device):
            sampling = [chunk for chunk in step.chunks if chunk.samples]
            if self._decoding is not None and not step.prefills:
                sampled = self._decoding.sampled(step, unread)
            else:
                sampled = self._sampled(step, sampling, unread)
            if not sampling:
                return nothing_sampled()
            sequences = tuple(chunk.sequence for chunk in sampling)
            self._chosen = Chosen(sequences, sampled.ids)
            return LaunchedStep.of(sequences, sampled)

    def release(self, sequence: Sequence) -> None:
        """Forgets what is kept for a sequence that has ended."""
        self.vision.release(sequence.id)

    def _sampled(self, step: Step, sampling: list[Chunk], unread: Chosen | None) -> Sampled:
        """The next tokens of the chunks that sample, computed call by call."""
        written = [chunk.stop - chunk.sequence.prompt_length for chunk in sampling]
        batch = SamplingBatch.of([chunk.sequence for chunk in sampling], self.device, written)
        self.cache.clear_begun(step.chunks)
        with self._threads(step):
            logits = self._prompts(step, unread) if step.prefills else self._decodes(step.decodes)
        for chunk in step.prefills:
            if chunk.stop >= chunk.sequence.prompt_length:
                self.vision.release(chunk.sequence.id)
        return sample(logits, batch)

    def _threads(self, step: Step) -> AbstractContextManager[None]:
        is_small = not step.prefills and step.num_tokens * self._weights < SMALL_STEP
        return devices.threads(1) if is_small and self.device.type == "cpu" else nullcontext()

    def _decodes(self, decodes: tuple[Chunk, ...]) -> Float[Tensor, "rows vocab"]:
        """A step of written tokens alone."""
        stream = _Stream(self._upload(self._numbers_of(decodes)))
        span = self._decode_span(decodes, 0)
        attend = PagedAttention(self.cache.keys, self.cache.values, stream.slots, decodes=span)
        x = self.model.embed(stream.tokens)
        hidden = self.model.decoder(x, stream.positions, attend)
        return self.model.logits(hidden)

    def _prompts(self, step: Step, unread: Chosen | None) -> Float[Tensor, "rows vocab"]:
        """A step with chunks of prompts, and written tokens behind them."""
        self.vision.prepare(step.prefills)
        stream = _Stream(self._upload(self._numbers_of(step.chunks)))
        num_read = sum(chunk.stop - chunk.start for chunk in step.prefills)
        if unread is not None and step.decodes:
            stream.tokens[num_read:] = unread.of([chunk.sequence for chunk in step.decodes])
        attend = PagedAttention(
            self.cache.keys,
            self.cache.values,
            stream.slots,
            self._prefill_spans(step.prefills),
            self._decode_span(step.decodes, num_read) if step.decodes else None,
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

    def _decode_span(self, decodes: tuple[Chunk, ...], first: int) -> DecodeSpan:
        tables = self._tables_of(decodes)
        lengths = np.array([chunk.stop for chunk in decodes], np.int64)
        on_device = self._upload(tables), self._upload(lengths)
        return DecodeSpan(first, *on_device, tuple(lengths.tolist()))

    def _numbers_of(self, chunks: tuple[Chunk, ...]) -> Int[np.ndarray, "four tokens"]:
        size = self.options.block_size
        numbers = np.zeros((4, sum(chunk.stop - chunk.start for chunk in chunks)), np.int64)
        first = 0
        for chunk in chunks:
            sequence = chunk.sequence
            index = np.arange(chunk.start, chunk.stop)
            part = numbers[:, first : first + len(index)]
            known = sequence.token_ids[chunk.start : chunk.stop]  # nothing where it is unread
            part[0, : len(known)] = known
            part[1] = index
            part[2] = np.maximum(sequence.prompt_length, index + 1)
            first_block = chunk.start // size
            blocks = np.array(sequence.blocks[first_block : (chunk.stop - 1) // size + 1])
            part[3] = blocks[index // size - first_block] * size + index % size
            first += len(index)
        return numbers

    def _tables_of(self, decodes: tuple[Chunk, ...]) -> Int[np.ndarray, "rows blocks"]:
        width = max(len(chunk.sequence.blocks) for chunk in decodes)
        tables = np.zeros((len(decodes), width), np.int64)
        for row, chunk in enumerate(decodes):
            # Unused entries repeat a block of the sequence itself: others' may have overflowed.
            tables[row] = chunk.sequence.blocks[0]
            tables[row, : len(chunk.sequence.blocks)] = chunk.sequence.blocks
        return tables

    def _upload(self, values: np.ndarray) -> Tensor:
        return devices.upload(torch.from_numpy(values), self.device)
