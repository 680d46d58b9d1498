"""Boxes as arithmetic: where they land, whichever way a picture is turned."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from internvl2.processing.conversation import Message
from internvl2.processing.pixels import open_picture
from internvl2.train.conversion.geometry import Frame, annotated_frame, frame_of, turn
from internvl2.train.conversion.text_boxes import boxes_in, count_bare, with_boxes

ORIENTATION = 0x0112
SIZE = (64, 32)


def ordered(limit: float) -> st.SearchStrategy[list[float]]:
    return st.lists(st.floats(0, limit), min_size=2, max_size=2).map(sorted)


def corners(width: float, height: float) -> st.SearchStrategy[tuple[float, ...]]:
    both = st.tuples(ordered(width), ordered(height))
    return both.map(lambda sides: tuple(side[end] for end in (0, 1) for side in sides))


@settings(max_examples=20)
@given(corners(640, 427))
def test_pixels_are_rounded_as_the_official_data_are(box: tuple[float, ...]):
    sides = (640, 427) * 2
    wanted = tuple(round(value / side * 1000) for value, side in zip(box, sides, strict=True))
    assert Frame(640, 427).scale(box).corners == wanted


@settings(max_examples=20)
@given(corners(1, 1), st.integers(1, 4000), st.integers(1, 4000))
def test_shares_and_pixels_of_one_box_are_the_same_thousandths(box, width: int, height: int):
    pixels = [value * side for value, side in zip(box, (width, height) * 2, strict=True)]
    both = Frame(1, 1).scale(box).corners, Frame(width, height, slack=1e-6).scale(pixels).corners
    assert all(abs(a - b) <= 1 for a, b in zip(*both, strict=True))


@settings(max_examples=20)
@given(corners(*SIZE), st.integers(1, 8))
def test_a_turned_box_is_ordered_and_inside_and_turns_back(box, orientation: int):
    frame = Frame(*SIZE, orientation)
    turned = turn(box, frame)
    width, height = reversed(SIZE) if orientation >= 5 else SIZE
    assert 0 <= turned[0] <= turned[2] <= width
    assert 0 <= turned[1] <= turned[3] <= height
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    assert turn(turned, Frame(width, height, inverse)) == pytest.approx(box, abs=1e-9)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("drawn_on", ["stored", "shown"])
def test_a_box_stays_on_what_it_was_drawn_around(tmp_path: Path, orientation: int, drawn_on):
    path = turned_jpeg(tmp_path, orientation)
    seen = Image.open(path) if drawn_on == "stored" else open_picture(path)
    scaled = frame_of(path, "pixel", drawn_on).scale(bright_box(seen.convert("RGB")))
    shown = open_picture(path)
    sides = (shown.width, shown.height) * 2
    back = [round(value * side / 1000) for value, side in zip(scaled.corners, sides, strict=True)]
    assert back == bright_box(shown)


def turned_jpeg(folder: Path, orientation: int) -> Path:
    """A dark picture with one bright rectangle, whose EXIF says that it must be turned."""
    pixels = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    pixels[8:16, 8:40] = 255
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = folder / f"{orientation}.jpg"
    Image.fromarray(pixels).save(path, quality=95, exif=exif)
    return path


def bright_box(image: Image.Image) -> list[int]:
    bright = np.asarray(image)[..., 0] > 127
    rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def test_the_annotated_size_decides_what_was_drawn_on(tmp_path: Path):
    path = turned_jpeg(tmp_path, 6)
    stored, shown = frame_of(path, "pixel", "stored"), frame_of(path, "pixel", "shown")
    assert annotated_frame(path, SIZE, None, "shown") == stored
    assert annotated_frame(path, (32, 64), None, "stored") == shown
    assert annotated_frame(path, None, None, "stored") == stored
    with pytest.raises(ValueError, match="has 32x64 pixels, but 30x60 were annotated"):
        annotated_frame(path, (30, 60), None, "stored")
    with pytest.raises(ValueError, match="the picture as shown were expected, but 64x32"):
        annotated_frame(path, SIZE, "shown", "stored")


def test_a_flip_keeps_the_size_so_that_the_usual_way_counts(tmp_path: Path):
    path = turned_jpeg(tmp_path, 2)
    assert annotated_frame(path, SIZE, None, "stored").orientation == 2
    assert annotated_frame(path, SIZE, None, "shown").orientation == 1
    assert annotated_frame(path, SIZE, "shown", "stored").orientation == 1


@settings(max_examples=20)
@given(corners(100, 100), st.floats(-1, 1))
def test_less_than_a_pixel_outside_is_cut_off(box, by: float):
    moved = tuple(value + by for value in box)
    scaled = Frame(100, 100, slack=1.0).scale(moved)
    assert all(0 <= value <= 1000 for value in scaled.corners)
    assert scaled.was_cut == (min(moved) < 0 or max(moved) > 100)
    with pytest.raises(ValueError, match="reaches beyond its picture"):
        Frame(100, 100, slack=1.0).scale((0, 0, 1, 101.5))


@pytest.mark.wrong_types
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), True, "7", None])
def test_only_numbers_are_corners(bad):
    with pytest.raises(ValueError, match="four numbers"):
        Frame(10, 10).scale([0, 0, 1, bad])


number = st.one_of(st.integers(0, 1000), st.floats(0, 1000).map(lambda value: round(value, 3)))
boxes = st.lists(st.lists(number, min_size=4, max_size=4), min_size=1, max_size=3)
words = st.text("ab [],.12\n", max_size=12)


@settings(max_examples=20)
@given(boxes, words, words, st.booleans())
def test_boxes_in_texts_are_found_and_written_back(rows, before: str, after: str, spaced: bool):
    listed = str(rows) if spaced else str(rows).replace(" ", "")
    text = f"{before}<ref>a</ref><box>{listed}</box>{after}"
    assert list(boxes_in(text, bare=False)) == rows
    message = with_boxes(
        (Message.assistant(text),), lambda row: [round(v) for v in row], bare=False
    )
    rounded = [[round(value) for value in row] for row in rows]
    assert message[0].text == f"{before}<ref>a</ref><box>{rounded}</box>{after}"


@settings(max_examples=20)
@given(boxes)
def test_lists_without_tags_are_counted_and_found_if_asked_for(rows):
    text = f"At {rows}, and {rows[0]}; not [1, 2, 3] nor [1, 2, 3, 4, 5]."
    assert count_bare(text) == 2
    assert list(boxes_in(text, bare=False)) == []
    assert list(boxes_in(text, bare=True)) == [*rows, rows[0]]
    assert count_bare(f"<box>{rows}</box>") == 0


def test_bytes_have_a_header_too():
    content = io.BytesIO()
    Image.new("RGB", (6, 4)).save(content, "png")
    assert frame_of(content.getvalue(), "pixel", "stored") == Frame(6, 4, slack=1.0)
