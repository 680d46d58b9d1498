"""YAML and JSON files of flags, every value as it is written: `1e-5` stays 1e-5, `no` stays no.

YAML's own types would make a text of the one and false of the other; so nodes are read, not values.
"""

import json
from collections.abc import Iterator
from typing import Any

import yaml

Table = dict[str, tuple[str, ...]]


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
