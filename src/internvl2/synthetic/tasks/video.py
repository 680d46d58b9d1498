"""Videos of four to eight frames: which way something moves, what changes, what comes when."""

import math
from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from internvl2.synthetic.draw import Draw
from internvl2.synthetic.forms import Form, paint
from internvl2.synthetic.lettering import choose_ink, letter
from internvl2.synthetic.page import is_easy
from internvl2.synthetic.sample import Sample, Turn
from internvl2.synthetic.scenes import (
    WHITE,
    Ground,
    Scene,
    choose_ground,
    choose_shapes,
    make_form,
    scatter,
)
from internvl2.synthetic.tasks.shapes import with_article

STRAIGHT = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}
DIAGONAL = {
    "upper right": (1, -1),
    "upper left": (-1, -1),
    "lower right": (1, 1),
    "lower left": (-1, 1),
}
MARGIN = 8


def make(draw: Draw, difficulty: float) -> Sample:
    """One video with one or two questions; at difficulty 0 of one large form on white."""
    if is_easy(draw, difficulty):
        return draw.choice((_moves, _moves, _resizes, _recolours))(draw, 0.0)
    kinds = [_moves, _moves, _moves, _moves, _recolours, _resizes, _appear, _numbers, _colours]
    if difficulty > 0.5:
        kinds += [_turns_round, _vanishes]
    return draw.choice(kinds)(draw, difficulty)


def _sample(frames: Sequence[Image.Image], turns: Sequence[Turn]) -> Sample:
    return Sample("video", tuple(frames), tuple(turns), is_video=True)


def _extent(draw: Draw) -> tuple[int, int]:
    side = draw.choice((224, 256, 320, 384))
    return side, side if draw.chance(0.7) else round(side * draw.number(0.8, 1.0))


def _choose_ground(draw: Draw, difficulty: float) -> Ground:
    return choose_ground(draw) if difficulty > 0 else WHITE


def _length(draw: Draw) -> int:
    return draw.integer(4, 8)


def _form(draw: Draw, ground: Ground, difficulty: float, extent: tuple[int, int]) -> Form:
    form = make_form(
        draw, draw.choice(choose_shapes(difficulty)), draw.choice(ground.colours), difficulty
    )
    share = draw.number(0.09, 0.16) if difficulty > 0 else draw.number(0.14, 0.22)
    return replace(form, radius=min(extent) * share)


def _moves(draw: Draw, difficulty: float) -> Sample:
    """One form moves straight; up to three others rest where it does not come by."""
    ground, extent = _choose_ground(draw, difficulty), _extent(draw)
    ways = STRAIGHT | DIAGONAL if difficulty > 0.4 else STRAIGHT
    while True:
        form = _form(draw, ground, difficulty, extent)
        answer = draw.choice(tuple(ways))
        if draw.belongs(f"{form.name} {answer}"):
            break
    path = _path(draw, extent, form.radius, ways[answer], _length(draw))
    resting = _resting(draw, ground, extent, path, form, difficulty)
    frames = [_frame(extent, ground, [*resting, replace(form, x=x, y=y)]) for x, y in path]
    moving = "shape" if not resting or draw.chance(0.3) else form.name
    wording = draw.choice(
        (
            "In which direction does the {} move?",
            "Which way does the {} move?",
            "Where does the {} move to?",
            "What is the direction of the {}'s movement?",
            "Which way is the {} going?",
        )
    )
    named = "moving shape" if resting and moving == "shape" else moving
    turns = [Turn(wording.format(named), answer, "direction")]
    if draw.chance(0.35):
        turns.append(Turn("What moves in the video?", form.name))
    if draw.split == "train" and draw.chance(0.1):
        answer = f"{with_article(form.name).capitalize()} moves: {answer}."
        turns = [Turn(draw.choice(("Describe the video.", "What happens in the video?")), answer)]
    return _sample(frames, turns)


def _path(
    draw: Draw, extent: tuple[int, int], radius: float, way: tuple[int, int], length: int
) -> list[tuple[float, float]]:
    """Places along a straight line that takes at least a third of the picture."""
    edge = radius + MARGIN
    free = [side - 2 * edge for side in extent]
    share = draw.number(0.5, 1.0)
    run = min(free) * share if all(way) else (free[0] if way[0] else free[1]) * share
    starts = []
    for step, room in zip(way, free, strict=True):
        begin = draw.number(0, room - run if step else room)
        starts.append(edge + begin + (run if step < 0 else 0))
    return [
        (starts[0] + way[0] * run * i / (length - 1), starts[1] + way[1] * run * i / (length - 1))
        for i in range(length)
    ]


def _resting(
    draw: Draw,
    ground: Ground,
    extent: tuple[int, int],
    path: Sequence[tuple[float, float]],
    moving: Form,
    difficulty: float,
) -> list[Form]:
    resting: list[Form] = []
    for _ in range(draw.choice((0, 0, 1, 2, 3)) if difficulty > 0.3 else 0):
        form = _form(draw, ground, difficulty, extent)
        edge = math.ceil(form.radius) + MARGIN
        at = draw.integer(edge, extent[0] - edge), draw.integer(edge, extent[1] - edge)
        form = replace(form, x=at[0], y=at[1])
        near = [math.dist(at, spot) < 1.45 * (form.radius + moving.radius) for spot in path]
        touching = [
            math.dist(at, (other.x, other.y)) < 1.45 * (form.radius + other.radius)
            for other in resting
        ]
        if form.name != moving.name and not any(near) and not any(touching):
            resting.append(form)
    return resting


def _frame(extent: tuple[int, int], ground: Ground, forms: Sequence[Form]) -> Image.Image:
    canvas = Image.new("RGB", extent, ground.rgb)
    for form in forms:
        paint(canvas, form)
    return canvas


def _turns_round(draw: Draw, difficulty: float) -> Sample:
    """One form moves one way, then another."""
    ground, extent = choose_ground(draw), _extent(draw)
    while True:
        form = _form(draw, ground, difficulty, extent)
        first, second = draw.several(tuple(STRAIGHT), 2)
        if draw.belongs(f"{form.name} {first} {second}"):
            break
    half = draw.integer(3, 4)
    edge = form.radius + MARGIN
    step = (min(extent) - 2 * edge) / 2 / (half - 1)
    x, y = extent[0] / 2, extent[1] / 2
    if STRAIGHT[first][0] == -STRAIGHT[second][0] and STRAIGHT[first][1] == -STRAIGHT[second][1]:
        x -= STRAIGHT[first][0] * step * (half - 1) / 2
        y -= STRAIGHT[first][1] * step * (half - 1) / 2
    places = [(x, y)]
    for way in (STRAIGHT[first], STRAIGHT[second]):
        for _ in range(half - 1):
            x, y = x + way[0] * step, y + way[1] * step
            places.append((x, y))
    frames = [_frame(extent, ground, [replace(form, x=x, y=y)]) for x, y in places]
    question = draw.choice(
        (f"How does the {form.shape} move?", "Describe the movement.", "Which way does it move?")
    )
    return _sample(frames, [Turn(question, f"first {first}, then {second}")])


def _still(draw: Draw, difficulty: float, count: int) -> Scene:
    """Forms that differ in name, for something to happen to."""
    while True:
        ground, extent = _choose_ground(draw, difficulty), _extent(draw)
        names: list[Form] = []
        while len(names) < count:
            form = _form(draw, ground, difficulty, extent)
            if form.shape not in {other.shape for other in names}:
                names.append(replace(form, radius=1.0))
        scene = Scene(*extent, ground, scatter(draw, *extent, names))
        if draw.belongs(scene.key):
            return scene


def _frames(scene: Scene, changing: Sequence[Form], rest: Sequence[Form]) -> list[Image.Image]:
    extent = (scene.width, scene.height)
    return [_frame(extent, scene.ground, [*rest, form]) for form in changing]


def _recolours(draw: Draw, difficulty: float) -> Sample:
    scene = _still(draw, difficulty, draw.integer(1, 1 + round(2 * difficulty)))
    form, *rest = scene.forms
    taken = {other.colour for other in scene.forms}
    colour = draw.choice([name for name in scene.ground.colours if name not in taken])
    new = replace(make_form(draw, form.shape, colour), turn=form.turn, hollow=form.hollow)
    new = replace(new, x=form.x, y=form.y, radius=form.radius)
    length = _length(draw)
    change = draw.integer(1, length - 1)
    frames = _frames(scene, [form] * change + [new] * (length - change), rest)
    turns = [
        Turn("Which shape changes its colour?", form.shape),
        Turn(f"What colour does the {form.shape} become?", colour),
        Turn(f"What colour is the {form.shape} at first?", form.colour),
        Turn(
            "What changes in the video?", f"The {form.shape} turns from {form.colour} to {colour}."
        ),
        Turn("In which frame does the colour change?", f"{change + 1}"),
    ]
    return _sample(frames, draw.shuffled(turns)[: draw.more(draw.integer(1, 2))])


def _resizes(draw: Draw, difficulty: float) -> Sample:
    scene = _still(draw, difficulty, draw.integer(1, 1 + round(difficulty)))
    form, *rest = scene.forms
    length = _length(draw)
    grows = draw.chance(0.5)
    sizes = [form.radius * (0.35 + 0.65 * i / (length - 1)) for i in range(length)]
    changing = [replace(form, radius=size) for size in (sizes if grows else reversed(sizes))]
    frames = _frames(scene, changing, rest)
    turns = [
        Turn(f"Does the {form.shape} grow or shrink?", "grow" if grows else "shrink"),
        Turn(f"Does the {form.shape} become larger or smaller?", "larger" if grows else "smaller"),
        Turn("Which shape changes its size?", form.name),
        Turn("What happens in the video?",
             f"The {form.name} becomes {'larger' if grows else 'smaller'}."),
    ]  # fmt: skip
    return _sample(frames, draw.shuffled(turns)[: draw.more(draw.integer(1, 2))])


def _appear(draw: Draw, difficulty: float) -> Sample:
    """Shapes come, one after the other, and stay."""
    count = draw.integer(2, 3 + round(2 * difficulty))
    scene = _still(draw, difficulty, count)
    forms = draw.shuffled(scene.forms)
    length = max(_length(draw), count)
    begin = draw.integer(0, 1) if count < length else 0
    times = sorted(draw.shuffled(range(1, length))[: count - 1])
    times = [begin if times[0] > begin else 0, *times]
    extent = (scene.width, scene.height)
    frames = [
        _frame(extent, scene.ground, [f for f, t in zip(forms, times, strict=True) if t <= i])
        for i in range(length)
    ]
    chosen = draw.integer(0, count - 1)
    name = forms[chosen].name
    turns = [
        Turn("How many shapes are there at the end?", str(count)),
        Turn("Which shape appears last?", forms[-1].name),
        Turn("Which shape comes first?", forms[0].name),
        Turn("In which order do the shapes appear?", ", ".join(form.name for form in forms)),
        Turn(f"In which frame does {with_article(name)} first appear?", str(times[chosen] + 1)),
        Turn("Do shapes appear or disappear?", "appear"),
    ]
    return _sample(frames, draw.shuffled(turns)[: draw.more(draw.integer(1, 2))])


def _vanishes(draw: Draw, difficulty: float) -> Sample:
    scene = _still(draw, difficulty, draw.integer(2, 4))
    form, *rest = scene.forms
    length = _length(draw)
    last = draw.integer(1, length - 1)
    extent = (scene.width, scene.height)
    frames = [
        _frame(extent, scene.ground, scene.forms if i < last else rest) for i in range(length)
    ]
    turns = [
        Turn("Which shape disappears?", form.name),
        Turn("How many shapes are left at the end?", str(len(rest))),
        Turn("What happens in the video?", f"The {form.name} disappears."),
        Turn("Do shapes appear or disappear?", "disappear"),
    ]
    return _sample(frames, draw.shuffled(turns)[: draw.more(draw.integer(1, 2))])


def _numbers(draw: Draw, difficulty: float) -> Sample:
    """A number, a letter or a word in each frame."""
    length = _length(draw)
    kind = draw.choice(("number", "number", "letter", "word"))
    while True:
        if kind == "number":
            most = 9 if difficulty < 0.5 else 99
            texts = [str(draw.integer(0, most)) for _ in range(length)]
        elif kind == "letter":
            texts = [draw.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(length)]
        else:
            texts = [draw.word() for _ in range(length)]
        if len(set(texts)) == length and draw.belongs(" ".join(texts)):
            break
    ground, extent = choose_ground(draw), _extent(draw)
    ink, face = choose_ink(draw, ground), draw.face()
    size = extent[0] // draw.integer(3, 6)
    frames = []
    for text in texts:
        canvas = Image.new("RGB", extent, ground.rgb)
        written = letter(face, size, text, extent[0] - 24)
        at = (extent[0] - written.width) // 2, (extent[1] - written.height) // 2
        written.paste(canvas, *at, ink)
        frames.append(canvas)
    place = draw.integer(0, length - 1)
    turns = [
        Turn(f"In which order do the {kind}s appear?", ", ".join(texts)),
        Turn(f"List the {kind}s in the order in which they are shown.", ", ".join(texts)),
        Turn(f"What is the last {kind}?", texts[-1]),
        Turn(f"Which {kind} comes first?", texts[0]),
        Turn(f"Which {kind} comes right after {texts[place - 1]}?", texts[place])
        if place
        else Turn(f"How many {kind}s are shown?", str(length)),
        Turn(f"Which {kind} is shown in frame {place + 1}?", texts[place]),
    ]
    return _sample(frames, draw.shuffled(turns)[: draw.more(draw.integer(1, 2))])


def _colours(draw: Draw, difficulty: float) -> Sample:
    """One form in another colour, or another form, in each frame."""
    scene = _still(draw, difficulty, 1)
    (form,) = scene.forms
    length = draw.integer(4, min(8, len(scene.ground.colours)))
    while True:
        colours = draw.shuffled(scene.ground.colours)[:length]
        if draw.belongs(" ".join(colours)):
            break
    changing = [
        replace(
            make_form(draw, form.shape, colour),
            x=form.x, y=form.y, radius=form.radius, turn=form.turn, hollow=False,
        )
        for colour in colours
    ]  # fmt: skip
    frames = _frames(scene, changing, ())
    turns = [
        Turn("In which order do the colours appear?", ", ".join(colours)),
        Turn(f"Which colours does the {form.shape} take, in order?", ", ".join(colours)),
        Turn(f"What is the last colour of the {form.shape}?", colours[-1]),
        Turn(f"What is the first colour of the {form.shape}?", colours[0]),
        Turn(f"Which colour comes right after {colours[0]}?", colours[1]),
    ]
    return _sample(frames, draw.shuffled(turns)[: draw.more(draw.integer(1, 2))])
