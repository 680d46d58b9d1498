"""Documents: sums add up, questions have the value that is written, rows fit on the page."""

import re
from collections.abc import Callable

import pytest

from internvl2.synthetic.catalogue import sample
from internvl2.synthetic.draw import Draw
from internvl2.synthetic.page import Shape, snap_down, square
from internvl2.synthetic.papers import Document, form, invoice, letter
from internvl2.synthetic.price_lists import price_list
from internvl2.synthetic.receipts import receipt
from internvl2.synthetic.sheet import Row, choose_look, compose, page_look, text_of
from internvl2.synthetic.slips import slip
from internvl2.synthetic.tables import table

MAKERS = (receipt, invoice, letter, form, table, price_list, slip)
Make = Callable[[Draw, float], Document]


def cents(text: str) -> int:
    return round(float(re.sub(r"[^\d.]", "", text)) * 100)


def test_the_wares_of_a_receipt_add_up_to_its_total():
    for seed in range(200):
        document = receipt(Draw(seed), 1.0)
        spread = [row for row in document.rows if row.align == "spread" and "." in row.cells[-1]]
        total = next(row for row in spread if row.is_bold)
        priced = spread[: spread.index(total)]
        priced = [row for row in priced if row.cells[0] != "Subtotal" and ":" not in row.cells[1]]
        assert sum(cents(row.cells[-1]) for row in priced) == cents(total.cells[-1])


def test_the_amounts_of_an_invoice_add_up_to_its_total():
    for seed in range(200):
        rows = [row.cells for row in invoice(Draw(seed), 1.0).rows]
        priced = [cells for cells in rows if len(cells) == 4 and cells[0] != "Item"]
        for _, count, price, amount in priced:
            assert int(count) * cents(price) == cents(amount)
        assert sum(cents(cells[3]) for cells in priced) == cents(rows[-1][-1])


def test_the_sum_and_the_extremes_of_a_column_are_right():
    checked = 0
    for seed in range(300):
        document = table(Draw(seed), 1.0)
        cells = [row.cells for row in document.rows if row.align == "table"]
        for turn in document.turns:
            found = re.fullmatch(r"What is the (highest|sum of the column) (.+?)\??", turn.question)
            if found:
                at = cells[0].index(found[2])
                column = [float(row[at]) for row in cells[1:]]
                wanted = max(column) if found[1] == "highest" else sum(column)
                assert float(turn.answer) == wanted
                checked += 1
    assert checked > 200


@pytest.mark.parametrize("make", MAKERS)
def test_no_question_has_two_answers(make: Make):
    for seed in range(150):
        answers: dict[str, str] = {}
        for turn in make(Draw(seed), 1.0).turns:
            assert answers.setdefault(turn.question, turn.answer) == turn.answer


@pytest.mark.parametrize("make", [receipt, invoice, letter, price_list])
def test_templates_belong_to_one_split(make: Make):
    def template(split: str, seed: int) -> str:
        rows = make(Draw(seed, split), 0.0).rows
        return re.sub(r"\d", "0", text_of(rows))

    train, test = ({template(split, seed) for seed in range(80)} for split in ("train", "test"))
    assert not train & test


@pytest.mark.parametrize("make", MAKERS)
def test_rows_fit_on_the_page(make: Make):
    for seed in range(40):
        draw = Draw(seed)
        document = make(draw, 1.0)
        look = (page_look if seed % 2 else choose_look)(draw, square(draw))
        image = compose(draw, look, document.rows, 1.0)
        for x in (0, image.width - 1):
            assert image.crop((x, 0, x + 1, image.height)).getcolors() is not None
        inked = image.convert("L").point(lambda level: 255 * (level < 200)).getbbox()
        assert inked is not None
        assert inked[0] > 2
        assert inked[1] > 1
        assert inked[2] < image.width - 2
        assert inked[3] < image.height - 1


def test_a_heading_of_a_page_is_larger_than_its_text():
    for seed in range(20):
        draw = Draw(seed)
        look = page_look(draw, Shape(448, 448, 1.0))
        heights = []
        for is_bold in (False, True):
            image = compose(Draw(seed), look, [Row(("Hm",), is_bold=is_bold), Row(("",))], 0.5)
            inked = image.convert("L").point(lambda level: 255 * (level < 128)).getbbox()
            assert inked is not None
            heights.append(inked[3] - inked[1])
        assert 1.1 < heights[1] / heights[0] < 1.8


def test_cells_of_a_row_are_read_with_spaces_between():
    rows = (Row(("Total", "4.20"), "spread"), Row(("Name", "", "Age"), "table"))
    assert text_of(rows) == "Total 4.20\nName Age"


def test_a_long_row_makes_letters_smaller():
    draw, shape = Draw(1), Shape(448, 448, 1.0)
    look = choose_look(draw, shape)
    image = compose(draw, look, [Row(("A very long line of text " * 2,))], 0.0)
    inked = image.convert("L").point(lambda level: 255 * (level < 200)).getbbox()
    assert inked is not None
    assert inked[2] < 448


def test_letters_of_every_height_are_made_no_higher():
    for height in range(9, 140):
        assert 0.84 * height < snap_down(height) <= height


def test_a_short_row_in_the_largest_letters_fits_and_ends():
    look = choose_look(Draw(1), Shape(576, 576, 576 / 448))
    for seed in range(60):
        assert compose(Draw(seed), look, [Row(("No",))], 0.0).size == (576, 576)


def test_what_is_asked_of_a_document_can_be_read_in_it():
    for number in range(150):
        made = sample("documents", number, "test", 0.5)
        assert all(len(turn.answer) < 600 for turn in made.turns)
