"""What a recipe says of the data that it trains on, and the checks of a recipe's values."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class DataSource:
    """A data set of the mixture."""

    path: str
    """A file of samples, or an official meta.json that names several sets."""
    root: str | None = None
    """Folder that relative picture paths start from; the file's own folder unless given."""
    repeat: float = 1.0
    """How often an epoch sees the set; below 1, the first such share of it. A meta.json's
    `repeat_time` is multiplied with it; of everything else, what is given here goes before what
    a meta.json says."""
    max_tiles: int | None = None
    """Tile budget of a sample, shared by its pictures; the recipe's `max_tiles` unless given."""
    augment: bool | None = None
    """Show every tile as a JPEG of random quality; a meta.json's `data_augment` unless given."""
    num_frames: int = 8
    """How many frames of a video are seen."""

    def __post_init__(self) -> None:
        require(self.repeat > 0, "data.repeat", self.repeat, "above 0")
        require_from(1, "data.max_tiles", self.max_tiles)
        require_from(1, "data.num_frames", self.num_frames)


@dataclass(frozen=True, slots=True)
class Synthetic:
    """Samples that the package draws while training; see docs/synthetic.md."""

    tasks: tuple[str, ...] = ()
    """Names of tasks (reading, documents, charts ...); all of them unless given."""
    weights: tuple[float, ...] = ()
    """How often each task is drawn, relative to the others; the generator's own unless given."""
    samples: int = 1_000_000_000
    """How many an epoch sees; drawn when they are needed, so that a billion cost nothing."""
    difficulty: tuple[float, float] = (0.0, 1.0)
    """Least and most; each sample has one between them."""
    first: int = 0
    """Number of the first sample; another one gives other samples."""
    pictures: bool = True
    """False leaves them out, so that only the language of the answers is learned."""
    max_tiles: int | None = None
    """Tile budget of a sample, shared by its pictures; the recipe's `max_tiles` unless given."""
    augment: bool = False
    """Show every tile as a JPEG of random quality."""

    def __post_init__(self) -> None:
        counts = (0, len(self.tasks)) if self.tasks else (0,)
        most = f"as many as the {len(self.tasks)} tasks" if self.tasks else "given with tasks"
        require(len(self.weights) in counts, "synthetic.weights", self.weights, most)
        require(all(w > 0 for w in self.weights), "synthetic.weights", self.weights, "above 0")
        require_from(1, "synthetic.samples", self.samples)
        require_from(0, "synthetic.first", self.first)
        require_from(1, "synthetic.max_tiles", self.max_tiles)
        bounds = (0, *self.difficulty, 1)
        rising = len(self.difficulty) == 2 and list(bounds) == sorted(bounds)
        require(rising, "synthetic.difficulty", self.difficulty, "two rising numbers, 0 to 1")


@dataclass(frozen=True, slots=True)
class Packing:
    """How samples fill the fixed-length streams that the model sees."""

    tokens: int = 8192
    """Length of a pack; a longer sample is an error."""
    tiles: int = 30
    """Most tiles in a pack."""
    window: int = 64
    """How many samples are looked at to fill a pack."""
    fill: Literal["evenly", "in_order"] = "evenly"
    """In order, each pack has a window of samples of its own and leaves out those that it has no
    room for: for endless drawn sets, since nothing is made twice to be measured first."""
    loss_weighting: Literal["token", "sample", "square"] = "token"
    """What a sample of n learned tokens counts: n, 1, or the square root of n."""

    def __post_init__(self) -> None:
        for name in ("tokens", "tiles", "window"):
            require_from(1, f"packing.{name}", getattr(self, name))


def require(holds: bool, name: str, value: object, bounds: str) -> None:
    """Raise unless a condition holds of a value; `bounds` says what it must be."""
    if not holds:
        raise ValueError(f"{name} is {value}; it must be {bounds}")


def require_from(lowest: int, name: str, value: int | float | None) -> None:
    """Raise when a value is given and too low."""
    if value is not None and value < lowest:
        raise ValueError(f"{name} is {value}; it must be at least {lowest}")
