"""`internvl2 bench`: how fast a model answers on this machine, one request or many at once."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg, subcommand

from internvl2.checkpoint.hub import EMBEDDED
from internvl2.cli.loading import engine_options, load_engine, require_model
from internvl2.cli.options import LoadOptions, MediaOptions, as_typed, require_within

if TYPE_CHECKING:
    from internvl2.bench.conditions import Conditions
    from internvl2.bench.rows import Row
    from internvl2.bench.subjects import Subject
    from internvl2.engine.engine import Engine, EngineOptions

SUBJECT_TOKENS = 32
FEW, MANY = 8, 64
"""Requests at once on a CPU, and on an accelerator."""
BenchedModel = Annotated[str, arg(aliases=("-m",)), as_typed("NAME|PATH")]


@dataclass(frozen=True)
class Asked:
    """What the questions are about."""

    size: Annotated[str, as_typed("WIDTHxHEIGHT")] = ""
    """Pixels of the pictures; 1600x1200 for latency, 1024x768 for throughput unless given."""
    frames: int = 0
    """Decoded frames of a video, one tile each: for latency beside the picture, for throughput
    instead of it."""
    text_only: bool = False
    """Ask without pictures."""
    text_tokens: int = SUBJECT_TOKENS
    """Length of the question."""
    tokens: int = 128
    """Length of the answers, whatever the model would like to say."""

    def check(self) -> None:
        """Refuses lengths that are none, and a size beside --text-only."""
        require_within("--frames", self.frames, 0, 1024)
        require_within("--text-tokens", self.text_tokens, 1)
        require_within("--tokens", self.tokens, 2)
        if self.text_only and (self.size or self.frames):
            raise ValueError("--text-only asks without pictures: leave out --size and --frames")

    @property
    def text(self) -> "Subject":
        """A question alone."""
        from internvl2.bench.subjects import Subject

        return Subject(self.text_tokens)

    def picture(self, usual: str) -> "Subject":
        """A question about a picture, of the usual size unless one was given."""
        from internvl2.bench.subjects import Size, Subject

        return Subject(self.text_tokens, picture=Size.of(self.size or usual))

    @property
    def video(self) -> "Subject":
        """A question about frames."""
        from internvl2.bench.subjects import Subject

        return Subject(self.text_tokens, frames=self.frames)


@dataclass(frozen=True)
class Benched:
    """A model to measure."""

    model: BenchedModel = EMBEDDED
    """Directory, hub id (OpenGVLab/InternVL2-2B) or short name (internvl2-2b); nano is built in."""
    random: bool = False
    """Random weights in the shape of the model (2b, internvl2_5-8b): nothing is loaded."""
    json: bool = False
    """Print one JSON object instead of a table."""
    load: LoadOptions = field(default_factory=LoadOptions)

    def check(self) -> None:
        """Refuses options of loading where nothing is loaded."""
        require_model(self.model)
        self.load.check()
        given = {
            "--adapter": self.load.adapter,
            "--revision": self.load.revision,
            "--offline": self.load.offline,
        }
        for name, value in given.items():
            if self.random and value:
                raise ValueError(f"{name} goes with weights that are loaded, not with random ones")

    def open(self, sizes: "EngineOptions") -> "tuple[Engine, Conditions]":
        """The engine, and what is told of it."""
        from internvl2.bench.conditions import Conditions

        if not self.random:
            loaded = load_engine(self.model, self.load, MediaOptions(), sizes)
            return loaded.engine, Conditions.of(loaded.engine, loaded.origin, loaded.load_s)
        from internvl2.bench.random_weights import random_engine

        engine = random_engine(
            self.model,
            device=self.load.device,
            dtype=self.load.dtype,
            quantize=self.load.quantize,
            options=engine_options(self.load, sizes),
            tensor_parallel=self.load.tensor_parallel,
        )
        return engine, Conditions.of(engine, f"{self.model}, random weights")

    def show(self, conditions: "Conditions", rows: "Iterator[Row]") -> None:
        """Prints rows as they come, or all of them as JSON."""
        from internvl2.bench.rows import table

        if self.json:
            found = {"conditions": asdict(conditions), "rows": [row.as_json() for row in rows]}
            print(json.dumps(found, ensure_ascii=False))
            return
        print(conditions.lines())
        for line in table(rows):
            print(line, flush=True)
        if not conditions.device.endswith("cpu"):
            print("limit: what the maker states of the device's memory and bf16 arithmetic")


@dataclass(frozen=True)
class Latency:
    """Time one request: preprocessing, first token, next tokens; medians over rounds."""

    benched: Benched = field(default_factory=Benched)
    asked: Asked = field(default_factory=Asked)
    rounds: int = 5
    """How often each is measured, after once that does not count."""

    def run(self) -> int:
        """Prints the table."""
        from internvl2.bench.latency import ALONE, Work, measure

        self.benched.check()
        self.asked.check()
        require_within("--rounds", self.rounds, 1)
        media = () if self.asked.text_only else (self.asked.picture("1600x1200"),)
        if self.asked.frames:
            media = (*media, self.asked.video)
        work = Work(self.asked.text, media, self.asked.tokens, self.rounds)
        engine, conditions = self.benched.open(ALONE)
        with engine:
            self.benched.show(conditions, measure(engine, work))
        return 0


@dataclass(frozen=True)
class Throughput:
    """Time many requests at once, each with its own picture; medians over rounds."""

    benched: Benched = field(default_factory=Benched)
    asked: Asked = field(default_factory=Asked)
    requests: Annotated[int | None, arg(metavar="N")] = None
    """How many at once; 64 on an accelerator and 8 on a CPU unless given."""
    rounds: int = 3
    """How often it is measured, after once that does not count."""
    preprocess: Literal["exact", "fast"] = "exact"
    """How pictures are resized."""

    def run(self) -> int:
        """Prints the table."""
        self.benched.check()
        self.asked.check()
        require_within("--rounds", self.rounds, 1)
        require_within("--requests", self.requests, 1)
        if self.asked.size and self.asked.frames:
            raise ValueError("--size and --frames are both given; the requests are of one kind")
        subject = self._subject()
        from internvl2 import device as devices
        from internvl2.bench.latency import resizing
        from internvl2.bench.throughput import Work, measure, together

        place = devices.pick(self.benched.load.device)
        requests = self.requests or (FEW if place.type == "cpu" else MANY)
        engine, conditions = self.benched.open(together(requests))
        with engine, resizing(engine, self.preprocess):
            work = Work(subject, requests, self.asked.tokens, self.rounds)
            self.benched.show(conditions, measure(engine, work))
        return 0

    def _subject(self) -> "Subject":
        if self.asked.text_only:
            return self.asked.text
        return self.asked.video if self.asked.frames else self.asked.picture("1024x768")


@dataclass(frozen=True)
class Bench:
    """Measure how fast a model answers on this machine, and how near that is to the limit."""

    action: (
        Annotated[Latency, subcommand(name="latency")]
        | Annotated[Throughput, subcommand(name="throughput")]
    )

    def run(self) -> int:
        """The exit code of the action."""
        return self.action.run()
