"""The recipe of a migration as TOML, each value with its flag; and the report."""

import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from internvl2.train.migrate.migration import Entry, Migration
from internvl2.train.migrate.verdicts import Kind, Setting
from internvl2.train.recipe import DataSource, Recipe
from internvl2.train.recipe_file import toml_value

WIDTH = 98


def recipe_text(migration: Migration) -> str:
    """What is not as in any recipe, and what is estimated, each with where it comes from."""
    head = [f"From {migration.where} ({migration.source.name}) by `internvl2 migrate`."]
    head += migration.source.notes
    lines = _comments(" ".join(head))
    for entry in migration.of(Kind.MISSING):
        lines += _comments(f"NO COUNTERPART: {_shown(entry)}: {entry.verdict.note}")
    usual = Recipe(migration.recipe.model)
    body = list(_lines(migration, migration.recipe, usual, ""))
    return "\n".join([*lines, *body]) + "\n"


def report(migration: Migration) -> list[str]:
    """The three lists, a line for each flag."""
    count = sum(entry.flag.is_given for entry in migration.entries)
    lines = [f"{migration.where}: {migration.source.name}, {count} flags"]
    width = max((len(_shown(entry)) for entry in migration.entries), default=0)
    for kind in Kind:
        entries = migration.of(kind)
        if entries:
            lines += ["", f"{kind.value} ({len(entries)})"]
        lines += [f"  {_shown(e):<{min(width, 44)}}  {_outcome(e)}" for e in entries]
    assumed = [
        f"  {setting.key} = {_short(setting)}"
        for setting, by_default in _assumed(migration)
        if by_default
    ]
    if assumed:
        lines += ["", f"not said, so as {migration.source.name} does by default", *assumed]
    return lines


def _lines(migration: Migration, record: Any, usual: Any, prefix: str) -> Iterator[str]:
    """The values of a dataclass that differ from the usual ones; plain ones before tables."""
    tables: list[str] = []
    for f in fields(record):
        value, key = getattr(record, f.name), f"{prefix}{f.name}"
        if is_dataclass(value):
            inner = list(_lines(migration, value, getattr(usual, f.name), f"{key}."))
            has_values = bool(inner) and inner[0] != ""  # which comes before another table
            tables += ["", f"[{key}]", *inner] if has_values else inner
        elif isinstance(value, tuple) and value and is_dataclass(value[0]):
            tables += _data_tables(migration, key)
        elif value != getattr(usual, f.name) or _is_told(migration, key):
            yield from _value_lines(migration, key, f.name, value)
    yield from tables


def _is_told(migration: Migration, key: str) -> bool:
    """Whether a value is written although any recipe has it."""
    origin = migration.origins.get(key)
    return key == "model" or (origin is not None and bool(origin.setting.why))


def _value_lines(migration: Migration, key: str, name: str, value: Any) -> Iterator[str]:
    origin = migration.origins[key]
    if origin.setting.why:
        yield from _comments(origin.setting.why)
    yield f"{name} = {toml_value(value)}  # {_sources(migration, key)}"


def _data_tables(migration: Migration, key: str) -> Iterator[str]:
    """The tables of data sets, as they were found."""
    known = {f.name: f.default for f in fields(DataSource) if f.default is not MISSING}
    for number, table in enumerate(migration.origins[key].setting.value):
        yield from ("", f"[[{key}]]")
        source = f"  # {_sources(migration, key)}" if not number else ""
        for name, value in table.items():
            if name not in known or value != known[name]:
                yield f"{name} = {toml_value(value)}{source if name == 'path' else ''}"


def _sources(migration: Migration, key: str) -> str:
    flags = migration.origins[key].flags
    given = [flag.shown for flag in flags if flag.is_given]
    return ", ".join(given) or f"default of {migration.source.name} ({flags[0].shown})"


def _comments(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ")


def _shown(entry: Entry) -> str:
    flag = entry.flag
    joined = "" if flag.shown.endswith("=") else " "
    text = f"{flag.shown}{joined}{flag.value}".strip()
    return text if flag.is_given else f"{text} (its default)"


def _outcome(entry: Entry) -> str:
    keys = ", ".join(f"{s.key} = {_short(s)}" for s in entry.verdict.settings)
    note = entry.verdict.note
    if entry.kind == Kind.TRANSLATED:
        return f"{keys}; {note}" if note else keys
    return f"{note} (in part: {keys})" if keys else note


def _short(setting: Setting) -> str:
    if isinstance(setting.value, list) and setting.value and isinstance(setting.value[0], dict):
        return ", ".join(str(table["path"]) for table in setting.value)
    value = setting.value
    return toml_value(tuple(value) if isinstance(value, list) else value)


def _assumed(migration: Migration) -> Iterator[tuple[Setting, bool]]:
    """Values of the recipe that no given flag said, and that a recipe would not have anyway."""
    usual = Recipe(migration.recipe.model)
    for key, origin in migration.origins.items():
        found, expected = _at(migration.recipe, key), _at(usual, key)
        yield origin.setting, found != expected and not any(f.is_given for f in origin.flags)


def _at(record: Any, key: str) -> Any:
    for name in key.split("."):
        record = getattr(record, name)
    return record
