"""What becomes of a flag: keys of a recipe, nothing because nothing is needed, or nothing at all.

A rule looks at a flag, and at the others where they matter, and gives its verdict.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from internvl2.train.migrate.flags import FALSE, NOTHING, TRUE, Flag, Flags


class Kind(StrEnum):
    """The three lists of a report."""

    TRANSLATED = "translated"
    NEEDLESS = "needs nothing here"
    MISSING = "NO COUNTERPART"


@dataclass(frozen=True, slots=True)
class Setting:
    """A key of the recipe with its value; `data` has a list of tables."""

    key: str
    value: Any
    why: str = ""
    """A line for the recipe where the value is not simply the flag's."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a flag."""

    kind: Kind
    note: str = ""
    """Why nothing is needed, or what to do instead."""
    settings: tuple[Setting, ...] = ()
    """What the recipe gets, also from a flag that has a counterpart only in part."""


Rule = Callable[[Flag, Flags], Verdict]


def translated(*settings: Setting, note: str = "") -> Verdict:
    """The flag says these keys."""
    return Verdict(Kind.TRANSLATED, note, settings)


def needless(reason: str) -> Verdict:
    """The recipe needs no word of it."""
    return Verdict(Kind.NEEDLESS, reason)


def missing(advice: str, *settings: Setting) -> Verdict:
    """We have nothing for it, or only in part."""
    return Verdict(Kind.MISSING, advice, settings)


def number(key: str) -> Rule:
    """A number goes over as it is."""
    return lambda flag, flags: translated(Setting(key, flag.number()))


def whole(key: str) -> Rule:
    """A whole number goes over as it is."""
    return lambda flag, flags: translated(Setting(key, flag.whole()))


def truth(key: str) -> Rule:
    """True or false goes over as it is."""
    return lambda flag, flags: translated(Setting(key, flag.truth()))


def text(key: str) -> Rule:
    """A text goes over as it is."""
    return lambda flag, flags: translated(Setting(key, flag.text()))


def nothing(reason: str) -> Rule:
    """Nothing is needed, whatever the value."""
    return lambda flag, flags: needless(reason)


def lost(advice: str) -> Rule:
    """There is no counterpart, whatever the value, unless it says that there is none."""

    def rule(flag: Flag, flags: Flags) -> Verdict:
        is_off = flag.values and (flag.is_nothing or flag.value.lower() in FALSE)
        return needless("it is off") if is_off and not flag.fault else missing(advice)

    return rule


def expects(wanted: Collection[str], reason: str, advice: str) -> Rule:
    """Nothing is needed for these values; for all others there is no counterpart."""
    plain = {_plain(value) for value in wanted}

    def rule(flag: Flag, flags: Flags) -> Verdict:
        value = _plain("true" if not flag.values else flag.value)
        return needless(reason) if not flag.fault and value in plain else missing(advice)

    return rule


def where(condition: Callable[[Flags], bool], rule: Rule, otherwise: Rule) -> Rule:
    """One rule or the other."""
    return lambda flag, flags: (rule if condition(flags) else otherwise)(flag, flags)


def _plain(value: str) -> str:
    """Spellings of the same value as one."""
    value = value.strip().lower()
    if value in TRUE:
        return "true"
    if value in FALSE:
        return "false"
    if value in NOTHING:
        return ""
    try:
        return f"{float(value):g}"
    except ValueError:
        return value
