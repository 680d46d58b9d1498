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
    parent = destination.parent
    with _opened(parent) as above, _locked(above):
        for leftover in parent.glob(f".{glob.escape(destination.name)}.{RANDOM}.partial"):
            _remove_if_left(leftover)
        name = tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=".partial", dir=parent)
        held = os.open(name, os.O_RDONLY)
        with suppress(OSError):
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        yield Path(name)
    finally:
        shutil.rmtree(name, ignore_errors=True)  # gone already where it was renamed
        os.close(held)


def _remove_if_left(directory: Path) -> None:
    with suppress(OSError), _opened(directory) as opened:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory)


@contextmanager
def _locked(opened: int) -> Iterator[None]:
    """Waits for others that begin or look around; without locks there is nobody to wait for."""
    with suppress(OSError):
        fcntl.flock(opened, fcntl.LOCK_EX)
    yield


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
