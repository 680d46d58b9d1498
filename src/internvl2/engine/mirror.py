"""Steps as other processes need them told: what is new since they were told last.

A process that computes the same steps keeps copies of the sequences. It learns of a sequence when
that is first computed, and of its tokens and blocks as they are added. Pixels stay behind: the
model hands them on between devices.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from internvl2.engine.scheduler import Chunk, Step
from internvl2.engine.sequence import SamplingParams, Sequence
from internvl2.processing.prompt import MediaSpan, Prompt


@dataclass(frozen=True, slots=True)
class Arrival:
    """A sequence that is computed for the first time, or for the first time again."""

    id: int
    token_ids: list[int]
    """Of the prompt."""
    tiles_shape: tuple[int, ...]
    media: tuple[MediaSpan, ...]
    params: SamplingParams
    stop_token_ids: frozenset[int]
    seed: int
    leading_ids: tuple[int, ...]

    @classmethod
    def of(cls, sequence: Sequence) -> "Arrival":
        """What does not change about a sequence, less its pixels."""
        return cls(
            sequence.id,
            sequence.prompt.token_ids,
            sequence.prompt.tiles.shape,
            sequence.prompt.media,
            sequence.params,
            sequence.stop_token_ids,
            sequence.seed,
            sequence.leading_ids,
        )

    def copy(self) -> Sequence:
        """The sequence with black pictures."""
        black = np.broadcast_to(np.zeros((), np.uint8), self.tiles_shape)
        prompt = Prompt(self.token_ids, [False] * len(self.token_ids), black, self.media)
        return Sequence(
            self.id,
            prompt,
            self.params,
            self.stop_token_ids,
            self.seed,
            self.leading_ids,
        )


class ChunkNote(NamedTuple):
    """A chunk, and what its sequence has got since it was last told of."""

    sequence_id: int
    start: int
    stop: int
    token_ids: list[int]
    blocks: list[int]


@dataclass(frozen=True, slots=True)
class StepNote:
    """A step of the scheduler."""

    arrivals: tuple[Arrival, ...]
    prefills: tuple[ChunkNote, ...]
    decodes: tuple[ChunkNote, ...]
    follows: bool


@dataclass(slots=True)
class _Told:
    """How much of a sequence the others know."""

    tokens: int
    blocks: int = 0


@dataclass(frozen=True, slots=True)
class Teller:
    """Turns steps into notes."""

    _told: dict[int, _Told] = field(default_factory=dict)

    def note(self, step: Step) -> StepNote:
        """What the others need to be told in order to compute a step."""
        sequences = [chunk.sequence for chunk in step.chunks]
        new = tuple(self._arrive(each) for each in sequences if each.id not in self._told)
        prefills, decodes = (tuple(map(self._chunk, x)) for x in (step.prefills, step.decodes))
        return StepNote(new, prefills, decodes, step.follows)

    def forget(self, sequence_id: int) -> bool:
        """Whether the others know a sequence; from now on they do not."""
        return self._told.pop(sequence_id, None) is not None

    def _arrive(self, sequence: Sequence) -> Arrival:
        self._told[sequence.id] = _Told(sequence.prompt_length)
        return Arrival.of(sequence)

    def _chunk(self, chunk: Chunk) -> ChunkNote:
        sequence = chunk.sequence
        told = self._told[sequence.id]
        token_ids, blocks = sequence.token_ids[told.tokens :], sequence.blocks[told.blocks :]
        told.tokens, told.blocks = len(sequence.token_ids), len(sequence.blocks)
        return ChunkNote(sequence.id, chunk.start, chunk.stop, token_ids, blocks)


@dataclass(frozen=True, slots=True)
class Listener:
    """Turns notes back into steps."""

    _sequences: dict[int, Sequence] = field(default_factory=dict)

    def step(self, note: StepNote) -> Step:
        """The step that was told of, on copies of its sequences."""
        for arrival in note.arrivals:
            self._sequences[arrival.id] = arrival.copy()
        prefills, decodes = (tuple(map(self._chunk, x)) for x in (note.prefills, note.decodes))
        return Step(prefills, decodes, follows=note.follows)

    def forget(self, sequence_id: int) -> Sequence:
        """The copy of a sequence, which is kept no longer."""
        return self._sequences.pop(sequence_id)

    def _chunk(self, note: ChunkNote) -> Chunk:
        sequence = self._sequences[note.sequence_id]
        sequence.token_ids += note.token_ids
        sequence.blocks += note.blocks
        return Chunk(sequence, note.start, note.stop)
