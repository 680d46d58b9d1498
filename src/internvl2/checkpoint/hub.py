"""A model's name becomes a directory: a path, a cached download, or a download."""

import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path

from internvl2.checkpoint.adapter_config import FILE, is_adapter_directory, read_adapter_config
from internvl2.family import MEMBERS, find

EMBEDDED = "nano"
"""The model that is in the package, and the one that is meant where none is named."""
WANTED = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer*",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template*",
    "adapter_config.json",
)
WEIGHTS = (
    ("model*.safetensors", "model.safetensors.index.json"),
    ("model_state*.pdparams", "model_state.pdparams.index.json"),
    ("pytorch_model*.bin", "pytorch_model.bin.index.json"),
    ("adapter_model.safetensors",),
    ("adapter_model.bin",),
)
"""Patterns of weight files, the preferred format first."""


@dataclass(frozen=True, slots=True)
class Located:
    """Where a model lies, and the adapter that belongs into it."""

    directory: Path
    name: str
    """As it was asked for, or as its adapter names it."""
    adapter: Path | None = None

    @property
    def origin(self) -> str:
        """What the model is and where it is from, in few words."""
        if self.name == EMBEDDED:
            base = f"{EMBEDDED} (in the package)"
        elif Path(self.name).is_dir():
            base = self.name
        else:
            base = f"{hub_id(self.name)} (from the hub)"
        return base if self.adapter is None else f"{base} with {self.adapter}"


def locate(
    model: str | Path, adapter: str | Path | None = None, *, revision: str | None = None
) -> Located:
    """The directories of a model and of an adapter, each by directory or hub id.

    Where `model` is an adapter, its adapter_config.json says what it belongs to.
    """
    directory = resolve(model, revision=revision)
    if not is_adapter_directory(directory):
        found = None if adapter is None else _resolve_adapter(adapter)
        return Located(directory, str(model), found)
    if adapter is not None:
        raise ValueError(f"{model} is an adapter itself; one model takes one adapter")
    return _with_base(directory)


def _resolve_adapter(adapter: str | Path) -> Path:
    """The directory of an adapter, which has no short name."""
    if Path(adapter).is_file():
        raise ValueError(f"{adapter} is a file; give the directory that holds {FILE}")
    if not Path(adapter).is_dir() and "/" not in str(adapter):
        raise FileNotFoundError(
            f"there is no directory {adapter}; an adapter is a directory or a hub id OWNER/NAME"
        )
    return resolve(adapter)


def _with_base(adapter: Path) -> Located:
    """An adapter and the model that it was trained on."""
    described = read_adapter_config(adapter)
    advice = f"give the model that it belongs to: --model MODEL --adapter {adapter}"
    if described.base is None:
        raise ValueError(f"{adapter} is an adapter and does not say of which model; {advice}")
    try:
        base = resolve(described.base, revision=described.revision)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(
            f"{adapter} is an adapter of {described.base}: {error}; {advice}"
        ) from None
    if is_adapter_directory(base):
        raise ValueError(f"{adapter} is an adapter of {base}, which is an adapter itself; {advice}")
    return Located(base, described.base, adapter)


def resolve(model: str | Path, *, revision: str | None = None, weights: bool = True) -> Path:
    """The directory of a model: itself, or where the hub's files of that name lie.

    `model` is a directory, a short name (`internvl2-8b`), a hub id (`OpenGVLab/InternVL2-8B`), or
    `nano`, which is in the package even where a directory of that name is near: that is `./nano`,
    or a `Path`. Without `weights` a download leaves them out, which is enough to encode
    conversations.
    """
    path = Path(str(files("internvl2") / "assets" / EMBEDDED)) if model == EMBEDDED else Path(model)
    if revision is not None and path.is_dir():
        raise ValueError(f"{model} is no model on the hub, so there is no revision {revision!r}")
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(f"{model} is a file; give the directory that holds config.json")
    name = str(model)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/"):
        raise FileNotFoundError(f"there is no directory {name}")
    return download(hub_id(name), revision=revision, weights=weights)


def lasting_name(model: str | Path) -> str:
    """A model's name that means the same in every directory: `nano`, a whole path, or a hub id."""
    if model == EMBEDDED:
        return EMBEDDED
    return str(Path(model).absolute()) if Path(model).is_dir() else hub_id(str(model))


def hub_id(name: str) -> str:
    """The hub id that a name means; a name with an owner is one already."""
    if "/" in name and not name.lower().startswith("opengvlab/"):
        return name
    if "/" in name and name.lower().removeprefix("opengvlab/").replace(".", "_") not in MEMBERS:
        return name
    return find(name).hub_id


def download(repository: str, *, revision: str | None = None, weights: bool = True) -> Path:
    """The directory with a hub repository's needed files, downloaded unless they are cached."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    unreachable = (OfflineModeIsEnabled, HfHubHTTPError, *_transport_errors())
    try:
        siblings = HfApi().model_info(repository, revision=revision, timeout=30).siblings
    except RevisionNotFoundError:
        raise ValueError(f"{repository} has no revision {revision!r} on the hub") from None
    except RepositoryNotFoundError:
        raise ValueError(
            f"the hub has no model {repository!r} (or it is private: log in with `hf auth login`)"
        ) from None
    except HFValidationError as error:
        raise ValueError(f"{repository!r} is no hub id: {error}") from None
    except unreachable as error:
        return _cached(repository, revision, _first_line(error), weights)
    names = [sibling.rfilename for sibling in siblings or []]
    patterns = _patterns(repository, names) if weights else [*WANTED]
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except (LocalEntryNotFoundError, *unreachable) as error:
        raise ValueError(
            f"the download of {repository} broke off ({_first_line(error)}); "
            "run the command again: complete files are not fetched twice"
        ) from None


def _transport_errors() -> tuple[type[Exception], ...]:
    """What the hub's client raises where there is no network; it has changed its library twice."""
    clients = [sys.modules.get(name) for name in ("httpx", "httpx2")]
    return (OSError, *(client.HTTPError for client in clients if client is not None))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _patterns(repository: str, names: list[str]) -> list[str]:
    """Which files to fetch: one format of weights, and what belongs to it."""
    for weights in WEIGHTS:
        if _any_match(names, weights):
            return [*WANTED, *weights]
    raise ValueError(f"the hub's {repository} holds no weights in a format that is supported")


def _any_match(names: list[str], patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for name in names for pattern in patterns)


def _cached(repository: str, revision: str | None, reason: str, weights: bool) -> Path:
    """What an earlier download left, where the hub cannot be reached."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    for patterns in WEIGHTS if weights else ((),):
        try:
            found = snapshot_download(
                repository,
                revision=revision,
                allow_patterns=[*WANTED, *patterns],
                local_files_only=True,
            )
        except LocalEntryNotFoundError:
            continue
        names = [path.name for path in Path(found).iterdir()]
        described = {"config.json", "adapter_config.json"} & set(names)
        if described and (not weights or _any_match(names, patterns)):
            return Path(found)
    raise FileNotFoundError(
        f"{repository} is not in the cache and the hub cannot be reached ({reason}); download it "
        f"where there is a network (`hf download {repository} --local-dir DIR`) and give that "
        "directory, or set HF_ENDPOINT to a mirror"
    )
