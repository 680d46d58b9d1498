"""What is found in a data set, added up sample by sample: some 17 bytes for each."""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from internvl2.train.doctor.findings import FAULTS, OF_LEARNING, REPEATED, WARNINGS, Finding, Kind
from internvl2.train.doctor.inspection import Inspected
from internvl2.train.doctor.report import FIRST, Found, Place, Spread, Totals
from internvl2.train.doctor.sets import OpenedSet


@dataclass
class _Noted:
    """Findings of a kind: how many samples have one, and the first of them."""

    count: int = 0
    places: list[Place] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)


class Tally:
    """What was found in a set so far; its samples come in their order."""

    def __init__(self, opened: OpenedSet, start: int) -> None:
        self.set = opened
        self.start = start
        """Number of its first sample among those of all sets."""
        self.tokens, self.tiles = array("I"), array("I")
        self.usable = bytearray()
        self.digests = array("Q")
        self._learned = self._visual = 0
        self._noted: dict[Kind, _Noted] = {}

    @property
    def inspected(self) -> int:
        """Samples looked at."""
        return len(self.tokens)

    @property
    def is_whole(self) -> bool:
        """Whether every record was looked at."""
        return self.inspected == self.set.stored

    def add(self, sample: Inspected) -> None:
        """The next sample."""
        number = self.inspected
        kinds: dict[Kind, Finding] = {}
        for finding in sample.findings:
            if self.concerns(finding):
                kinds.setdefault(finding.kind, finding)
        for finding in kinds.values():
            self.note(finding, number, sample.where)
        size = sample.size
        self.tokens.append(0 if size is None else size.tokens)
        self.tiles.append(0 if size is None else size.tiles)
        self._learned += 0 if size is None else size.learned
        self._visual += 0 if size is None else size.visual
        self.usable.append(size is not None and not any(f.is_fault for f in kinds.values()))
        self.digests.append(sample.digest)

    def concerns(self, finding: Finding) -> bool:
        """Whether it matters for what the set is used for."""
        return self.set.use != "questions" or finding.kind not in OF_LEARNING

    def note(self, finding: Finding, number: int, where: str) -> None:
        """Something about a sample of the set, by its number in it."""
        noted = self._noted.setdefault(finding.kind, _Noted())
        noted.count += 1
        if len(noted.places) < FIRST:
            noted.places.append(Place(where, finding.reason))
            noted.samples.append(number)

    def notes_all(self, kind: Kind) -> bool:
        """Whether so many of a kind are told already that a further one is only counted."""
        return kind in self._noted and len(self._noted[kind].places) >= FIRST

    def found(self) -> tuple[Found, ...]:
        """All findings, the faults first."""
        return tuple(
            Found(kind, self._noted[kind].count, tuple(self._noted[kind].places))
            for kind in (*FAULTS, *WARNINGS)
            if kind in self._noted
        )

    def totals(self) -> Totals | None:
        """What the samples take that can be encoded, also those that are too long for a pack."""
        tokens = np.asarray(self.tokens, np.int64)
        tiles = np.asarray(self.tiles, np.int64)[tokens > 0]
        tokens = tokens[tokens > 0]
        if not len(tokens):
            return None
        whole = int(tokens.sum())
        return Totals(_spread(tokens), _spread(tiles), self._visual / whole, self._learned / whole)

    def flagged(self) -> Iterator[int]:
        """Numbers of samples that can be encoded and have findings of their own, kinds in turn."""
        told: list[Kind] = [kind for kind in (*FAULTS, *WARNINGS) if kind in self._noted]
        waiting = [self._noted[kind].samples for kind in told if kind not in REPEATED]
        for place in range(FIRST):
            for samples in waiting:
                if place < len(samples) and self.tokens[samples[place]]:
                    yield samples[place]

    def spread_out(self, count: int) -> list[int]:
        """Numbers of so many usable samples, from the whole length of the set."""
        numbers = np.flatnonzero(np.frombuffer(self.usable, np.uint8))
        if len(numbers) <= count:
            return numbers.tolist()
        return numbers[[len(numbers) * part // count for part in range(count)]].tolist()


def _spread(values: np.ndarray) -> Spread:
    p50, p95 = np.percentile(values, [50, 95], method="nearest")
    return Spread(float(values.mean()), int(p50), int(p95), int(values.max()))
