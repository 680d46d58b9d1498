"""Grounding: boxes are tight to the pixel and written as the family writes them."""

from collections.abc import Iterator

import pytest
from PIL import Image

from internvl2.eval.metrics import answer_boxes, iou
from internvl2.synthetic.draw import Draw
from internvl2.synthetic.fonts import faces
from internvl2.synthetic.forms import Box
from internvl2.synthetic.lettering import letter
from internvl2.synthetic.sample import Sample
from internvl2.synthetic.tasks import grounding
from internvl2.synthetic.tasks.grounding import box_text


def samples(split: str, count: int = 150) -> Iterator[Sample]:
    return (grounding.make(Draw(seed, split, "grounding"), 1.0) for seed in range(count))


def pixels(answer: str, image: Image.Image) -> list[tuple[int, int, int, int]]:
    across, down = image.width / 1000, image.height / 1000
    return [
        (
            round(box.left * across),
            round(box.top * down),
            round(box.right * across),
            round(box.bottom * down),
        )
        for box in answer_boxes(answer)
    ]


def is_plain(image: Image.Image, box: tuple[int, int, int, int]) -> bool:
    return image.getpixel((1, 1)) == image.crop(box).getpixel((0, 0)) and all(
        low == high for low, high in image.crop(box).getextrema()
    )


@pytest.mark.parametrize("split", ["train", "test"])
def test_around_every_box_is_ground_and_along_its_sides_is_ink(split: str):
    checked = 0
    for sample in samples(split):
        (image,) = sample.images
        for turn in sample.turns:
            for left, top, right, bottom in pixels(turn.answer, image):
                ring = 2
                assert is_plain(image, (left - ring - 1, top - ring, left - ring, bottom + ring))
                assert is_plain(image, (right + ring, top - ring, right + ring + 1, bottom + ring))
                assert is_plain(image, (left - ring, top - ring - 1, right + ring, top - ring))
                assert is_plain(image, (left - ring, bottom + ring, right, bottom + ring + 1))
                assert not is_plain(image, (left - 1, top, left + 2, bottom))
                assert not is_plain(image, (right - 2, top, right + 1, bottom))
                assert not is_plain(image, (left, top - 1, right, top + 2))
                assert not is_plain(image, (left, bottom - 2, right, bottom + 1))
                checked += 1
    assert checked > 150


def test_answers_are_written_as_the_family_writes_boxes():
    for sample in samples("test"):
        for turn in sample.turns:
            assert turn.answer.startswith("<ref>")
            assert "</ref><box>[[" in turn.answer
            assert turn.answer.endswith("]]</box>")
            assert iou(turn.answer, [turn.answer]) == 1


def test_a_box_is_given_in_thousandths_of_the_picture():
    image = Image.new("RGB", (500, 200))
    assert box_text(Box(50, 50, 500, 200), image) == "[100, 250, 1000, 1000]"


def test_only_training_asks_what_a_box_holds():
    asked = [turn.question for sample in samples("train") for turn in sample.turns]
    assert any("<box>" in question for question in asked)
    asked = [turn.question for sample in samples("test") for turn in sample.turns]
    assert not any("<box>" in question for question in asked)


@pytest.mark.parametrize("face", [*faces("train"), *faces("test")])
def test_the_box_of_a_word_holds_its_ink_and_no_more(face: str):
    canvas = Image.new("L", (300, 100))
    written = letter(face, 31, "Judgy fjord")
    box = written.paste(canvas, 20, 30, 255)
    assert canvas.getbbox() == (box.left, box.top, box.right, box.bottom)


def test_a_wide_word_is_made_to_fit():
    assert letter("dejavu-sans", 60, "incomprehensible", 200).width <= 200
