"""Dataclasses as TOML: tables are read strictly, and written so that reading gives them back."""

import difflib
import json
import math
import typing
from dataclasses import fields, is_dataclass
from typing import Any, Literal


def fill(kind: type, table: dict[str, Any], where: str, prefix: str = "") -> Any:
    """A dataclass from a TOML table of the file `where`; every key must be one of its fields."""
    hints = typing.get_type_hints(kind)
    known = {f.name for f in fields(kind)}
    values = {}
    for key, value in table.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(sorted(known))}"
            raise ValueError(f"unknown key `{prefix}{key}` in {where}; {hint}")
        values[key] = _convert(hints[key], value, where, f"{prefix}{key}")
    try:
        return kind(**values)
    except TypeError:
        missing = [name for name in ("model", "path") if name in known and name not in values]
        raise ValueError(f"{where}: `{prefix}{missing[0]}` is missing") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _convert(wanted: Any, value: Any, where: str, key: str) -> Any:
    """A TOML value in the type of its field, or an error that names the key."""
    origin, choices = typing.get_origin(wanted), typing.get_args(wanted)
    if type(None) in choices:
        (wanted,) = (choice for choice in choices if choice is not type(None))
        origin, choices = typing.get_origin(wanted), typing.get_args(wanted)
    if is_dataclass(wanted) and isinstance(wanted, type) and isinstance(value, dict):
        return fill(wanted, value, where, f"{key}.")
    if origin is tuple and isinstance(value, list):
        return tuple(_convert(choices[0], item, where, key) for item in value)
    if origin is Literal and value in choices:
        return value
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is None and not is_dataclass(wanted) and type(value) is wanted:
        return value
    raise ValueError(f"{where}: `{key}` is {value!r}; it must be {_described(wanted)}")


def _described(wanted: Any) -> str:
    if typing.get_origin(wanted) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(wanted)))
    if is_dataclass(wanted):
        return "a table"
    plain = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    return plain.get(wanted, "a list")


def lines(record: Any, prefix: str = "") -> list[str]:
    """A dataclass as TOML: plain values first, then tables, as the format wants it."""
    values, tables = [], []
    for f in fields(record):
        value = getattr(record, f.name)
        if is_dataclass(value):
            tables += ["", f"[{prefix}{f.name}]", *lines(value, f"{prefix}{f.name}.")]
        elif isinstance(value, tuple) and value and is_dataclass(value[0]):
            for item in value:
                tables += ["", f"[[{prefix}{f.name}]]", *lines(item, f"{prefix}{f.name}.")]
        elif value is not None:
            values.append(f"{f.name} = {toml_value(value)}")
    return values + tables


def toml_value(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, tuple):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no value for a recipe")
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
