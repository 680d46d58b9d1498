"""The source of chance of one sample: numbers, words, names, prices, dates, faces.

Everything follows from the seed, the split and the purpose, on every machine. What is written is
of the split: words, names and numbers whose hash is held out are drawn for test alone.
"""

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from internvl2.synthetic.fonts import Kind, faces
from internvl2.synthetic.words import Split, belongs, english, listed

T = TypeVar("T")

MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip
CODE_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
"""Without I and O, which some faces draw like 1 and 0."""


class Draw:
    """What chance gives for one sample."""

    def __init__(self, seed: int, split: Split = "train", purpose: str = "") -> None:
        self.split: Split = split
        source = random.Random(f"{purpose}/{split}/{seed}")
        self._random = source.random
        self._gauss = source.gauss

    def integer(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return low + int(self._random() * (high - low + 1))

    def number(self, low: float, high: float) -> float:
        """A number between the two."""
        return low + self._random() * (high - low)

    def chance(self, share: float) -> bool:
        """True in that share of the cases."""
        return self._random() < share

    def choice(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[int(self._random() * len(options))]

    def weighted(self, options: Sequence[T], weights: Sequence[float]) -> T:
        """One of the options, as often as its weight says."""
        left = self._random() * sum(weights)
        for option, weight in zip(options, weights, strict=True):
            left -= weight
            if left < 0:
                return option
        return options[-1]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        """All of them, in an order by chance."""
        return self.several(options, len(options))

    def several(self, options: Sequence[T], count: int) -> list[T]:
        """So many different ones, in an order by chance."""
        pool = list(options)
        for i in range(count):
            j = self.integer(i, len(pool) - 1)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:count]

    def more(self, questions: int) -> int:
        """How many questions a picture gets, of so many as a test asks.

        In training mostly three times as many: a model looks at a picture once, which costs it a
        hundred times what another question does.
        """
        return 3 * questions if self.split == "train" and self.chance(0.7) else questions

    def belongs(self, key: str) -> bool:
        """Whether what the key describes may be drawn for this split."""
        return belongs(key, self.split)

    def of_split(self, make: Callable[[], str]) -> str:
        """What `make` gives, made again until it is of this split."""
        while True:
            text = make()
            if belongs(text, self.split):
                return text

    def word(self) -> str:
        """A common English word in lower case."""
        return self.choice(english(self.split))

    def words(self, count: int) -> list[str]:
        """So many words."""
        return [self.word() for _ in range(count)]

    def listed(self, name: str) -> str:
        """An entry of a list: city, street, product, service, business, sign, subject, ..."""
        return self.choice(listed(name, self.split))

    def listed_several(self, name: str, count: int) -> list[str]:
        """So many different entries of a list."""
        return self.several(listed(name, self.split), count)

    def name(self) -> str:
        """A person's first and last name."""
        return f"{self.listed('first_name')} {self.listed('last_name')}"

    def company(self) -> str:
        """A shop's or a company's name."""
        kind = self.listed("business")
        start = self.integer(0, 3)
        if start == 0:
            return f"{self.listed('last_name')} {kind}"
        if start == 1:
            return f"{self.word().capitalize()} {kind}"
        if start == 2:
            return f"{self.listed('city')} {kind}"
        return f"{self.word().capitalize()} {self.choice(('Ltd', 'Inc.', 'GmbH', 'Group', 'Co.'))}"

    def street(self) -> str:
        """A house number and a street."""
        return f"{self.integer(1, 220)} {self.listed('street')}"

    def price(self, low: int = 50, high: int = 9999) -> int:
        """A price in cents, most often ending in a round number."""
        cents = self.integer(low, high)
        ending = self._random()
        if ending < 0.25:
            return max(low, cents - cents % 100 + 99)
        if ending < 0.6:
            return max(low, cents - cents % 10)
        return cents

    def digits(self, count: int) -> str:
        """So many digits."""
        return self.of_split(lambda: "".join(self.choice("0123456789") for _ in range(count)))

    def code(self) -> str:
        """A code of capital letters and digits, as of a booking or an invoice."""
        return self.of_split(self._code)

    def date(self) -> str:
        """A date, in one of many ways of writing it."""
        return self.of_split(self._date)

    def time(self) -> str:
        """A time of the day."""
        hour, minute = self.integer(0, 23), self.integer(0, 59)
        if self.chance(0.6):
            return f"{hour:02}:{minute:02}"
        return f"{hour % 12 or 12}:{minute:02} {'PM' if hour >= 12 else 'AM'}"

    def phone(self) -> str:
        """A telephone number."""
        return self.of_split(self._phone)

    def email(self) -> str:
        """An address for mail."""
        first, last = self.listed("first_name").lower(), self.listed("last_name").lower()
        name = self.choice((first, f"{first}.{last}", f"{first[0]}.{last}", "info", "office"))
        return f"{name}@{self.word()}.{self.choice(('com', 'org', 'net', 'de', 'eu', 'co.uk'))}"

    def face(self, *kinds: Kind) -> str:
        """A face of this split, of these kinds where the split has them."""
        return self.choice(faces(self.split, *kinds) or faces(self.split))

    def colour(self, low: int = 0, high: int = 255) -> tuple[int, int, int]:
        """Red, green and blue, each between the two."""
        return self.integer(low, high), self.integer(low, high), self.integer(low, high)

    def _code(self) -> str:
        def letters(count: int) -> str:
            return "".join(self.choice(CODE_LETTERS) for _ in range(count))

        def figures(count: int) -> str:
            return "".join(self.choice("0123456789") for _ in range(count))

        kind = self.integer(0, 4)
        if kind == 0:
            return f"{letters(self.integer(1, 3))}-{figures(self.integer(3, 6))}"
        if kind == 1:
            return figures(self.integer(4, 8))
        if kind == 2:
            return f"{letters(2)}{figures(self.integer(3, 5))}"
        if kind == 3:
            return "".join(
                self.choice(CODE_LETTERS + "23456789") for _ in range(self.integer(5, 7))
            )
        return f"{figures(4)}/{figures(self.integer(2, 4))}"

    def _date(self) -> str:
        day, month, year = self.integer(1, 28), self.integer(1, 12), self.integer(1995, 2032)
        name = MONTHS[month - 1]
        return self.choice(
            (
                f"{year}-{month:02}-{day:02}",
                f"{day:02}/{month:02}/{year}",
                f"{day:02}.{month:02}.{year}",
                f"{day} {name} {year}",
                f"{name} {day}, {year}",
                f"{day} {name[:3]} {year}",
                f"{name[:3]} {day}, {year}",
            )
        )

    def _phone(self) -> str:
        figures = [str(self.integer(0, 9)) for _ in range(11)]
        kind = self.integer(0, 3)
        if kind == 0:
            return f"{''.join(figures[:3])}-{''.join(figures[3:6])}-{''.join(figures[6:10])}"
        if kind == 1:
            return f"({''.join(figures[:3])}) {''.join(figures[3:6])}-{''.join(figures[6:10])}"
        if kind == 2:
            return f"+{self.integer(1, 99)} {''.join(figures[:3])} {''.join(figures[3:9])}"
        return f"0{''.join(figures[:2])} {''.join(figures[2:6])} {''.join(figures[6:10])}"
