"""The tasks: what each is called, how it is made, how it is scored, how often it is drawn."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from internvl2.synthetic.draw import Draw
from internvl2.synthetic.sample import Sample
from internvl2.synthetic.tasks import (
    arithmetic,
    charts,
    chinese,
    documents,
    flags,
    grounding,
    reading,
    scene,
    several,
    shapes,
    talk,
    unreadable,
    video,
)
from internvl2.synthetic.wordings import spoken
from internvl2.synthetic.words import Split

Make = Callable[[Draw, float], Sample]


@dataclass(frozen=True)
class Task:
    """A kind of pictures and questions."""

    name: str
    make: Make
    """From chance and a difficulty between 0 and 1."""
    metric: str
    """Name of the metric of `eval.metrics` that scores its answers."""
    weight: float
    """Its share of a mixture, relative to the others'."""


_ALL = (
    Task("reading", reading.make, "anls", 3.0),
    Task("documents", documents.make, "anls", 3.0),
    Task("scene", scene.make, "anls", 1.0),
    Task("chinese", chinese.make, "anls", 1.2),
    Task("charts", charts.make, "relaxed_accuracy", 3.0),
    Task("shapes", shapes.make, "exact_match", 2.5),
    Task("arithmetic", arithmetic.make, "exact_match", 1.7),
    Task("grounding", grounding.make, "iou", 2.5),
    Task("several", several.make, "exact_match", 0.8),
    Task("video", video.make, "exact_match", 1.0),
    Task("talk", talk.make, "exact_match", 0.4),
    Task("unreadable", unreadable.make, "exact_match", 0.4),
)

TASKS: Mapping[str, Task] = MappingProxyType({task.name: task for task in _ALL})
"""What nano learns from."""
FURTHER: Mapping[str, Task] = MappingProxyType(
    {"flags": Task("flags", flags.make, "exact_match", 1.0)}
)
"""What is drawn only where it is asked for by name: new to nano, to fine-tune it on."""


def find(name: str) -> Task:
    """The task of that name."""
    if name not in TASKS and name not in FURTHER:
        raise ValueError(f"unknown task {name!r}; known: {', '.join((*TASKS, *FURTHER))}")
    return TASKS[name] if name in TASKS else FURTHER[name]


def sample(task: str, number: int, split: Split, difficulty: float = 1.0) -> Sample:
    """The sample of that number; it is the same each time and everywhere."""
    draw = Draw(number, split, task)
    made = find(task).make(draw, difficulty)
    return replace(made, turns=spoken(draw, made.turns))


def mixture(
    number: int,
    split: Split,
    weights: Mapping[str, float] | None = None,
    difficulty: float = 1.0,
) -> Sample:
    """The sample of that number of a mixture of tasks, by weight; the catalogue's unless given."""
    shares = weights or {task.name: task.weight for task in TASKS.values()}
    task = Draw(number, split, "mixture").weighted(tuple(shares), tuple(shares.values()))
    return sample(task, number, split, difficulty)
