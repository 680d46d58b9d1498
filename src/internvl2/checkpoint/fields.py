"""One section of a JSON file, read with checks: a wrong or missing value is named."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Section:
    """The object at `place` of a JSON file."""

    place: str
    """For messages: the file's path, then the keys that lead here."""
    values: dict[str, Any]

    def section(self, key: str) -> "Section":
        """The object under `key`."""
        value = self.values.get(key)
        if not isinstance(value, dict):
            raise ValueError(f"{self.place}: {key} is {value!r}; it must be an object")
        return Section(f"{self.place}: {key}", value)

    def integer(self, key: str, default: int | None = None) -> int:
        """The whole number under `key`; absent or null means `default`, without one an error."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value % 1:
            raise ValueError(f"{self.place}: {key} is {value!r}; it must be a whole number")
        return int(value)

    def count(self, key: str, default: int | None = None) -> int:
        """The whole number above 0 under `key`."""
        value = self.integer(key, default)
        if value < 1:
            raise ValueError(f"{self.place}: {key} is {value}; it must be a whole number above 0")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """The number under `key`."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{self.place}: {key} is {value!r}; it must be a number")
        if not math.isfinite(value):
            raise ValueError(f"{self.place}: {key} is {value!r}; it must be finite")
        return float(value)

    def text(self, key: str, default: str | None = None) -> str:
        """The string under `key`."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise ValueError(f"{self.place}: {key} is {value!r}; it must be a string")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """The truth value under `key`."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise ValueError(f"{self.place}: {key} is {value!r}; it must be true or false")
        return value

    def numbers(self, key: str) -> tuple[float, ...]:
        """The list of numbers under `key`."""
        value = self.values.get(key)
        if not isinstance(value, list) or not all(type(x) in (int, float) for x in value):
            raise ValueError(f"{self.place}: {key} is {value!r}; it must be a list of numbers")
        return tuple(float(x) for x in value)

    def side(self, key: str, default: int) -> int:
        """A side in pixels, which some files give as [height, width]."""
        value = self.values.get(key)
        if isinstance(value, list):
            if len(value) != 2 or value[0] != value[1]:
                raise ValueError(f"{self.place}: {key} is {value!r}; only squares are supported")
            return Section(self.place, {key: value[0]}).integer(key)
        return self.integer(key, default)

    def require(self, key: str, *allowed: object, default: object = None) -> None:
        """Raise unless the value under `key` is one that we compute."""
        value = self.values.get(key, default)
        if value not in allowed:
            known = " or ".join(json.dumps(choice) for choice in allowed)
            raise ValueError(f"{self.place}: {key} {value!r} is not supported; it must be {known}")

    def _value(self, key: str, default: object) -> object:
        value = self.values.get(key)
        if value is None:
            value = default
        if value is None:
            raise ValueError(f"{self.place}: {key} is missing")
        return value


def read_json(path: Path) -> Section:
    """The object in a JSON file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {type(values).__name__}; it must hold an object")
    return Section(str(path), values)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write `values` as the model hubs do: indented, keys in the order given."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
