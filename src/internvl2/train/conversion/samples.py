"""What a conversion reads: numbered entries of a source, each giving samples or a fault."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from internvl2.processing.conversation import Message


@dataclass(frozen=True, slots=True)
class Sample:
    """A conversation to be written."""

    messages: tuple[Message, ...]
    identity: str | int | None = None
    """Its id in the source."""


@dataclass
class Notes:
    """What a person should know about a conversion, with how often it happened."""

    counts: Counter[str] = field(default_factory=Counter)

    def add(self, what: str, count: int = 1) -> None:
        """Something happened so often."""
        if count:
            self.counts[what] += count

    def say(self, what: str) -> None:
        """Something that needs no number."""
        self.counts[what] = 0

    def __iter__(self) -> Iterator[str]:
        return (f"{what}: {count}" if count else what for what, count in self.counts.items())


@runtime_checkable
class Entries(Protocol):
    """The entries of a source, by number."""

    def __len__(self) -> int: ...

    def where(self, entry: int) -> str:
        """File and line, for people."""
        ...

    def read(self, entry: int) -> tuple[Sample, ...]:
        """The samples that an entry gives, perhaps none; a `ValueError` says what is wrong."""
        ...


@dataclass(frozen=True)
class SourceSet:
    """A data set with what a meta.json says of it."""

    name: str
    entries: Entries
    repeat: float = 1.0
    max_tiles: int | None = None
    augment: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether nothing but its samples has to be kept."""
        return self.repeat == 1 and self.max_tiles is None and not self.augment
