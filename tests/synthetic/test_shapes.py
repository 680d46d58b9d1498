"""Shapes: forms are painted tight and apart, and answers follow from what was painted."""

import pytest
from PIL import Image, ImageChops

from internvl2.synthetic.diagrams import make_diagram
from internvl2.synthetic.draw import Draw
from internvl2.synthetic.forms import SHAPES, Box, Form, paint
from internvl2.synthetic.tasks import shapes
from internvl2.synthetic.tasks.shapes import Seen, describe, mixed_scene, plural, questions


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("turn", [0, 17])
@pytest.mark.parametrize("hollow", [False, True])
def test_a_form_stays_within_its_radius_and_its_box_is_tight(shape: str, turn: int, hollow: bool):
    canvas = Image.new("RGB", (120, 120), "white")
    box = paint(canvas, Form(shape, "red", (220, 38, 38), 60, 60, 40, turn, hollow))
    changed = ImageChops.difference(canvas, Image.new("RGB", (120, 120), "white")).getbbox()
    assert changed == (box.left, box.top, box.right, box.bottom)
    reach = 57 if turn and shape in ("square", "rectangle") else 42
    assert 60 - reach <= box.left < box.right <= 60 + reach


def test_a_hollow_form_shows_the_ground_within():
    canvas = Image.new("RGB", (120, 120), "white")
    paint(canvas, Form("circle", "red", (220, 38, 38), 60, 60, 40, hollow=True))
    assert canvas.getpixel((60, 60)) == (255, 255, 255)
    assert canvas.getpixel((60, 22)) == (220, 38, 38)


def test_forms_of_a_scene_do_not_touch():
    for seed in range(150):
        _, boxes = mixed_scene(Draw(seed, "train", "shapes"), 1.0).paint()
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                assert a.right < b.left or b.right < a.left or a.bottom < b.top or b.bottom < a.top


def seen(*forms: Form) -> Seen:
    canvas = Image.new("RGB", (400, 400), "white")
    return Seen(forms, tuple(paint(canvas, form) for form in forms), 400, 400)


RED, BLUE = (220, 38, 38), (38, 90, 220)
THREE = seen(
    Form("circle", "red", RED, 60, 200, 50),
    Form("circle", "blue", BLUE, 200, 210, 25),
    Form("star", "blue", BLUE, 330, 190, 30),
)


def test_answers_on_three_forms_are_right():
    asked = [turn for seed in range(600) for turn in questions(Draw(seed), THREE, shapes._ASKS)]
    turns = {turn.question: turn.answer for turn in asked}
    assert turns["How many circles are there?"] == "2"
    assert turns["Count the blue shapes."] == "2"
    assert turns["What colour is the star?"] == "blue"
    assert turns["What shape is red?"] == "circle"
    assert turns["Which shape is the largest?"] == "red circle"
    assert turns["Is the blue star to the right of the red circle?"] == "Yes"
    assert turns["What is the leftmost shape?"] == "red circle"
    assert turns["Are there more stars or more circles?"] == "circles"
    assert turns["In which part of the picture is the blue circle?"] == "center"
    assert turns["How many red stars are there?"] == "0"


def test_no_colour_is_asked_of_a_shape_that_occurs_twice():
    asked = [turn for seed in range(300) for turn in questions(Draw(seed), THREE, shapes._ASKS)]
    assert not any("olour is the circle" in turn.question for turn in asked)
    assert not any(turn.question == "What shape is blue?" for turn in asked)


def test_a_description_goes_from_left_to_right():
    answer = describe(Draw(0), THREE).answer
    assert answer == "A red circle, a blue circle and a blue star."


def test_what_lies_inside_is_painted_inside():
    pictures = 0
    for seed in range(200):
        sample = shapes.make(Draw(seed, "train", "shapes"), 1.0)
        pictures += any("inside" in turn.question for turn in sample.turns)
    assert pictures > 8


def test_no_scene_belongs_to_both_splits():
    train, test = (
        {mixed_scene(Draw(seed, split, "shapes"), 1.0).key for seed in range(300)}
        for split in ("train", "test")
    )
    assert not train & test


def test_plurals_are_english():
    assert plural("cross") == "crosses"
    assert plural("star") == "stars"


def test_easy_pictures_have_few_common_forms():
    for seed in range(60):
        scene = mixed_scene(Draw(seed, "train", "shapes"), 0.0)
        assert len(scene.forms) <= 3
        assert not {form.shape for form in scene.forms} & {"pentagon", "hexagon", "cross"}


def test_a_box_knows_its_middle():
    assert Box(10, 20, 30, 60).middle == (20, 40)


def test_steps_of_a_diagram_follow_the_arrows():
    samples = [make_diagram(Draw(seed), 1.0) for seed in range(60)]
    turns = [turn for sample in samples for turn in sample.turns]
    orders = [turn.answer.split(", ") for turn in turns if turn.question.startswith("Name")]
    assert orders
    assert all(3 <= len(set(order)) == len(order) <= 5 for order in orders)
    for sample in samples:
        asked = {turn.question: turn.answer for turn in sample.turns}
        if {"What is the first step?", "Name the steps in order."} <= set(asked):
            first = asked["What is the first step?"]
            assert asked["Name the steps in order."].startswith(first)
