"""What a source names: its model, and data files with the share of them that is taken."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internvl2 import family
from internvl2.train.migrate.flags import Flag, Flags
from internvl2.train.migrate.verdicts import Setting, Verdict, missing, translated

REVISION = "name a folder with that revision as `model`"
WAYS = ("finetuning_type", "tuner_type", "train_type", "sft_type")
"""Flags that say full or lora."""
RANKS = ("use_llm_lora", "use_backbone_lora")
"""Flags that say it by a number."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
CONVERT = "`internvl2 data convert` makes a file that is read"
READ_ENDINGS = (".json", ".jsonl", ".parquet")


def member(name: str) -> family.Member | None:
    """The released model of that hub id or folder, in whatever stage and layout."""
    try:
        return family.find_stage(name)
    except ValueError:
        return None


def model(flag: Flag, flags: Flags) -> Verdict:
    """The same name; for one in transformers' layout, the trained model has it too."""
    name = flag.text()
    settings = [Setting("model", name)]
    ranks = [flags.whole(name, 0) for name in RANKS]
    has_adapters = flags.word(*WAYS) == "lora" or any(ranks)  # their folder has its own layout
    if name.rstrip("/").lower().endswith("-hf") and not has_adapters:
        settings.append(Setting("layout", "hf", "as the model that training begins with"))
    is_here = Path(name).exists() or (flags.folder / name).exists()
    is_foreign = _HUB_ID.fullmatch(name) is not None and "internvl" not in name.lower()
    if is_foreign and not is_here and member(name) is None:
        return missing("it is none of InternVL2, 2.5, 3 and 3.5; name one as `model`", *settings)
    return translated(*settings)


@dataclass(frozen=True, slots=True)
class Found:
    """A data set as a table of the recipe, or what keeps it from being one."""

    table: dict[str, Any]
    fault: str = ""


def local(
    path: Path, *, root: Path | None = None, most: int | None = None, repeats: bool = True
) -> Found:
    """The table of a file; `most` samples of it, where it is there to be counted.

    More samples than there are repeat them or, without `repeats`, are all of them. A file that is
    there is opened and its first record read.
    """
    table: dict[str, Any] = {"path": str(path)}
    if root is not None and root != path.parent:
        table["root"] = str(root)
    if path.is_file() and path.suffix not in READ_ENDINGS:
        return Found(table, f"{path}: files are {', '.join(READ_ENDINGS)}; {CONVERT}")
    if not path.exists():
        if most is None:
            return Found(table)
        return Found(table, f"{path} is not here to be counted: repeat = {most} / its samples")
    return _opened(path, table, most, repeats)


def _opened(path: Path, table: dict[str, Any], most: int | None, repeats: bool) -> Found:
    from internvl2.train.data.formats import SourceOptions, open_source

    try:
        source = open_source(path, SourceOptions(root=table.get("root")))
        count = len(source)
        if most is not None and (most < count or (repeats and most > count)):
            table["repeat"] = _share(most, count)
        source[0]
    except (ValueError, OSError) as error:
        return Found(table, f"{error}; {CONVERT}")
    return Found(table)


def _share(most: int, count: int) -> float:
    """The shortest number that gives `most` of `count` samples when it is rounded down."""
    shares = (round((most + 0.5 * (digits > 1)) / count, digits) for digits in range(1, 12))
    return next(share for share in shares if int(count * share) == most)


def is_path(name: str) -> bool:
    """Whether a name is a file or folder rather than a set of a hub."""
    return bool(re.search(r"\.(jsonl?|csv|tsv|txt|parquet)$", name)) or name.startswith(
        ("/", "./", "../", "~")
    )
