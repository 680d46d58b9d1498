"""What the speed benchmark asks of each engine, and the files through which its processes talk."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from internvl2.bench.subjects import Size, Subject
from internvl2.bench.timing import Spread

PARTS = ("first-token", "decode", "quantized", "pictures", "texts", "video", "start")
MANY = ("pictures", "texts")
"""Of many requests at once."""
LARGE, SMALL = Size(1600, 1200), Size(1024, 768)


@dataclass(frozen=True)
class Sizes:
    """How much is asked; the usual ones are those of the table that is aimed at."""

    picture: Size = LARGE
    """Of one request at a time: 13 tiles."""
    small: Size = SMALL
    """Of many requests at once: 13 tiles, too."""
    question: int = 32
    """Tokens."""
    frames: int = 32
    decoded: int = 128
    """Tokens after the first, of one request."""
    requests: int = 64
    after_pictures: int = 128
    """Tokens of each of many answers about pictures."""
    after_texts: int = 256
    rounds: int = 5
    many_rounds: int = 2
    peer_batch: int = 16
    """Requests in one batch of transformers, which holds all their activations."""

    @classmethod
    def tiny(cls) -> "Sizes":
        """Enough to see that everything runs."""
        one_tile = Size(64, 64)
        return cls(
            picture=one_tile,
            small=one_tile,
            question=4,
            frames=2,
            decoded=3,
            requests=2,
            after_pictures=2,
            after_texts=2,
            rounds=1,
            many_rounds=1,
            peer_batch=2,
        )

    @property
    def one_picture(self) -> Subject:
        """A question about a picture."""
        return Subject(self.question, picture=self.picture)

    @property
    def many_pictures(self) -> Subject:
        """The same of many requests."""
        return Subject(self.question, picture=self.small)

    @property
    def video(self) -> Subject:
        """A question about decoded frames."""
        return Subject(self.question, frames=self.frames)

    @property
    def text(self) -> Subject:
        """A question alone."""
        return Subject(self.question)


@dataclass(frozen=True)
class Job:
    """What one process measures of one engine and one checkpoint."""

    side: str
    model: Path
    parts: tuple[str, ...]
    device: str
    dtype: str
    sizes: Sizes
    quantize: str | None = None
    graphs: bool = True
    """Whether ours records CUDA graphs where it can."""
    has_compiled: bool = True
    """Whether kernels that were compiled before are there."""
    verbose: bool = False

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self), default=str))

    @classmethod
    def read(cls, path: Path) -> "Job":
        """What `write` wrote."""
        raw = json.loads(path.read_text())
        sizes = raw["sizes"]
        for name in ("picture", "small"):
            sizes[name] = Size(**sizes[name])
        raw["model"], raw["parts"] = Path(raw["model"]), tuple(raw["parts"])
        return cls(**raw | {"sizes": Sizes(**sizes)})


@dataclass
class Found:
    """What a process measured; a file of it is written after each figure, should it end early."""

    figures: dict[str, Spread] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Every number."""
        figures = {name: asdict(spread) for name, spread in self.figures.items()}
        return {"figures": figures, "limits": self.limits, "notes": self.notes}

    @classmethod
    def of(cls, raw: dict[str, Any]) -> "Found":
        """What `as_json` gave."""
        figures = {name: Spread.of(each["every"]) for name, each in raw["figures"].items()}
        return cls(figures, raw["limits"], raw["notes"])

    def join(self, other: "Found") -> None:
        """Takes over what another process found."""
        self.figures |= other.figures
        self.limits |= other.limits
        self.notes += other.notes


@dataclass
class Notebook:
    """Figures on their way to a file."""

    path: Path
    found: Found = field(default_factory=Found)

    def write(self, name: str, numbers: list[float], limit: float | None = None) -> None:
        """One figure, all its rounds."""
        self.found.figures[name] = Spread.of(numbers)
        if limit is not None:
            self.found.limits[name] = limit
        self._save()

    def note(self, text: str) -> None:
        """What a reader of the figures should know."""
        self.found.notes.append(text)
        self._save()

    def _save(self) -> None:
        self.path.write_text(json.dumps(self.found.as_json()))
