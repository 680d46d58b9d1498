"""Documents: receipts, invoices, letters, forms, tables, price lists: read, find, add up, count."""

from collections.abc import Sequence

from internvl2.synthetic import camera
from internvl2.synthetic.draw import Draw
from internvl2.synthetic.page import TILE, Shape, any_shape, is_easy, square
from internvl2.synthetic.papers import Document, form, invoice, letter
from internvl2.synthetic.price_lists import price_list
from internvl2.synthetic.receipts import receipt
from internvl2.synthetic.sample import Sample, Turn
from internvl2.synthetic.sheet import choose_look, compose, page_look, text_of
from internvl2.synthetic.slips import slip
from internvl2.synthetic.tables import table
from internvl2.synthetic.wordings import DESCRIBE, READ

READ_ALL = (
    *READ, "Read the document.", "Transcribe this document.", "What does the document say?",
    "Extract all text from the document.",
)  # fmt: skip
NAMED = (
    "Read the {kind}.",
    "What does this {kind} say?",
    "Transcribe the {kind}.",
    "What is written on this {kind}?",
)
KIND = (
    "What kind of document is this?",
    "What is this?",
    "What type of document is it?",
)
MAKERS = (receipt, invoice, letter, form, table, price_list)
WEIGHTS = (28, 17, 13, 17, 19, 10)


def make(draw: Draw, difficulty: float) -> Sample:
    """A document and one to three questions about it."""
    easy = is_easy(draw, difficulty)
    maker = slip if easy else draw.weighted(MAKERS, WEIGHTS)
    document = maker(draw, difficulty)
    if easy:
        shape = Shape(TILE, draw.integer(224, TILE), 1.0)
    else:
        shape = _tall(draw) if document.kind == "receipt" else _usual(draw)
    if document.kind == "price list":
        look = page_look(draw, shape)
    else:
        look = choose_look(draw, shape, may_lie=document.kind == "receipt")
    image = compose(draw, look, document.rows, difficulty)
    image = camera.worn(draw, image, difficulty)
    return Sample("documents", (image,), _ask(draw, document))


def _usual(draw: Draw) -> Shape:
    return square(draw) if draw.chance(0.75) else any_shape(draw)


def _tall(draw: Draw) -> Shape:
    if draw.chance(0.78):
        return square(draw)
    high = draw.choice((896, 800))
    return Shape(high // 2, high, high / 896)


def _ask(draw: Draw, document: Document) -> tuple[Turn, ...]:
    turns: list[Turn] = []
    if draw.chance(0.42):
        wording = draw.choice(READ_ALL)
        if draw.chance(0.3):
            wording = draw.choice(NAMED).format(kind=document.kind)
        turns.append(Turn(wording, text_of(document.rows), "read"))
    if not turns or draw.chance(0.3):
        turns += _different(draw.shuffled(document.turns))[: draw.more(draw.integer(1, 3))]
    article = "An" if document.kind == "invoice" else "A"
    if draw.chance(0.06):
        turns.append(Turn(draw.choice(KIND), f"{article} {document.kind}.", "describe"))
    elif draw.chance(0.04):
        seen = f"{article} {document.kind} {document.summary}."
        turns = [Turn(draw.choice((*DESCRIBE, "Describe this document.")), seen, "describe")]
    return tuple(turns)


def _different(turns: Sequence[Turn]) -> list[Turn]:
    """The turns, of each question the first."""
    return list({turn.question: turn for turn in reversed(turns)}.values())[::-1]
