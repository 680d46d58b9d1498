"""Shapes: counting, colours, which is largest, what lies left of, above or inside what."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from internvl2.synthetic.diagrams import make_diagram
from internvl2.synthetic.draw import Draw
from internvl2.synthetic.forms import Box, Form
from internvl2.synthetic.nested import CONTAINERS, make_nested
from internvl2.synthetic.page import easiness, is_easy
from internvl2.synthetic.sample import Sample, Turn
from internvl2.synthetic.scenes import (
    ARROW_TURNS,
    WHITE,
    Ground,
    Scene,
    choose_ground,
    choose_shapes,
    choose_size,
    make_form,
    scatter,
)
from internvl2.synthetic.wordings import DESCRIBE

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")


@dataclass(frozen=True)
class Seen:
    """What a question may be about: the forms and where they ended up."""

    forms: tuple[Form, ...]
    boxes: tuple[Box, ...]
    width: int
    height: int

    @property
    def unique(self) -> tuple[int, ...]:
        """Places of the forms whose colour and shape no other form has."""
        names = Counter(form.name for form in self.forms)
        return tuple(i for i, form in enumerate(self.forms) if names[form.name] == 1)


Ask = Callable[[Draw, Seen], Turn | None]


def make(draw: Draw, difficulty: float) -> Sample:
    """A picture of one to nine forms with one to four questions."""
    if draw.chance(0.12 * (1 - easiness(difficulty))):
        return make_nested(draw, difficulty)
    if difficulty > 0.3 and draw.chance(0.07):
        return make_diagram(draw, difficulty)
    in_row = draw.chance(0.12 * (1 - easiness(difficulty)))
    scene = mixed_scene(draw, difficulty, in_row)
    image, boxes = scene.paint()
    seen = Seen(scene.forms, boxes, scene.width, scene.height)
    asks = (_ordinal, _ordinal, _colour_of, _count) if in_row else _ASKS
    return Sample("shapes", (image,), questions(draw, seen, asks))


def questions(draw: Draw, seen: Seen, asks: Sequence[Ask]) -> tuple[Turn, ...]:
    """Questions, no two alike; only training pictures begin with a description."""
    wanted = draw.more(draw.integer(1, 4))
    turns: list[Turn] = []
    if draw.split == "train" and draw.chance(0.08) and len(seen.forms) <= 4:
        turns.append(describe(draw, seen))
    while len(turns) < wanted:
        turn = draw.choice(asks)(draw, seen)
        if turn is None:
            continue
        if any(turn.question == other.question for other in turns):
            wanted -= 1
        else:
            turns.append(turn)
    return tuple(turns)


def mixed_scene(draw: Draw, difficulty: float, in_row: bool = False) -> Scene:
    """Up to nine forms, of few kinds at times, whose colours and places belong to the split.

    To begin with, one or two large ones on white.
    """
    easy = not in_row and is_easy(draw, difficulty)
    while True:
        ground = WHITE if easy else choose_ground(draw)
        width, height = choose_size(draw)
        most = 5 if in_row else 2 if easy else 3 + round(6 * difficulty)
        count = draw.integer(2 if in_row or draw.chance(0.4) else 1, most)
        forms = _kinds(draw, ground, count, difficulty)
        if easy:
            forms = tuple(replace(form, radius=1.0) for form in forms)
        forms = _row(draw, width, height, forms) if in_row else scatter(draw, width, height, forms)
        scene = Scene(width, height, ground, forms)
        if draw.belongs(scene.key):
            return scene


def describe(draw: Draw, seen: Seen) -> Turn:
    """All forms, from left to right."""
    order = sorted(zip(seen.boxes, seen.forms, strict=True), key=lambda pair: pair[0].middle)
    names = [with_article(form.name) for _, form in order]
    listed = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    question = draw.choice(
        (*DESCRIBE, "What do you see, from left to right?", "Which shapes are there?")
    )
    return Turn(question, f"{listed[0].upper()}{listed[1:]}.")


def with_article(name: str) -> str:
    """ "a red star", "an arrow"."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def plural(shape: str) -> str:
    """More than one of a shape."""
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def _kinds(draw: Draw, ground: Ground, count: int, difficulty: float) -> tuple[Form, ...]:
    shapes = draw.shuffled(choose_shapes(difficulty))
    colours = draw.shuffled(ground.colours)
    if draw.chance(0.45):
        shapes = shapes[: draw.integer(1, 3)]
        colours = colours[: draw.integer(2, 3)]
    sizes = (1.0, 1.0, 0.7) if draw.chance(0.5) else (1.0, 0.72, 0.5, 0.4)
    return tuple(
        replace(
            make_form(draw, draw.choice(shapes), draw.choice(colours), difficulty),
            radius=draw.choice(sizes),
        )
        for _ in range(count)
    )


def _row(draw: Draw, width: int, height: int, forms: Sequence[Form]) -> tuple[Form, ...]:
    step = width / len(forms)
    radius = min(0.4 * step, 0.3 * height)
    middle = height * draw.number(0.35, 0.65)
    return tuple(
        replace(
            form,
            radius=radius * (0.75 + 0.25 * form.radius),
            x=(i + 0.5) * step,
            y=middle + draw.integer(-8, 8),
        )
        for i, form in enumerate(forms)
    )


def _count(draw: Draw, seen: Seen) -> Turn:
    form = draw.choice(seen.forms)
    kind = draw.choice(("all", "shape", "shape", "colour", "name"))
    if kind == "all":
        asked = draw.choice(("shapes", "objects", "figures"))
        return Turn(_how_many(draw, asked), str(len(seen.forms)))
    if kind == "shape":
        found = sum(other.shape == form.shape for other in seen.forms)
        return Turn(_how_many(draw, plural(form.shape)), str(found))
    if kind == "colour":
        found = sum(other.colour == form.colour for other in seen.forms)
        return Turn(_how_many(draw, f"{form.colour} shapes"), str(found))
    other = draw.choice(seen.forms)
    found = sum(f.colour == form.colour and f.shape == other.shape for f in seen.forms)
    return Turn(_how_many(draw, f"{form.colour} {plural(other.shape)}"), str(found))


def _how_many(draw: Draw, what: str) -> str:
    return draw.choice(
        (
            f"How many {what} are there?",
            f"How many {what} are in the picture?",
            f"How many {what} do you see?",
            f"Count the {what}.",
            f"What is the number of {what}?",
        )
    )


def _colour_of(draw: Draw, seen: Seen) -> Turn | None:
    shapes = Counter(form.shape for form in seen.forms)
    colours = Counter(form.colour for form in seen.forms)
    form = draw.choice(seen.forms)
    if shapes[form.shape] == 1 and draw.chance(0.6):
        spelling = draw.choice(("colour", "color"))
        return Turn(
            draw.choice(
                (
                    f"What {spelling} is the {form.shape}?",
                    f"Which {spelling} does the {form.shape} have?",
                    f"What is the {spelling} of the {form.shape}?",
                )
            ),
            form.colour,
        )
    if colours[form.colour] == 1:
        return Turn(
            draw.choice(
                (
                    f"What shape is {form.colour}?",
                    f"What is the shape of the {form.colour} object?",
                    f"Which shape is {form.colour}?",
                )
            ),
            form.shape,
        )
    return None


def _exists(draw: Draw, seen: Seen) -> Turn:
    first, second = draw.choice(seen.forms), draw.choice(seen.forms)
    shape = second.shape if draw.chance(0.7) else draw.choice(CONTAINERS)
    name = first.name if draw.chance(0.35) else f"{first.colour} {shape}"
    found = any(form.name == name for form in seen.forms)
    question = draw.choice(("Is there {}?", "Does the picture show {}?", "Can you see {}?"))
    return Turn(question.format(with_article(name)), "Yes" if found else "No")


def _extreme_size(draw: Draw, seen: Seen) -> Turn | None:
    sizes = [_size(box) for box in seen.boxes]
    order = sorted(range(len(sizes)), key=sizes.__getitem__)
    largest = draw.chance(0.5)
    if len(order) < 2:
        return None
    best, next_best = (order[-1], order[-2]) if largest else (order[0], order[1])
    ratio = sizes[best] / sizes[next_best]
    if best not in seen.unique or max(ratio, 1 / ratio) < 1.3:
        return None
    word = draw.choice(("largest", "biggest") if largest else ("smallest",))
    question = draw.choice(
        ("Which shape is the {}?", "What is the {} shape?", "Name the {} shape.")
    )
    return Turn(question.format(word), seen.forms[best].name)


def _size(box: Box) -> float:
    return ((box.right - box.left) * (box.bottom - box.top)) ** 0.5


def _beside(draw: Draw, seen: Seen) -> Turn | None:
    unique = seen.unique
    if len(unique) < 2:
        return None
    first, second = draw.shuffled(unique)[:2]
    (ax, ay), (bx, by) = seen.boxes[first].middle, seen.boxes[second].middle
    across, down = ax - bx, ay - by
    a, b = seen.forms[first].name, seen.forms[second].name
    if draw.chance(0.5):
        return _is_beside(draw, f"the {a}", f"the {b}", (across / seen.width, down / seen.height))
    if min(abs(across), abs(down)) * 1.8 > max(abs(across), abs(down)):
        return None
    if abs(across) > abs(down):
        answer = "left" if across < 0 else "right"
    else:
        answer = "above" if down < 0 else "below"
    return Turn(
        draw.choice(
            (
                f"Where is the {a} relative to the {b}: left, right, above or below?",
                f"On which side of the {b} is the {a}: left, right, above or below?",
            )
        ),
        answer,
    )


def _is_beside(draw: Draw, a: str, b: str, offset: tuple[float, float]) -> Turn | None:
    sideways = draw.chance(0.5)
    distance = offset[0] if sideways else offset[1]
    if abs(distance) < 0.12:
        return None
    before = draw.chance(0.5)
    words = ("to the left of", "to the right of") if sideways else ("above", "below")
    relation = words[0] if before else words[1]
    return Turn(f"Is {a} {relation} {b}?", "Yes" if (distance < 0) == before else "No")


def _furthest(draw: Draw, seen: Seen) -> Turn | None:
    if len(seen.forms) < 2:
        return None
    side = draw.choice(("left", "right", "top", "bottom"))
    axis = 0 if side in ("left", "right") else 1
    sign = 1 if side in ("left", "top") else -1
    places = [sign * box.middle[axis] for box in seen.boxes]
    order = sorted(range(len(places)), key=places.__getitem__)
    extent = (seen.width, seen.height)[axis]
    if order[0] not in seen.unique or places[order[1]] - places[order[0]] < 0.1 * extent:
        return None
    wordings = {
        "left": ("furthest to the left", "leftmost"),
        "right": ("furthest to the right", "rightmost"),
        "top": ("at the very top", "the highest up"),
        "bottom": ("at the very bottom", "the lowest down"),
    }
    word = draw.choice(wordings[side])
    question = f"What is the {word} shape?" if word.endswith("most") else f"Which shape is {word}?"
    return Turn(question, seen.forms[order[0]].name)


def _place(draw: Draw, seen: Seen) -> Turn | None:
    if not seen.unique:
        return None
    chosen = draw.choice(seen.unique)
    x, y = seen.boxes[chosen].middle
    across, down = x / seen.width, y / seen.height
    if not all(share < 0.3 or 0.42 < share < 0.58 or share > 0.7 for share in (across, down)):
        return None
    row = "top" if down < 0.3 else "bottom" if down > 0.7 else "middle"
    column = "left" if across < 0.3 else "right" if across > 0.7 else "middle"
    answer = {"middle middle": "center"}.get(f"{row} {column}", f"{row} {column}")
    name = seen.forms[chosen].name
    return Turn(f"In which part of the picture is the {name}?", answer)


def _more(draw: Draw, seen: Seen) -> Turn | None:
    counts = Counter(form.shape for form in seen.forms)
    if len(counts) < 2:
        return None
    first, second = draw.shuffled(sorted(counts))[:2]
    if counts[first] == counts[second]:
        return None
    more = first if counts[first] > counts[second] else second
    return Turn(
        f"Are there more {plural(first)} or more {plural(second)}?",
        plural(more),
    )


def _ordinal(draw: Draw, seen: Seen) -> Turn:
    place = draw.integer(0, len(seen.forms) - 1)
    from_left = draw.chance(0.7)
    form = seen.forms[place if from_left else -1 - place]
    side = "left" if from_left else "right"
    asked = f"the {ORDINALS[place]} shape from the {side}"
    if draw.chance(0.3):
        return Turn(f"What colour is {asked}?", form.colour)
    return Turn(f"What is {asked}?", form.name)


def _arrow(draw: Draw, seen: Seen) -> Turn | None:
    arrows = [form for form in seen.forms if form.shape == "arrow"]
    if len(arrows) != 1:
        return None
    answer = next(word for word, turn in ARROW_TURNS.items() if turn == arrows[0].turn)
    return Turn(
        draw.choice(("Which way does the arrow point?", "Where is the arrow pointing?")), answer
    )


_ASKS: tuple[Ask, ...] = (
    _count, _count, _count, _colour_of, _colour_of, _exists, _extreme_size, _beside, _beside,
    _furthest, _place, _more, _arrow,
)  # fmt: skip
