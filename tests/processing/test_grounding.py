"""Boxes in answers: found digit by digit, clamped, drawn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from internvl2.processing.grounding import Box, draw_boxes, find_boxes


def test_boxes_take_the_label_before_them():
    answer = (
        "There are <ref>two  cats</ref><box>[[10, 20, 30, 40], [1,2,3,4]]</box> "
        "and <ref>一只狗</ref><box>[[500, 0, 1000, 999]]</box>."
    )
    assert find_boxes(answer) == (
        Box("two cats", 10.0, 20.0, 30.0, 40.0),
        Box("two cats", 1.0, 2.0, 3.0, 4.0),
        Box("一只狗", 500.0, 0.0, 1000.0, 999.0),
    )


def test_a_box_without_a_label_has_an_empty_one():
    assert find_boxes("<box>[[1, 2, 3, 4]]</box>") == (Box("", 1.0, 2.0, 3.0, 4.0),)


def test_coordinates_are_clamped_and_put_in_order():
    assert find_boxes("<box>[[900, 2000, -5, 7]]</box>") == (Box("", 0.0, 7.0, 900.0, 1000.0),)


@pytest.mark.parametrize(
    "text",
    [
        "<box>[[__import__('os').system('true'), 1, 2, 3]]</box>",
        "<box>[[1, 2, 3]]</box>",
        "<box>[[1e9, 2, 3, 4]]</box>",
        "<box>[[1, 2, 3, 4]]",
        "[[1, 2, 3, 4]]",
    ],
)
def test_what_is_no_box_is_no_box(text: str):
    assert find_boxes(text) == ()


@given(st.text("<>/[]box ref0123456789,.-", max_size=80))
def test_no_text_breaks_the_search(text: str):
    for box in find_boxes(text):
        assert 0 <= box.left <= box.right <= 1000
        assert 0 <= box.top <= box.bottom <= 1000


def test_the_frame_is_drawn_where_the_box_is_and_the_picture_is_kept():
    picture = Image.new("RGB", (200, 100), "white")
    drawn = np.asarray(draw_boxes(picture, (Box("", 100.0, 200.0, 500.0, 800.0),)))
    changed = (drawn != 255).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (20, 20, 100, 79)
    assert not changed[40:60, 40:80].any()
    assert np.asarray(picture).min() == 255


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (640, 480)])
def test_labels_in_any_script_fit_any_picture(size: tuple[int, int]):
    boxes = (Box("a dog", 0.0, 0.0, 999.0, 999.0), Box("一只狗", 990.0, 990.0, 999.0, 999.0))
    assert draw_boxes(Image.new("RGB", size), boxes).size == size
