"""Several pictures: the same or not, which one shows something, how many in all of them."""

from dataclasses import replace

from PIL import Image

from internvl2.synthetic.draw import Draw
from internvl2.synthetic.forms import Form
from internvl2.synthetic.lettering import choose_ink, letter
from internvl2.synthetic.page import is_easy
from internvl2.synthetic.sample import Sample, Turn
from internvl2.synthetic.scenes import (
    EASY_SHAPES,
    WHITE,
    Ground,
    Scene,
    choose_ground,
    choose_shapes,
    make_form,
    scatter,
)
from internvl2.synthetic.tasks.shapes import plural, with_article


def make(draw: Draw, difficulty: float) -> Sample:
    """Two to four pictures of one size with one or two questions."""
    if is_easy(draw, difficulty):
        return _first_pairs(draw)
    kind = draw.choice(
        (_same, _same, _change, _which_shows, _which_shows, _count, _words, _numbers)
    )
    return kind(draw, difficulty)


def _first_pairs(draw: Draw) -> Sample:
    """Two pictures on white, of one large form each: whether they are the same, and which is it."""
    side = _side(draw)
    while True:
        forms = [
            make_form(draw, draw.choice(EASY_SHAPES), draw.choice(WHITE.colours), 0.0)
            for _ in range(2)
        ]
        if draw.chance(0.4):
            forms[1] = forms[0]
        scenes = [Scene(side, side, WHITE, scatter(draw, side, side, [form])) for form in forms]
        if all(draw.belongs(scene.key) for scene in scenes):
            break
    first, second = (form.name for form in forms)
    if first == second:
        scenes[1] = scenes[0]
    turns = [Turn("Are the two pictures the same?", "Yes" if first == second else "No")]
    turns += [Turn(f"What does Image-{i + 1} show?", f.name) for i, f in enumerate(forms)]
    if first != second:
        place = draw.integer(0, 1)
        asked = f"Which image shows {with_article(forms[place].name)}?"
        turns += [Turn(asked, f"Image-{place + 1}")] * 2
    images = tuple(scene.paint()[0] for scene in scenes)
    return Sample("several", images, (draw.choice(turns),))


def _side(draw: Draw) -> int:
    return draw.choice((224, 256, 320, 384))


def _scene(draw: Draw, side: int, count: int, difficulty: float) -> Scene:
    while True:
        ground = choose_ground(draw)
        shapes, colours = choose_shapes(difficulty), ground.colours
        forms = [
            replace(
                make_form(draw, draw.choice(shapes), draw.choice(colours), difficulty),
                radius=draw.choice((1.0, 0.75)),
            )
            for _ in range(count)
        ]
        scene = Scene(side, side, ground, scatter(draw, side, side, forms))
        if draw.belongs(scene.key):
            return scene


def _same(draw: Draw, difficulty: float) -> Sample:
    first = _scene(draw, _side(draw), draw.integer(1, 2 + round(3 * difficulty)), difficulty)
    is_same = draw.chance(0.5)
    second = first if is_same else _altered(draw, first)
    question = draw.choice(
        (
            "Are the two pictures the same?",
            "Do both images show the same?",
            "Is Image-1 the same as Image-2?",
            "Are these two images identical?",
        )
    )
    images = first.paint()[0], second.paint()[0]
    return Sample("several", images, (Turn(question, "Yes" if is_same else "No"),))


def _altered(draw: Draw, scene: Scene) -> Scene:
    """The scene with a form of another colour or shape, or without one."""
    place = draw.integer(0, len(scene.forms) - 1)
    rest = (*scene.forms[:place], *scene.forms[place + 1 :])
    if rest and draw.chance(0.25):
        return replace(scene, forms=rest)
    return replace(scene, forms=_replaced(scene, place, _other(draw, scene, scene.forms[place])))


def _replaced(scene: Scene, place: int, form: Form) -> tuple[Form, ...]:
    return (*scene.forms[:place], form, *scene.forms[place + 1 :])


def _other(draw: Draw, scene: Scene, form: Form) -> Form:
    """The form in another colour, or another shape in its colour at its place."""
    if draw.chance(0.6):
        colour = draw.choice([name for name in scene.ground.colours if name != form.colour])
        new = replace(make_form(draw, form.shape, colour), turn=form.turn)
        return replace(new, x=form.x, y=form.y, radius=form.radius, hollow=form.hollow)
    shape = draw.choice([name for name in ("circle", "square", "star") if name != form.shape])
    return replace(form, shape=shape, turn=0)


def _change(draw: Draw, difficulty: float) -> Sample:
    """What became of a form; its name is given where another has the same."""
    while True:
        count = draw.integer(1, 2 + round(2 * difficulty))
        first = _scene(draw, _side(draw), count, difficulty)
        names = [form.name for form in first.forms]
        place = draw.integer(0, count - 1)
        new = _other(draw, first, first.forms[place])
        if names.count(names[place]) == 1 and new.name not in names:
            break
    second = replace(first, forms=_replaced(first, place, new))
    images = first.paint()[0], second.paint()[0]
    turns = (
        Turn("Which shape of Image-1 is different in Image-2?", names[place]),
        Turn("What is there in its place in Image-2?", new.name),
    )
    asked = (
        Turn(f"What has the {names[place]} of Image-1 become in Image-2?", new.name),
        Turn("Which shape is only in Image-2?", new.name),
        Turn("Which shape is only in Image-1?", names[place]),
    )
    return Sample("several", images, turns if draw.chance(0.4) else (draw.choice(asked),))


def _which_shows(draw: Draw, difficulty: float) -> Sample:
    count = draw.integer(2, 3 + round(difficulty))
    side = _side(draw)
    while True:
        scenes = [
            _scene(draw, side, draw.integer(1, 1 + round(2 * difficulty)), difficulty)
            for _ in range(count)
        ]
        chosen = draw.integer(0, count - 1)
        form = draw.choice(scenes[chosen].forms)
        if not any(
            other.name == form.name
            for i, scene in enumerate(scenes)
            for other in scene.forms
            if i != chosen
        ):
            break
    images = tuple(scene.paint()[0] for scene in scenes)
    name = with_article(form.name)
    wording = draw.choice(
        ("Which image shows {}?", "Which picture contains {}?", "In which image is there {}?")
    )
    turns = [Turn(wording.format(name), f"Image-{chosen + 1}")]
    alone = [i for i, scene in enumerate(scenes) if len(scene.forms) == 1]
    if alone and draw.chance(0.4):
        shown = draw.choice(alone)
        turns.append(Turn(f"What does Image-{shown + 1} show?", scenes[shown].forms[0].name))
    if len(alone) == count and draw.split == "train" and draw.chance(0.25):
        lines = [f"Image-{i + 1}: {with_article(s.forms[0].name)}" for i, s in enumerate(scenes)]
        turns = [
            Turn(
                draw.choice(("Describe the images.", "Describe the pictures.", "What do you see?")),
                "\n".join(lines),
            )
        ]
    return Sample("several", images, tuple(turns))


def _count(draw: Draw, difficulty: float) -> Sample:
    """How many in all, or where most; one picture at least has the shape that is asked for."""
    pictures = draw.integer(2, 3)
    side = _side(draw)
    while True:
        numbers = [draw.integer(1, 2 + round(3 * difficulty)) for _ in range(pictures)]
        if sorted(numbers)[-1] > sorted(numbers)[-2]:
            break
    scenes = [_scene(draw, side, number, difficulty) for number in numbers]
    images = tuple(scene.paint()[0] for scene in scenes)
    shape = draw.choice(scenes[draw.integer(0, pictures - 1)].forms).shape
    found = sum(form.shape == shape for scene in scenes for form in scene.forms)
    shown = draw.integer(0, pictures - 1)
    most = numbers.index(max(numbers))
    turns = (
        Turn(f"How many {plural(shape)} are there in all images together?", str(found)),
        Turn("How many shapes are there in all pictures together?", str(sum(numbers))),
        Turn("Which image has the most shapes?", f"Image-{most + 1}"),
        Turn(f"How many shapes are in Image-{shown + 1}?", str(numbers[shown])),
    )
    return Sample("several", images, tuple(draw.shuffled(turns)[: draw.more(draw.integer(1, 2))]))


def _words(draw: Draw, difficulty: float) -> Sample:
    count = draw.integer(2, 3 + round(difficulty))
    words: list[str] = []
    while len(words) < count:
        word = draw.word()
        if word not in words:
            words.append(word)
    images = _placards(draw, words)
    chosen = draw.integer(0, count - 1)
    turns = (
        Turn(f'Which image shows the word "{words[chosen]}"?', f"Image-{chosen + 1}"),
        Turn(f"What is written in Image-{chosen + 1}?", words[chosen]),
        Turn(f"Read Image-{chosen + 1}.", words[chosen]),
        Turn("Read all images, one per line.", "\n".join(words)),
    )
    return Sample("several", images, (draw.choice(turns),))


def _numbers(draw: Draw, difficulty: float) -> Sample:
    count = draw.integer(2, 3 + round(difficulty))
    most = round(20 + 970 * difficulty)
    while True:
        numbers = [draw.integer(0, most) for _ in range(count)]
        if len(set(numbers)) == count and draw.belongs(f"{numbers}"):
            break
    images = _placards(draw, [str(number) for number in numbers])
    largest = draw.chance(0.6)
    best = max(numbers) if largest else min(numbers)
    word = draw.choice(("largest", "highest", "greatest") if largest else ("smallest", "lowest"))
    turns = [Turn(f"Which image shows the {word} number?", f"Image-{numbers.index(best) + 1}")]
    if draw.chance(0.5):
        turns.append(Turn("Which number is that?", str(best)))
    return Sample("several", images, tuple(turns))


def _placards(draw: Draw, texts: list[str]) -> tuple[Image.Image, ...]:
    """One text in each picture, somewhere near the middle."""
    side = _side(draw)
    ground = choose_ground(draw)
    same_ground = draw.chance(0.6)
    return tuple(
        placard(draw, text, (side, side), ground if same_ground else choose_ground(draw))
        for text in texts
    )


def placard(draw: Draw, text: str, extent: tuple[int, int], ground: Ground) -> Image.Image:
    """A picture of one text."""
    canvas = Image.new("RGB", extent, ground.rgb)
    size = draw.integer(extent[0] // 9, extent[0] // 4)
    written = letter(draw.face(), size, text, extent[0] - 24)
    free_x, free_y = extent[0] - written.width, extent[1] - written.height
    left = round(free_x * draw.number(0.2, 0.8))
    top = round(free_y * draw.number(0.15, 0.85))
    written.paste(canvas, left, top, choose_ink(draw, ground))
    return canvas
