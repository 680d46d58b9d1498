"""What a text is: a command of a known trainer in a script, or a file of its flags."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from internvl2.train.migrate.command import READABLE, Kind, find_command
from internvl2.train.migrate.flags import Flag, rule_name
from internvl2.train.migrate.tables import Table, read_table

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
