"""Where recorded data lies, and who may use it."""

from pathlib import Path

import pytest

CORE = Path(__file__).parent / "data"
SHARED = Path(__file__).parents[2] / "shared"


def recorded(*parts: str) -> Path:
    """A file or folder of recorded data: from the project's own core, else from ../shared, else skip."""
    for candidate in (CORE.joinpath(*parts), SHARED.joinpath("fixtures", *parts), SHARED.joinpath(*parts)):
        if candidate.exists():
            return candidate
    pytest.skip(f"recorded data {'/'.join(parts)} is not here: ../shared is absent")


@pytest.fixture(scope="session")
def data():
    """`data("official", "A_internlm2")` is the path of that recording; skips where it is absent."""
    return recorded
