"""Steps of written tokens as recorded work, whose numbers stay on the device.

Tokens, positions and block tables of a batch lie at fixed addresses. The recorded work reads them,
chooses the next tokens, and advances: so while the batch stays the same, the next step needs
nothing from the host but new blocks. Batches are padded to few sizes, each recorded once; padding
reads and writes the scratch block and never advances.
"""

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from enum import Enum
from functools import partial

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from internvl2 import device as devices
from internvl2.engine.batch_sizes import padded, power_of_two
from internvl2.engine.draw_buffers import DrawBuffers
from internvl2.engine.graphs import Graphs, Work
from internvl2.engine.kv_tensors import KVTensors
from internvl2.engine.launched import Chosen
from internvl2.engine.sampler import Sampled, SamplingBatch, choose, sample
from internvl2.engine.scheduler import Step
from internvl2.engine.sequence import Sequence
from internvl2.model.attention import DecodeSpan, PagedAttention
from internvl2.model.internvl import InternVL
from internvl2.model.rotary import Positions

TOKENS, POSITIONS, ADVANCES = range(3)
"""What the rows of a batch's numbers are."""


class Choice(Enum):
    """How the tokens of a batch are chosen."""

    MOST_PROBABLE = "most probable"
    DRAWN = "drawn"
    DRAWN_FROM_FEW = "drawn from few"
    """With a top-k or top-p, which need the logits in order."""
    BEHIND = "behind"
    """Behind the recorded work, which ends with the logits."""

    @classmethod
    def of(cls, batch: Rows[Sequence]) -> "Choice":
        """What serves every sequence of a batch."""
        params = [sequence.params for sequence in batch]
        if not all(p.is_plain for p in params):
            return cls.BEHIND
        if any(p.truncates for p in params):
            return cls.DRAWN_FROM_FEW
        return cls.DRAWN if any(p.temperature > 0 for p in params) else cls.MOST_PROBABLE


@dataclass(frozen=True, slots=True)
class DecodeShape:
    """What one recording is made for."""

    rows: int
    width: int
    """Blocks of the longest sequence that it reads."""
    choice: Choice


class Decoding:
    """The batch that is being written, and the recorded work that writes it."""

    def __init__(
        self, model: InternVL, cache: KVTensors, graphs: Graphs, *, max_sequences: int, longest: int
    ) -> None:
        self._model = model
        self._cache = cache
        self._graphs = graphs
        rows = padded(max_sequences)
        blocks = -(-longest // cache.block_size)
        device = self._device = cache.keys.device
        self._numbers = torch.zeros(3, rows, dtype=torch.int64, device=device)
        self._tables = torch.zeros(rows, blocks, dtype=torch.int64, device=device)
        self._logits = torch.zeros(rows, model.config.decoder.vocab_size, device=device)
        self._draws = DrawBuffers(rows, device)
        self._met: set[DecodeShape] = set()
        self._gathers = model.decoder.kernels.paged_decode is None
        """Whether attention copies what it reads: then tables are no wider than need be."""
        self._batch: tuple[Sequence, ...] = ()
        self._next: list[int] = []
        """The token of each sequence of the batch that lies ready to be read."""
        self._choice = Choice.MOST_PROBABLE
        self._num_blocks: list[int] = []
        """How many blocks of each sequence of the batch its table has."""

    def sampled(self, step: Step, unread: Chosen | None) -> Sampled:
        """Queues a step of written tokens alone; what it chooses is there until the next one."""
        batch = tuple(chunk.sequence for chunk in step.decodes)
        written = [chunk.stop - chunk.sequence.prompt_length for chunk in step.decodes]
        previous, self._batch = self._batch, ()  # nobody's, should anything fail on the way
        if batch != previous:
            self._choice = Choice.of(batch)
        shape = self._shape_of(batch)
        is_there = batch == previous and self._next == [chunk.start for chunk in step.decodes]
        work = partial(self._run, shape)
        # Met again: nobody's first answer waits for a recording.
        is_due = shape in self._met and shape not in self._graphs
        if is_there and not is_due:
            self._add_blocks(batch)
        else:
            tokens = None if unread is None else unread.of(batch)
            if is_due:
                self._record(shape, work)
            self._place(step, shape.rows, tokens)
        self._met.add(shape)
        if self._gathers:
            self._cache.clear_begun(step.decodes)
        if shape.choice in (Choice.DRAWN, Choice.DRAWN_FROM_FEW):
            self._draws.advance(batch, written)
        run = self._graphs.ready(shape, work) if shape in self._graphs else work
        run()
        chosen = self._chosen(batch, written)
        self._batch, self._next = batch, [chunk.stop for chunk in step.decodes]
        return chosen

    def _shape_of(self, batch: tuple[Sequence, ...]) -> DecodeShape:
        width = self._tables.shape[1]
        if self._gathers:
            longest = max(len(sequence.blocks) for sequence in batch)
            width = min(power_of_two(longest), width)
        return DecodeShape(padded(len(batch)), width, self._choice)

    def _record(self, shape: DecodeShape, work: Work) -> None:
        """Records work on padding alone; the buffers are then without a batch."""
        self._numbers.zero_()
        self._tables.fill_(self._cache.scratch_block)
        self._graphs.ready(shape, work)

    def _run(self, shape: DecodeShape) -> None:
        """The work: one token of each row, and the numbers of the next step."""
        tokens, positions, advances = self._numbers[:, : shape.rows]
        tables = self._tables[: shape.rows, : shape.width]
        size = self._cache.block_size
        blocks = tables.gather(1, (positions // size)[:, None])[:, 0]
        slots = blocks * size + positions % size
        lengths = positions + 1
        span = DecodeSpan(0, tables, lengths, None)
        attend = PagedAttention(self._cache.keys, self._cache.values, slots, decodes=span)
        x = self._model.embed(tokens)
        # A written token is turned by the length that its sequence has with it.
        hidden = self._model.decoder(x, Positions(positions, lengths), attend)
        logits = self._model.logits(hidden)
        positions += advances
        if shape.choice is Choice.BEHIND:
            self._logits[: shape.rows].copy_(logits)
            return
        wishes = None
        if shape.choice is not Choice.MOST_PROBABLE:
            truncates = shape.choice is Choice.DRAWN_FROM_FEW
            wishes = self._draws.view(shape.rows, truncates=truncates)
        tokens.copy_(choose(logits, wishes))

    def _chosen(self, batch: tuple[Sequence, ...], written: list[int]) -> Sampled:
        """The next tokens, which are those that the next step reads."""
        tokens = self._numbers[TOKENS, : len(batch)]
        if self._choice is not Choice.BEHIND:
            return Sampled(tokens, None)
        wishes = SamplingBatch.of(batch, self._device, written)
        sampled = sample(self._logits[: len(batch)], wishes)
        tokens.copy_(sampled.ids)
        return sampled

    def _place(self, step: Step, rows: int, unread: Int[Tensor, " rows"] | None) -> None:
        """Fills the buffers with a batch and its padding."""
        batch = [chunk.sequence for chunk in step.decodes]
        numbers = np.zeros((3, rows), np.int64)
        if unread is None:
            numbers[TOKENS, : len(batch)] = [s.token_ids[-1] for s in batch]
        numbers[POSITIONS, : len(batch)] = [chunk.start for chunk in step.decodes]
        numbers[ADVANCES, : len(batch)] = 1
        self._numbers[:, :rows].copy_(self._upload(numbers))
        if unread is not None:
            self._numbers[TOKENS, : len(batch)] = unread
        self._place_tables(batch, rows)
        if self._choice in (Choice.DRAWN, Choice.DRAWN_FROM_FEW):
            self._draws.place(batch)

    def _place_tables(self, batch: list[Sequence], rows: int) -> None:
        self._num_blocks = [len(sequence.blocks) for sequence in batch]
        tables = np.full((rows, max(self._num_blocks)), self._cache.scratch_block, np.int64)
        for row, sequence in enumerate(batch):
            # Unused entries repeat a block of the sequence itself: others' may have overflowed.
            tables[row] = sequence.blocks[0]
            tables[row, : len(sequence.blocks)] = sequence.blocks
        known = self._upload(tables)
        if self._gathers:
            self._tables[:rows].copy_(known[:, :1].expand(-1, self._tables.shape[1]))
        self._tables[:rows, : known.shape[1]].copy_(known)

    def _add_blocks(self, batch: tuple[Sequence, ...]) -> None:
        """Enters the blocks that sequences have got since the last step."""
        new: list[tuple[int, int, int]] = []
        for row, sequence in enumerate(batch):
            first, self._num_blocks[row] = self._num_blocks[row], len(sequence.blocks)
            new += [(row, i, b) for i, b in enumerate(sequence.blocks[first:], first)]
        if new:
            rows, columns, blocks = self._upload(np.array(new, np.int64).T.copy())
            self._tables.index_put_((rows, columns), blocks)

    def _upload(self, values: np.ndarray) -> Tensor:
        return devices.upload(torch.from_numpy(values), self._device)
