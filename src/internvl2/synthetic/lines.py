"""Contents of lines to read: words, sentences, names, figures, and at last letters at random."""

import string
from collections.abc import Callable

from internvl2.synthetic.draw import Draw

Fits = Callable[[str], bool]

_ANY = "".join(sorted(set(string.ascii_letters + string.digits) - set("0O1lI")))
"""Without what many faces draw alike; among words and figures these stand in the other lines."""
_SIGNS = "#%&@/+-*=:;!?()[]<>_"


def line(draw: Draw, difficulty: float, fits: Fits) -> str:
    """One line that fits, never empty; more often figures and random letters with difficulty."""
    kind = draw.number(0, 1)
    if kind < 0.62 - 0.14 * difficulty:
        return words_that_fit(draw, difficulty, fits)
    if kind < 0.9 - 0.1 * difficulty:
        return _fact(draw, fits)
    if difficulty < 0.3:
        return words_that_fit(draw, difficulty, fits)
    return _random_letters(draw, difficulty, fits)


def words_that_fit(draw: Draw, difficulty: float, fits: Fits) -> str:
    """A few words in one of the usual ways of capitals."""
    style = draw.weighted(("lower", "Sentence", "Title", "UPPER"), (40, 30, 15, 15))
    most = draw.integer(1, 4 + round(5 * difficulty))
    text = ""
    for index in range(most):
        word = draw.word()
        if style == "UPPER":
            word = word.upper()
        elif style == "Title" or (style == "Sentence" and index == 0):
            word = word.capitalize()
        longer = f"{text} {word}" if text else word
        if text and not fits(longer):
            break
        text = longer
    while not fits(text) and len(text) > 4:
        text = draw.word()[: len(text) - 1]
    return text


def paragraph(draw: Draw, rows: int, fits: Fits) -> list[str]:
    """Sentences of words, broken into rows where they no longer fit."""
    lines: list[str] = []
    current, left = "", 0
    while len(lines) < rows:
        word = draw.word()
        if left == 0:
            word, left = word.capitalize(), draw.integer(3, 10)
        left -= 1
        if left == 0:
            word += draw.weighted((".", "?", "!"), (8, 1, 1))
        elif draw.chance(0.07):
            word += ","
        longer = f"{current} {word}" if current else word
        if current and not fits(longer):
            lines.append(current)
            longer = word
        current = longer
    return lines


def fact(draw: Draw) -> str:
    """A name, a place, a price, a date, a number, a code ..."""
    makers: tuple[Callable[[], str], ...] = (
        draw.name,
        draw.company,
        draw.street,
        draw.date,
        draw.phone,
        draw.code,
        draw.email,
        draw.time,
        lambda: money(draw, draw.price()),
        lambda: draw.digits(draw.integer(3, 8)),
        lambda: f"{draw.listed('city')}, {draw.date()}",
        lambda: f"{draw.listed('field')}: {draw.code()}",
        lambda: f"{draw.listed('product')} {money(draw, draw.price())}",
        lambda: f"{draw.integer(1, 99)}%",
        lambda: f"{draw.integer(1000, 999999):,}",
    )
    return draw.of_split(draw.choice(makers))


def money(draw: Draw, cents: int, sign: str | None = None) -> str:
    """An amount with a sign of currency."""
    amount = f"{cents // 100}.{cents % 100:02}"
    sign = sign if sign is not None else draw.choice(("$", "€", "£", "¥", ""))
    return f"{amount} {sign}" if sign == "€" else f"{sign}{amount}"


def _fact(draw: Draw, fits: Fits) -> str:
    for _ in range(6):
        text = fact(draw)
        if fits(text):
            return text
    return words_that_fit(draw, 0, fits)


def _random_letters(draw: Draw, difficulty: float, fits: Fits) -> str:
    alphabet = draw.choice((_ANY, string.ascii_uppercase, string.ascii_lowercase, string.digits))
    if difficulty > 0.7 and draw.chance(0.2):
        alphabet = _ANY + _SIGNS
    length = draw.integer(3, 4 + round(6 * difficulty))
    parts = draw.integer(1, 1 + round(2 * difficulty))
    text = draw.of_split(
        lambda: " ".join(
            "".join(draw.choice(alphabet) for _ in range(length)) for _ in range(parts)
        )
    )
    while not fits(text) and len(text) > 2:
        text = text[:-1].strip()
    return text
