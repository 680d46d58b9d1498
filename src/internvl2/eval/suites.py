"""Suites: questions on pictures that `synthetic` draws for test, anew whenever they are asked.

No picture is kept: a question knows the number of its sample, and a sample follows from its number.
A part of a suite asks the first question of each sample where that is of the part's kind, so that
no answer is given away by an earlier turn.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import count as numbers
from itertools import islice
from types import MappingProxyType

from internvl2.eval.questions import Id
from internvl2.processing.conversation import Message, Picture, Video
from internvl2.synthetic.catalogue import sample
from internvl2.synthetic.sample import Sample

TRANSCRIPTION = ("character_similarity", "lines_exact")
BOXES = ("iou", "precision@0.5")
EXACT = ("exact_match", "anls")
NUMBERS = ("relaxed_accuracy", "exact_match")

PATIENCE = 2000
"""Samples in a row that do not fit a part; at difficulty 0.2 one in seventeen fits the rarest."""


@dataclass(frozen=True, slots=True)
class Part:
    """One row of a suite."""

    name: str
    task: str
    """Of the catalogue of `synthetic`."""
    metrics: tuple[str, ...]
    """The first one is what the part is judged by."""
    kinds: tuple[str, ...] = ()
    """Of the questions that count; all of the task's unless given."""

    def takes(self, made: Sample) -> bool:
        """Whether a sample begins with a question of this part."""
        return not self.kinds or made.turns[0].kind in self.kinds


@dataclass(frozen=True, slots=True)
class Drawn:
    """A question on a sample; its pictures are drawn when its messages are asked for."""

    line: int
    part: Part
    number: int
    """Of the sample within its task."""
    difficulty: float
    answers: tuple[str, ...]
    turn: int = 1

    @property
    def key(self) -> str:
        """Its place in the suite."""
        return f"{self.line}.{self.turn}"

    @property
    def category(self) -> str | None:
        """The name of its part."""
        return self.part.name

    @property
    def id(self) -> Id:
        """What `synthetic` makes it from again."""
        return f"{self.part.task}/{self.number}"

    @property
    def messages(self) -> tuple[Message, ...]:
        """The question with its pictures."""
        made = sample(self.part.task, self.number, "test", self.difficulty)
        asked = made.turns[0].question
        if made.is_video:
            return (Message.user(Video(made.images), asked),)
        return (Message.user(*map(Picture, made.images), asked),)


@dataclass(frozen=True, slots=True)
class Suite:
    """Questions that were drawn."""

    questions: tuple[Drawn, ...]
    digest: str
    """Changes where questions, answers or pictures do."""


_NANO = (
    Part("text", "reading", TRANSCRIPTION, ("read",)),
    Part("document text", "documents", TRANSCRIPTION, ("read",)),
    Part("document fields", "documents", EXACT, ("",)),
    Part("scene text", "scene", TRANSCRIPTION, ("read",)),
    Part("chinese text", "chinese", TRANSCRIPTION, ("read",)),
    Part("chinese fields", "chinese", EXACT, ("",)),
    Part("charts", "charts", NUMBERS, ("value", "extreme", "compare")),
    Part("chart titles and counts", "charts", NUMBERS, ("other",)),
    Part("shapes", "shapes", EXACT),
    Part("arithmetic", "arithmetic", EXACT),
    Part("grounding", "grounding", BOXES),
    Part("several images", "several", EXACT),
    Part("video direction", "video", EXACT, ("direction",)),
    Part("video changes", "video", EXACT, ("",)),
    Part("talk", "talk", EXACT),
    Part("unreadable", "unreadable", EXACT),
)

SUITES: Mapping[str, tuple[Part, ...]] = MappingProxyType({"nano": _NANO})


def find(name: str) -> tuple[Part, ...]:
    """The parts of the suite of that name."""
    if name not in SUITES:
        raise ValueError(f"unknown suite {name!r}; known: {', '.join(SUITES)}")
    return SUITES[name]


def draw_suite(name: str, count: int, difficulty: float, advance: Callable[[int], object]) -> Suite:
    """So many questions of each part, always the same ones; `advance` is told of each.

    Raises ValueError where a part has no questions at that difficulty.
    """
    state = blake2b(digest_size=16)
    drawn: list[Drawn] = []
    for part in find(name):
        for number, made in islice(_fitting(part, difficulty), count):
            answers = (made.turns[0].answer,)
            drawn.append(Drawn(len(drawn) + 1, part, number, difficulty, answers))
            state.update(f"{part.name}\n{made.turns[0]}\n".encode())
            for image in made.images:
                state.update(image.tobytes())
            advance(1)
    return Suite(tuple(drawn), state.hexdigest())


def _fitting(part: Part, difficulty: float) -> Iterator[tuple[int, Sample]]:
    """The samples that begin with a question of the part, and their numbers.

    Raises ValueError where the part has nothing to ask at that difficulty.
    """
    misses = 0
    for number in numbers():
        made = sample(part.task, number, "test", difficulty)
        misses = 0 if part.takes(made) else misses + 1
        if not misses:
            yield number, made
        elif misses == PATIENCE:
            raise ValueError(
                f"{PATIENCE} pictures of difficulty {difficulty:g} have no question for "
                f"{part.name!r}; a higher difficulty has"
            )
