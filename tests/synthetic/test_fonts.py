"""Faces: small, complete, of one split; pens write where they say."""

from pathlib import Path

import pytest
from PIL import Image, ImageDraw

import internvl2
from internvl2.synthetic.fonts import PRINT, faces, font, pen
from internvl2.synthetic.words import characters, listed

FONTS = Path(internvl2.__file__).parent / "assets" / "fonts"
ASCII = "".join(map(chr, range(32, 127)))
SIGNS = "€£¥°×÷·•—–‘’“”…éèàüöäßñçÉ§©®™±½"
LATIN = (*faces("train"), *faces("test"))
CHINESE = (*faces("train", "chinese"), *faces("test", "chinese"))


def lacks(name: str, letters: str) -> str:
    """The letters that are drawn like one that no face has."""

    def drawn(letter: str) -> bytes:
        canvas = Image.new("L", (40, 40))
        ImageDraw.Draw(canvas).text((5, 5), letter, fill=255, font=font(name, 20))
        return canvas.tobytes()

    missing = drawn("\uffff")
    return "".join(letter for letter in letters if letter != " " and drawn(letter) == missing)


def test_faces_and_their_licences_take_at_most_3_mb():
    assert sum(path.stat().st_size for path in FONTS.iterdir()) < 3_000_000


def test_every_file_is_a_face_of_one_split():
    train, test = (set(faces(split, *PRINT, "hand", "chinese")) for split in ("train", "test"))
    assert not train & test
    assert train | test == {path.stem for path in FONTS.glob("*.ttf")}


def test_the_page_about_faces_names_every_one():
    page = (FONTS / "README.md").read_text(encoding="utf-8")
    missing = [name for name in LATIN + CHINESE if name.split("-")[0] not in page]
    assert missing == []


@pytest.mark.parametrize("name", LATIN)
def test_latin_faces_have_ascii_and_the_common_signs(name: str):
    assert lacks(name, ASCII + SIGNS) == ""


@pytest.mark.parametrize("name", faces("train", "hand"))
def test_handwritten_faces_have_ascii(name: str):
    assert lacks(name, ASCII) == ""


@pytest.mark.parametrize("name", CHINESE)
def test_chinese_faces_have_the_characters_of_all_phrases(name: str):
    lists = ("zh_sign", "zh_dish", "zh_item", "zh_shop", "zh_city", "zh_person", "zh_word")
    phrases = "".join("".join(listed(kind, "train") + listed(kind, "test")) for kind in lists)
    assert lacks(name, characters() + phrases + ASCII + "，。：、？“”") == ""


def test_a_missing_letter_is_noticed():
    assert lacks("roboto", "a汉b") == "汉"


def test_an_unknown_face_is_refused():
    with pytest.raises(ValueError, match="unknown face 'arial'"):
        font("arial", 20)


def test_a_pen_ends_where_its_width_says():
    canvas = Image.new("RGB", (300, 60))
    writer = pen("roboto", 24)
    for tracking in (0, 3):
        end = writer.write(canvas, 5, 40, "Hamburg 42", (255, 255, 255), tracking)
        assert end == 5 + writer.width("Hamburg 42", tracking)


def test_the_box_of_a_text_is_tight():
    canvas = Image.new("L", (300, 60))
    writer = pen("dejavu-serif", 24)
    writer.write(canvas, 20, 40, "Quay, 7", 255)
    left, top, right, bottom = writer.box("Quay, 7")
    assert canvas.getbbox() == (20 + left, 40 + top, 20 + right, 40 + bottom)


def test_letters_at_the_edge_are_cut_off():
    canvas = Image.new("RGB", (30, 20))
    pen("roboto", 24).write(canvas, -5, 18, "Hamburg", (255, 255, 255))
    assert canvas.getbbox() is not None
