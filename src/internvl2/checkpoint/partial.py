"""Directories in which something is being written, beside the place that it is for.

A process locks its own for as long as it writes. Nobody can take away what it wrote when it was
killed, but the system takes away its lock: so whoever writes for the same place next knows that
nobody needs that directory any more.
"""

import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

RANDOM = "?" * 8
"""What `tempfile` puts between a name's beginning and its end."""


@contextmanager
def partial_directory(destination: Path) -> Iterator[Path]:
    """A new directory `.NAME.*.partial`, gone at the end unless it was renamed.

    Those of processes that were killed while they wrote for the same place go away first; where the
    file system has no locks they stay.
    """
    for leftover in destination.parent.glob(f".{glob.escape(destination.name)}.{RANDOM}.partial"):
        _remove_if_left(leftover)
    name, held = _begun(destination)
    try:
        yield Path(name)
    finally:
        shutil.rmtree(name, ignore_errors=True)  # gone already where it was renamed
        os.close(held)


def _remove_if_left(directory: Path) -> None:
    with suppress(OSError):
        held = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory)
        finally:
            os.close(held)


def _begun(destination: Path) -> tuple[str, int]:
    """A new directory, and what holds its lock."""
    while True:
        name = tempfile.mkdtemp(
            prefix=f".{destination.name}.", suffix=".partial", dir=destination.parent
        )
        held = _locked(name)
        if held is not None:
            return name, held


def _locked(name: str) -> int | None:
    """None where another process took a directory for left over before it was locked."""
    try:
        held = os.open(name, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        return None
    except OSError:  # no locks here, so that nobody takes it away
        return held
    if not Path(name).exists():
        os.close(held)
        return None
    return held
