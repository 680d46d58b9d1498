"""The words that are written into pictures: lists in the package, each split by a hash.

Every sixth word, by its hash, is for the test split alone, so that a model is asked to read what it
never saw written.
"""

import zlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Literal

Split = Literal["train", "test"]

HELD_OUT = 6


def belongs(key: str, split: Split) -> bool:
    """Whether what is written so may be drawn for the split; about a sixth is for test."""
    return (zlib.crc32(key.encode()) % HELD_OUT == 0) == (split == "test")


@cache
def english(split: Split) -> tuple[str, ...]:
    """Common English words in lower case."""
    return _of_split(_read("english.txt").split(), split)


@cache
def listed(name: str, split: Split) -> tuple[str, ...]:
    """Entries of a list of names.txt or chinese.txt: `city`, `product`, `sign`, ..."""
    lists = _lists()
    if name not in lists:
        raise ValueError(f"unknown list {name!r}; known: {', '.join(sorted(lists))}")
    return _of_split(lists[name], split)


@cache
def characters() -> str:
    """The Chinese characters that occur in what is drawn, in order of their code."""
    return _read("characters.txt").replace("\n", "")


@cache
def _lists() -> Mapping[str, tuple[str, ...]]:
    """A line `[name]`, then entries with commas between them."""
    lists: dict[str, tuple[str, ...]] = {}
    for part in (_read("names.txt") + _read("chinese.txt")).split("[")[1:]:
        name, _, entries = part.partition("]")
        found = (entry.strip() for entry in entries.replace("\n", ",").split(","))
        lists[name] = tuple(dict.fromkeys(entry for entry in found if entry))
    return lists


def _of_split(entries: list[str] | tuple[str, ...], split: Split) -> tuple[str, ...]:
    return tuple(entry for entry in entries if belongs(entry, split))


def _read(name: str) -> str:
    return (files("internvl2") / "assets" / "words" / name).read_text(encoding="utf-8")
