"""Data sets that LLaMA-Factory names, found through its dataset_info.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from internvl2.train.migrate.flags import Flag, Flags
from internvl2.train.migrate.inputs import CONVERT, Found, local
from internvl2.train.migrate.verdicts import Rule, Setting, Verdict, missing, needless, translated

INFO = "dataset_info.json"
REMOTE = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
KNOWN = (
    *("file_name", "formatting", "columns", "tags", "subset", "split", "folder"),
    *("num_samples", "ranking", "load_from", *REMOTE),
)
TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "system_tag": "system",
}
"""LLaMA-Factory's own, which are those of ShareGPT."""
OPENAI_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}
COLUMNS = {
    "images": ("images", ("image", "images")),
    "videos": ("videos", ("video", "videos")),
    "system": ("system messages", ("system",)),
}
"""What our readers find besides turns, and under which names."""
READ_COLUMNS = ("messages", *COLUMNS)


def data(key: str) -> Rule:
    """The rule of a flag that names sets; they go to this key of the recipe."""

    def rule(flag: Flag, flags: Flags) -> Verdict:
        names = flag.texts()
        if flag.is_nothing or not names:
            return needless("it names none")
        folder = _folder(flags)
        if folder is None:
            where = flags.find("dataset_dir")
            looked = where.value if where is not None else "data"
            return missing(f"there is no {INFO} in {looked}; name the files in [[{key}]]")
        info = _read(folder / INFO)
        found = [_set(name, info, folder, flags) for name in names]
        tables = [item.table for item in found if item.table]
        faults = [item.fault for item in found if item.fault]
        settings = (Setting(key, tables),) if tables else ()
        return missing("; ".join(faults), *settings) if faults else translated(*settings)

    return rule


def _folder(flags: Flags) -> Path | None:
    """Where dataset_info.json is: `dataset_dir`, seen from here or from above the file."""
    flag = flags.find("dataset_dir")
    given = flag.text() if flag is not None and not flag.is_nothing else "data"
    above = [flags.folder, *flags.folder.resolve().parents[:3]]
    places = [Path(given), *(base / given for base in above), flags.folder]
    return next((place for place in places if (place / INFO).is_file()), None)


def _read(path: Path) -> dict[str, Any]:
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(info, dict):
        raise ValueError(f"{path} is no object with an entry for each set")
    return info


def _set(name: str, info: Mapping[str, Any], folder: Path, flags: Flags) -> Found:
    entry = info.get(name)
    if not isinstance(entry, Mapping):
        return Found({}, f"{name} is not in {folder / INFO}")
    remote = next((key for key in REMOTE if entry.get(key)), None)  # theirs takes it before a file
    file = entry.get("file_name")
    if remote is not None or not isinstance(file, str):
        place = "no file_name" if remote is None else f"{remote} {entry[remote]}"
        return Found({}, f"{name} has {place}: download it and name its files in [[data]]")
    if fault := _form_fault(entry, file):
        return Found({}, f"{name}: {fault}")
    media = flags.find("media_dir")
    root = Path(media.text()) if media is not None and not media.is_nothing else folder
    repeats = not flags.whole("max_samples", 0)
    found = local(folder / file, root=root, most=_most(entry, flags), repeats=repeats)
    return Found(found.table, f"{name}: {found.fault}" if found.fault else "")


def _most(entry: Mapping[str, Any], flags: Flags) -> int | None:
    counts = [entry.get("num_samples"), flags.whole("max_samples", 0) or None]
    known = [count for count in counts if isinstance(count, int)]
    return min(known) if known else None


def _form_fault(entry: Mapping[str, Any], file: str) -> str:
    """What in an entry says that the file has a form which would be read as something else."""
    unknown = [key for key in entry if key not in KNOWN]
    if unknown:
        return f"the entry has {', '.join(map(repr, unknown))}, which is not known here"
    if entry.get("ranking"):
        return f"the records of {file} are preferences; there is no training on them"
    form = entry.get("formatting", "alpaca")
    if form == "alpaca":
        return f"the records of {file} have the form alpaca; {CONVERT}"
    if form not in ("sharegpt", "openai"):
        return f"the form {form!r} of {file} is not known here"
    columns = entry.get("columns") or {}
    tags = TAGS | OPENAI_TAGS if form == "openai" else TAGS
    tags = tags | dict(entry.get("tags") or {})
    turns = columns.get("messages", "conversations")
    return _turns_fault(turns, tags, file) or _columns_fault(columns, file)


def _turns_fault(turns: str, tags: Mapping[str, str], file: str) -> str:
    wanted = {"conversations": TAGS, "messages": OPENAI_TAGS}.get(turns)
    if wanted is None:
        return (
            f"the turns of {file} stand in {turns!r}, not in 'messages' or 'conversations'; "
            f"{CONVERT}"
        )
    for key, name in wanted.items():
        if tags[key] != name:
            return f"{key} of {file} is {tags[key]!r} where {turns!r} has {name!r}; {CONVERT}"
    return ""


def _columns_fault(columns: Mapping[str, Any], file: str) -> str:
    for column, (what, names) in COLUMNS.items():
        if columns.get(column) not in (None, *names):
            place = f"stand in {columns[column]!r}, not in {names[-1]!r}"
            return f"the {what} of {file} {place}; {CONVERT}"
    others = [repr(key) for key, value in columns.items() if value and key not in READ_COLUMNS]
    return f"{', '.join(others)} of {file} are not read" if others else ""
