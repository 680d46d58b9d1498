"""Drawn samples as a source of records: each is made when it is asked for, from its number alone.

The conversation is the one that `chat` asks: pictures before the first question, labels where there
are several, the frames of a video one per line.
"""

from dataclasses import dataclass, replace

from internvl2.processing.conversation import Message, Part, Picture, Video
from internvl2.synthetic.catalogue import FURTHER, TASKS, find, mixture
from internvl2.synthetic.sample import Sample
from internvl2.synthetic.words import Split
from internvl2.train.data.formats import Record
from internvl2.train.data.order import mix


@dataclass(frozen=True)
class DrawnSource:
    """So many numbers of a mixture of tasks, drawn anew each time."""

    samples: int
    weights: dict[str, float]
    """How often each task is drawn, relative to the others."""
    difficulty: tuple[float, float]
    """Each sample has one between these."""
    split: Split = "train"
    first: int = 0
    """Number of the first sample."""
    pictures: bool = True
    max_tiles: int | None = None
    augment: bool = False

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.samples:
            raise IndexError(f"record {index} of {self.samples}")
        number = self.first + index
        low, high = self.difficulty
        difficulty = low + (high - low) * (mix(number) >> 11) / 2**53
        drawn = mixture(number, self.split, self.weights, difficulty)
        if not self.pictures:
            drawn = replace(drawn, images=(), is_video=False)
        where = f"synthetic/{self.split}/{drawn.task}:{number}"
        return Record(conversation(drawn), where, self.max_tiles, self.augment)


def task_weights(tasks: tuple[str, ...], weights: tuple[float, ...]) -> dict[str, float]:
    """How often each of the tasks is drawn: all tasks and the catalogue's weights unless given."""
    names = tasks or tuple(TASKS)
    known = (*TASKS, *FURTHER)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"unknown task {unknown[0]!r} in synthetic.tasks; known: {', '.join(known)}"
        )
    return dict(zip(names, weights or [find(name).weight for name in names], strict=True))


def conversation(drawn: Sample) -> tuple[Message, ...]:
    """The turns of a sample, its pictures in the first question."""
    media: list[Part] = [Picture(image) for image in drawn.images]
    if drawn.is_video:
        media = [Video(drawn.images, num_frames=len(drawn.images))]
    messages: list[Message] = []
    for turn in drawn.turns:
        messages += [Message.user(*media, turn.question), Message.assistant(turn.answer)]
        media = []
    return tuple(messages)
