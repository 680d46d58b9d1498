"""A source becomes a recipe: every flag of it ends in one of three lists."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from internvl2.train.migrate import llama_factory, official, paddlemix, swift
from internvl2.train.migrate.command import Kind as SourceKind
from internvl2.train.migrate.flags import Flag, Flags, default
from internvl2.train.migrate.sources import Given, read_source
from internvl2.train.migrate.swift_2 import as_version_3
from internvl2.train.migrate.verdicts import Kind, Rule, Setting, Verdict, missing, needless
from internvl2.train.recipe import Recipe
from internvl2.train.recipe_file import fill


@dataclass(frozen=True, slots=True)
class Source:
    """A trainer whose flags are known."""

    name: str
    rules: Callable[[], dict[str, Rule]]
    defaults: Mapping[str, str]
    """What it takes for flags that are not given, where that is not what a recipe takes."""
    notes: tuple[str, ...] = ()
    """How it differs, whatever the flags."""
    by_its_rules: Callable[[Flags], Flags] = lambda flags: flags
    """Flags of an older version under the names that the rules know."""


SOURCES: dict[SourceKind, Source] = {
    "official": Source(official.NAME, official.rules, official.DEFAULTS),
    "paddlemix": Source(paddlemix.NAME, paddlemix.rules, paddlemix.DEFAULTS, paddlemix.NOTES),
    "llama_factory": Source(llama_factory.NAME, llama_factory.rules, llama_factory.DEFAULTS),
    "swift": Source(swift.NAME, swift.rules, swift.DEFAULTS, by_its_rules=as_version_3),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A flag and what became of it."""

    flag: Flag
    verdict: Verdict

    @property
    def kind(self) -> Kind:
        """The list that it is in."""
        return self.verdict.kind


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a key of the recipe comes from."""

    setting: Setting
    flags: tuple[Flag, ...]


@dataclass(frozen=True, slots=True)
class Migration:
    """A recipe, and what of the source is in it."""

    source: Source
    where: str
    entries: tuple[Entry, ...]
    """One for each flag that was given, and for defaults that have no counterpart."""
    origins: Mapping[str, Origin]
    """By the recipe's keys."""
    recipe: Recipe

    def of(self, kind: Kind) -> tuple[Entry, ...]:
        """One of the three lists."""
        return tuple(entry for entry in self.entries if entry.kind == kind)

    @property
    def is_complete(self) -> bool:
        """Whether everything has a counterpart."""
        return not self.of(Kind.MISSING)


UNKNOWN = "it is not known here; `internvl2 train RECIPE --help` lists what there is"


@dataclass
class _Draft:
    """The recipe as it grows."""

    found: dict[str, Origin] = field(default_factory=dict)

    def take(self, flag: Flag, setting: Setting) -> None:
        known = self.found.get(setting.key)
        if known is None:
            self.found[setting.key] = Origin(setting, (flag,))
        elif known.setting.value == setting.value:
            self.found[setting.key] = Origin(known.setting, (*known.flags, flag))
        elif flag.is_given:
            others = ", ".join(other.shown for other in known.flags)
            raise ValueError(f"{others} and {flag.shown} disagree about `{setting.key}`")

    def table(self) -> dict[str, Any]:
        """As a recipe file would have it."""
        table: dict[str, Any] = {}
        for key, origin in self.found.items():
            *parents, last = key.split(".")
            inner = table
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[last] = origin.setting.value
        return table


def migrate(
    text: str,
    where: str,
    *,
    folder: Path = Path(),
    variables: Mapping[str, str] | None = None,
    gpus: int | None = None,
) -> Migration:
    """The recipe of a script, command or file of flags.

    `where` names it for people, `folder` is where it stands, `variables` are those that the script
    would be started with, and `gpus` goes before what it says of processes.
    """
    given = read_source(text, where, folder, variables or {})
    source = SOURCES[given.kind]
    flags = source.by_its_rules(Flags(given.flags, source.defaults, folder, gpus))
    rules: dict[str, Rule] = source.rules()
    draft, entries = _Draft(), _program_entries(given)
    try:
        entries += _entries(flags, rules, draft, given.kind)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if "model" not in draft.found:
        name = "model" if given.kind == "swift" else "model_name_or_path"
        raise ValueError(f"{where} names no model: {name} is missing")
    recipe = fill(Recipe, draft.table(), where)
    return Migration(source, where, tuple(entries), draft.found, recipe)


def _entries(
    flags: Flags, rules: Mapping[str, Rule], draft: _Draft, kind: SourceKind
) -> list[Entry]:
    entries: list[Entry] = []
    for place, flag in enumerate(flags.given):
        again = any(later.name == flag.name for later in flags.given[place + 1 :])
        repeated = needless("it is given again later")
        verdict = repeated if again else _verdict(flag, flags, rules, kind)
        entries.append(Entry(flag, verdict))
        for setting in verdict.settings:
            draft.take(flag, setting)
    given = {flag.name for flag in flags.given}
    for name, value in flags.defaults.items():
        if name in given:
            continue
        flag = default(name, value)
        verdict = rules[name](flag, flags)
        for setting in verdict.settings:
            draft.take(flag, setting)
        if verdict.kind == Kind.MISSING:
            entries.append(Entry(flag, verdict))
    return entries


def _verdict(flag: Flag, flags: Flags, rules: Mapping[str, Rule], kind: SourceKind) -> Verdict:
    rule = rules.get(flag.name)
    if rule is not None:
        return rule(flag, flags)
    if flag.name.startswith("launcher.") and not flag.fault:
        return needless("how theirs is started")
    if flag.name.startswith("environment.") and kind != "swift":
        return needless("nothing here reads it")
    if flag.name == "config":
        return needless("the file's flags are read")
    return missing(flag.fault or UNKNOWN)


def _program_entries(given: Given) -> list[Entry]:
    """A program that trains on preferences is itself without a counterpart."""
    if not any(name in given.program for name in official.PREFERENCES):
        return []
    return [Entry(Flag(given.program, "program"), missing(official.NO_PREFERENCES))]
