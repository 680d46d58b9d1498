"""Data sets that LLaMA-Factory names, found through its dataset_info.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from internvl2.train.migrate.data_sets import CONVERT, Found, local
from internvl2.train.migrate.flags import Flag, Flags
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
    remote = [key for key in REMOTE if entry.get(key)]
    file = entry.get("file_name")
    if not isinstance(file, str):
        place = f"{remote[0]} {entry[remote[0]]}" if remote else "no file_name"
        return Found({}, f"{name} has {place}: download it and name its files in [[data]]")
    media = flags.find("media_dir")
    root = Path(media.text()) if media is not None and not media.is_nothing else folder
    repeats = not flags.whole("max_samples", 0)
    found = local(folder / file, root=root, most=_most(entry, flags), repeats=repeats)
    fault = _form_fault(entry) or found.fault
    return Found(found.table, f"{name}: {fault}" if fault else "")


def _most(entry: Mapping[str, Any], flags: Flags) -> int | None:
    counts = [entry.get("num_samples"), flags.whole("max_samples", 0) or None]
    known = [count for count in counts if isinstance(count, int)]
    return min(known) if known else None


def _form_fault(entry: Mapping[str, Any]) -> str:
    """What in an entry says that the file has a form which is not read."""
    unknown = [key for key in entry if key not in KNOWN]
    if unknown:
        return f"the entry has {', '.join(map(repr, unknown))}, which is not known here"
    if entry.get("ranking"):
        return "its records are preferences; there is no training on them"
    form = entry.get("formatting", "alpaca")
    if form == "alpaca":
        return f"its records have the form alpaca; {CONVERT}"
    if form not in ("sharegpt", "openai"):
        return f"its form {form!r} is not known here"
    columns = entry.get("columns") or {}
    tags = TAGS | OPENAI_TAGS if form == "openai" else TAGS
    tags = tags | dict(entry.get("tags") or {})
    return _names_fault(columns, {key: tags[key] for key in TAGS})


def _names_fault(columns: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    turns = columns.get("messages", "conversations")
    wanted = {"conversations": TAGS, "messages": OPENAI_TAGS}.get(turns)
    if wanted is None:
        return f"its turns stand in {turns!r}, not in 'messages' or 'conversations'; {CONVERT}"
    for key, name in wanted.items():
        if tags[key] != name:
            return f"{key} is {tags[key]!r} where {turns!r} has {name!r}; {CONVERT}"
    for column, names in {"images": ("image", "images"), "videos": ("video", "videos")}.items():
        if columns.get(column) not in (None, *names):
            return f"its {column} stand in {columns[column]!r}, not in {names[1]!r}; {CONVERT}"
    return "" if not columns.get("tools") else "tools are not read"
