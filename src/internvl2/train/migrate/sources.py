"""What a text is: a command of a known trainer in a script, or a file of its flags.

Values of YAML and JSON stay as they are written: `1e-5` stays 1e-5, `no` stays no. YAML's own types
would make a text of the one and false of the other; so nodes are read, not values.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from internvl2.train.migrate.command import READABLE, Kind, find_command
from internvl2.train.migrate.flags import Flag, rule_name

Table = dict[str, tuple[str, ...]]

MOST_CHARACTERS = 1 << 20
FILES = (".yaml", ".yml", ".json")
_TABLE = re.compile(r"\s*\{|(.*\n)*?(model\w*|dataset|stage|output_dir|meta_path)\s*:(\s|$)")
_CONFIG = ("config",)
"""Flags that name a file of flags."""
MARKS: dict[Kind, tuple[str, ...]] = {
    "paddlemix": ("fp16_opt_level", "sharding_parallel_degree", "amp_master_grad"),
    "official": ("meta_path", "conv_style"),
    "llama_factory": ("finetuning_type", "stage", "cutoff_len"),
    "swift": ("tuner_type", "train_type", "sft_type", "max_length", "freeze_vit", "vit_lr"),
}
"""Keys that only one source has, asked for in this order."""


@dataclass(frozen=True, slots=True)
class Given:
    """The flags of a source, in their order."""

    kind: Kind
    program: str
    flags: tuple[Flag, ...]


def read_source(text: str, where: str, folder: Path, variables: Mapping[str, str]) -> Given:
    """Finds out what a text is; files that it names are looked for here and beside it."""
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"{where} has more than {MOST_CHARACTERS} characters; it is no script")
    try:
        if _TABLE.match(text):
            table = read_table(text, where)
            kind = _kind_of(table)
            return Given(kind, where, tuple(_of_file(table)))
        command = find_command(text, variables)
    except ValueError as error:
        is_placed = str(error).startswith(where)
        raise ValueError(str(error) if is_placed else f"{where}: {error}") from None
    named = [flag for flag in command.flags if flag.name in _CONFIG]
    flags: list[Flag] = []
    for word in (*command.words, *(flag.text() for flag in named)):
        if Path(word).suffix in FILES:
            flags += _of_file(read_table(*_file(word, folder, where)))
        else:
            reason = "it is no flag, and no file of flags"
            flags.append(Flag(word, rule_name(word), (), reason))
    return Given(command.kind, command.program, (*flags, *command.flags))


def _file(name: str, folder: Path, where: str) -> tuple[str, str]:
    for path in (Path(name), folder / name):
        if path.is_file():
            return path.read_text(encoding="utf-8"), str(path)
    raise FileNotFoundError(f"{where} takes flags from {name}, which is not there")


def _of_file(table: Table) -> list[Flag]:
    return [Flag(f"{key}:", rule_name(key), values) for key, values in table.items()]


def _kind_of(table: Table) -> Kind:
    for kind, marks in MARKS.items():
        if any(mark in table for mark in marks):
            return kind
    known = ", ".join(table) or "none"
    raise ValueError(f"its keys ({known}) are of no known trainer; what is read is {READABLE}")


def read_table(text: str, where: str) -> Table:
    """Keys and values of a flat file; lists are several values, and deeper things their JSON."""
    return _json(text, where) if text.lstrip().startswith("{") else _yaml(text, where)


def _json(text: str, where: str) -> Table:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _require_unique([key for key, _ in pairs], where)
        return dict(pairs)

    try:
        found = json.loads(text, object_pairs_hook=unique, parse_float=str, parse_int=str)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}:{error.lineno}: not JSON: {error.msg}") from None
    return {key: tuple(_texts(value)) for key, value in found.items()}


def _texts(value: Any) -> Iterator[str]:
    for item in value if isinstance(value, list) else [value]:
        yield item if isinstance(item, str) else json.dumps(item)


def _yaml(text: str, where: str) -> Table:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not YAML: {error}") from None
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply") from None
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"{where} holds no keys with values")
    names = [str(key.value) for key, _ in root.value]
    _require_unique(names, where)
    nodes = [value for _, value in root.value]
    return {name: tuple(_scalars(node, where)) for name, node in zip(names, nodes, strict=True)}


def _scalars(node: yaml.Node, where: str) -> Iterator[str]:
    for item in node.value if isinstance(node, yaml.SequenceNode) else [node]:
        if not isinstance(item, yaml.ScalarNode):
            line = item.start_mark.line + 1
            raise ValueError(f"{where}:{line}: a value or a list of values was expected")
        yield item.value


def _require_unique(names: list[str], where: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{where} has {', '.join(twice)} twice")
