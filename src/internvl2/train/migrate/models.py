"""The model that a source names, if it is one of the family."""

import re
from pathlib import Path

from internvl2 import family
from internvl2.train.migrate.flags import Flag, Flags
from internvl2.train.migrate.verdicts import Setting, Verdict, missing, translated

REVISION = "name a folder with that revision as `model`"
WAYS = ("finetuning_type", "tuner_type", "train_type", "sft_type")
"""Flags that say full or lora."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


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
    has_adapters = flags.word(*WAYS) == "lora"  # whose folder has a layout of its own
    if name.rstrip("/").lower().endswith("-hf") and not has_adapters:
        settings.append(Setting("layout", "hf", "as the model that training begins with"))
    is_here = Path(name).exists() or (flags.folder / name).exists()
    is_foreign = _HUB_ID.fullmatch(name) is not None and "internvl" not in name.lower()
    if is_foreign and not is_here and member(name) is None:
        return missing("it is none of InternVL2, 2.5, 3 and 3.5; name one as `model`", *settings)
    return translated(*settings)
