"""A model's name becomes a directory: a path, a cached download, or a download."""

from pathlib import Path

from internvl2.family import MEMBERS, find

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
)
WEIGHTS = (
    ("model*.safetensors", "model.safetensors.index.json"),
    ("model_state*.pdparams", "model_state.pdparams.index.json"),
    ("pytorch_model*.bin", "pytorch_model.bin.index.json"),
)
"""Patterns of weight files, the preferred format first."""


def resolve(model: str | Path, *, revision: str | None = None) -> Path:
    """The directory of a model: itself, or where the hub's files of that name lie.

    `model` is a directory, a short name (`internvl2-8b`) or a hub id (`OpenGVLab/InternVL2-8B`).
    """
    path = Path(model)
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(f"{model} is a file; give the directory that holds config.json")
    name = str(model)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/"):
        raise FileNotFoundError(f"there is no directory {name}")
    return download(hub_id(name), revision=revision)


def hub_id(name: str) -> str:
    """The hub id that a name means; a name with an owner is one already."""
    if "/" in name and not name.lower().startswith("opengvlab/"):
        return name
    if "/" in name and name.lower().removeprefix("opengvlab/").replace(".", "_") not in MEMBERS:
        return name
    return find(name).hub_id


def download(repository: str, *, revision: str | None = None) -> Path:
    """The directory with a hub repository's needed files, downloaded unless they are cached."""
    from httpx import HTTPError
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        names = HfApi().list_repo_files(repository, revision=revision)
    except RevisionNotFoundError:
        raise ValueError(f"{repository} has no revision {revision!r} on the hub") from None
    except RepositoryNotFoundError:
        raise ValueError(
            f"the hub has no model {repository!r} (or it is private: log in with `hf auth login`)"
        ) from None
    except HFValidationError as error:
        raise ValueError(f"{repository!r} is no hub id: {error}") from None
    except (OfflineModeIsEnabled, HfHubHTTPError, HTTPError, OSError) as error:
        return _cached(repository, revision, str(error).splitlines()[0])
    patterns = _patterns(repository, names)
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, HTTPError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"the download of {repository} broke off ({reason}); run the command again, it resumes"
        ) from None


def _patterns(repository: str, names: list[str]) -> list[str]:
    """Which files to fetch: one format of weights, and what belongs to it."""
    from fnmatch import fnmatch

    for weights in WEIGHTS:
        if any(fnmatch(name, pattern) for name in names for pattern in weights):
            return [*WANTED, *weights]
    raise ValueError(f"the hub's {repository} holds no weights in a format that is supported")


def _cached(repository: str, revision: str | None, reason: str) -> Path:
    """What an earlier download left, where the hub cannot be reached."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    advice = (
        f"download it where there is a network (`hf download {repository} --local-dir DIR`) "
        "and give that directory, or set HF_ENDPOINT to a mirror"
    )
    try:
        found = Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        raise FileNotFoundError(
            f"{repository} is not in the cache and the hub cannot be reached ({reason}); {advice}"
        ) from None
    if not (found / "config.json").is_file():
        raise FileNotFoundError(
            f"the cache holds {repository} incompletely and the hub cannot be reached "
            f"({reason}); {advice}"
        )
    return found
