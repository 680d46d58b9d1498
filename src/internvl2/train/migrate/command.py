"""The one training command of a script: environment, launcher, program, and the flags of each."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from internvl2.train.migrate.expansion import Expanded, Variables
from internvl2.train.migrate.flags import Flag, Place, rule_name
from internvl2.train.migrate.shell import Statement, statements

Kind = Literal["official", "paddlemix", "llama_factory", "swift"]

READABLE = (
    "a shell script or command with internvl_chat_finetune.py (OpenGVLab, PaddleMIX), with "
    "`swift sft` or with `llamafactory-cli train`, or LLaMA-Factory's YAML or JSON"
)
DECLARING = ("export", "declare", "typeset", "local", "readonly")
STARTERS = ("python", "python3", "torchrun", "accelerate", "launch", "deepspeed", "srun", "bash")

_OFFICIAL = re.compile(r"(.*[/.])?internvl_chat_\w*(finetune|pretrain|mpo|dpo)\w*(\.py)?")
_LLAMA_SCRIPT = re.compile(r"(.*/)?(src/)?train(_bash)?\.py")
_FLAG = re.compile(r"--?[A-Za-z][\w.-]*")
_PAIR = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Command:
    """What a script starts."""

    kind: Kind
    program: str
    line: int
    flags: tuple[Flag, ...]
    words: tuple[str, ...]
    """Words after the program that belong to no flag: names of files with more flags."""


@dataclass(frozen=True, slots=True)
class _Program:
    kind: Kind
    first: int
    """Of the words of a command, that which names the program."""
    last: int


def find_command(text: str, variables: Mapping[str, str]) -> Command:
    """The training command of a script that is started with these variables."""
    known = Variables.of(variables)
    exported: dict[str, Flag] = {}
    found: list[Command] = []
    for statement in statements(text):
        own, words = _prepared(statement, known, exported)
        program = _program(words)
        if program is not None:
            found.append(_command(statement, [*exported.values(), *own], words, program))
    if not found:
        raise ValueError(f"there is no training command; what is read is {READABLE}")
    if len(found) > 1:
        places = ", ".join(str(command.line) for command in found)
        raise ValueError(f"there are {len(found)} training commands (lines {places}); leave one")
    return found[0]


def _prepared(
    statement: Statement, variables: Variables, exported: dict[str, Flag]
) -> tuple[list[Flag], list[Expanded]]:
    """Takes in what a statement assigns; gives the assignments before a command, and its words."""
    words = list(statement.words)
    first = words[0].source
    if first in ("for", "select") and len(words) > 1:
        variables.forget(words[1].source, statement.line)
        return [], []
    if first in DECLARING:
        for word in words[1:]:
            name = variables.assign(word, statement) if word.is_assignment else word.source
            if first == "export" and not name.startswith("-"):
                exported[name] = _of_environment(name, variables)
        return [], []
    if first == "unset":
        for word in words[1:]:
            variables.values.pop(word.source, None)
        return [], []
    leading = 0
    while leading < len(words) and words[leading].is_assignment:
        leading += 1
    if leading == len(words):
        for word in words:
            variables.assign(word, statement)
        return [], []
    scope = Variables(dict(variables.values))
    own = [_of_environment(scope.assign(word, statement), scope) for word in words[:leading]]
    return own, [text for word in words[leading:] for text in variables.words(word)]


def _of_environment(name: str, variables: Variables) -> Flag:
    value = variables.values.get(name, ())
    shown, rule = f"{name}=", rule_name(name, "environment")
    if isinstance(value, tuple):
        return Flag(shown, rule, value)
    return Flag(shown, rule, (), value.reason)


def _program(words: Sequence[Expanded]) -> _Program | None:
    """Where a command names a trainer that is known."""
    texts = [word.text for word in words]
    for place, text in enumerate(texts):
        base, after = PurePosixPath(text).name, texts[place + 1 : place + 2]
        if _OFFICIAL.fullmatch(text):
            return _Program("paddlemix" if _is_paddle(texts) else "official", place, place)
        if base in ("swift", "megatron") and after and after[0] in ("sft", "pt", "rlhf"):
            if base == "megatron":
                raise ValueError("`megatron` has flags of its own; `swift sft` is read")
            return _Program("swift", place, place + 1)
        if text.endswith("swift/cli/sft.py") or text == "swift.cli.sft":
            return _Program("swift", place, place)
        if base in ("llamafactory-cli", "lmf") and after == ["train"]:
            return _Program("llama_factory", place, place + 1)
        is_llama = "--stage" in texts or "--finetuning_type" in texts
        if is_llama and _LLAMA_SCRIPT.fullmatch(text):
            return _Program("llama_factory", place, place)
    return None


def _is_paddle(texts: Sequence[str]) -> bool:
    return any("paddle" in text for text in texts) or any(
        text.startswith("--sharding_parallel_degree") for text in texts
    )


def _command(
    statement: Statement, environment: list[Flag], words: list[Expanded], program: _Program
) -> Command:
    loose: list[str] = []
    launcher = _flags(words[: program.first], "launcher", [])
    own = _flags(words[program.last + 1 :], "program", loose)
    name = " ".join(word.text for word in words[program.first : program.last + 1])
    flags = (*environment, *launcher, *own)
    return Command(program.kind, name, statement.line, flags, tuple(loose))


def _flags(words: Sequence[Expanded], place: Place, loose: list[str]) -> Iterator[Flag]:
    """Flags with their values; `loose` takes the words before the first one."""
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        name, equals, value = word.text.partition("=")
        if not _FLAG.fullmatch(name):
            pair = _PAIR.fullmatch(word.text)
            if pair is not None and place == "program":
                yield Flag(f"{pair[1]}=", pair[1], (pair[2],), word.fault)
            elif word.fault:
                yield Flag(word.text, rule_name(word.text, place), (), word.fault)
            elif place == "program":
                loose.append(word.text)
            continue
        if equals:
            yield Flag(name, rule_name(name, place), (value,), word.fault)
            continue
        values: list[Expanded] = []
        while at < len(words) and _is_value(words[at], place, values):
            values.append(words[at])
            at += 1
        faults = [item.fault for item in values if item.fault]
        texts = tuple(item.text for item in values)
        yield Flag(name, rule_name(name, place), texts, faults[0] if faults else None)


def _is_value(word: Expanded, place: Place, before: list[Expanded]) -> bool:
    """Whether a word belongs to the flag before it; a launcher's flag has one at most."""
    if _FLAG.match(word.text) and not word.fault:
        return False
    if place == "program":
        return True
    return not before and PurePosixPath(word.text).name not in STARTERS
