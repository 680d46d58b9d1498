"""Flags of a trainer by their names, with values read as what they are meant to be."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

TRUE = ("true", "1", "yes", "on", "y", "t")
FALSE = ("false", "0", "no", "off", "n", "f")
NOTHING = ("", "none", "null", "~")

Place = Literal["program", "launcher", "environment"]


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag that a source has, or would have by default."""

    shown: str
    """As the source writes it: `--learning_rate`, `MAX_NUM=`, `learning_rate:`."""
    name: str
    """Under which rules know it: with `_`, and the place before a dot unless it is the program."""
    values: tuple[str, ...] = ()
    fault: str | None = None
    """Why the values are not known."""
    is_given: bool = True

    @property
    def value(self) -> str:
        """The values as people see them."""
        return " ".join(self.values)

    @property
    def is_nothing(self) -> bool:
        """Whether it says that there is none."""
        return self.value.strip().lower() in NOTHING

    def texts(self) -> tuple[str, ...]:
        """All values; one with commas is several."""
        self._require_known()
        found = (part.strip() for value in self.values for part in value.split(","))
        return tuple(part for part in found if part)

    def text(self) -> str:
        """The one value."""
        self._require_known()
        if len(self.values) != 1:
            raise self._wrong("one value")
        return self.values[0]

    def number(self) -> float:
        """The value as a number, in whatever spelling: 1e-5, .1, 2."""
        text = self.text()
        if not re.fullmatch(r"[+-]?(\d[\d_]*\.?\d*|\.\d+)([eE][+-]?\d+)?", text):
            raise self._wrong("a number")
        number = float(text)
        if not math.isfinite(number):
            raise self._wrong("a number that is not so large")
        return number

    def whole(self) -> int:
        """The value as a whole number; 2.0 is one."""
        number = self.number()
        if not number.is_integer():
            raise self._wrong("a whole number")
        return int(number)

    def truth(self) -> bool:
        """The value as true or false; a flag without a value is true."""
        self._require_known()
        text = self.value.lower()
        if not self.values or text in TRUE:
            return True
        if text not in FALSE:
            raise self._wrong("true or false")
        return False

    def _require_known(self) -> None:
        if self.fault:
            raise ValueError(f"the value of {self.shown} is not known: {self.fault}")

    def _wrong(self, wanted: str) -> ValueError:
        return ValueError(f"{self.shown} is {self.value!r}; {wanted} was expected")


@dataclass(frozen=True, slots=True)
class Flags:
    """All flags of a source, and what its program takes where one is not given."""

    given: tuple[Flag, ...]
    defaults: Mapping[str, str] = field(default_factory=dict)
    folder: Path = Path()
    """Where the source stands; files that it names are looked for there as well."""
    gpus: int | None = None
    """How many processes train, where the person says so."""

    def find(self, *names: str) -> Flag | None:
        """The last one of any of these names, else the program's default for them."""
        for flag in reversed(self.given):
            if flag.name in names:
                return flag
        for name in names:
            if name in self.defaults:
                return default(name, self.defaults[name])
        return None

    def is_true(self, *names: str) -> bool:
        """Whether such a flag is on."""
        flag = self.find(*names)
        return flag is not None and not (flag.values and flag.is_nothing) and flag.truth()

    def whole(self, name: str, otherwise: int) -> int:
        """A whole number, or another one where there is no such flag."""
        flag = self.find(name)
        return otherwise if flag is None or flag.is_nothing else flag.whole()

    def number(self, name: str, otherwise: float) -> float:
        """A number, or another one where there is no such flag."""
        flag = self.find(name)
        return otherwise if flag is None or flag.is_nothing else flag.number()

    def word(self, *names: str) -> str:
        """A value in small letters, or nothing."""
        flag = self.find(*names)
        return "" if flag is None or flag.is_nothing else flag.text().lower()


def default(name: str, value: str) -> Flag:
    """What a program takes for a flag that was not given."""
    place, _, variable = name.rpartition(".")
    return Flag(f"{variable}=" if place else f"--{name}", name, (value,), is_given=False)


def rule_name(name: str, place: Place = "program") -> str:
    """The name under which rules know a flag."""
    plain = name.lstrip("-").replace("-", "_")
    return plain if place == "program" else f"{place}.{plain}"
