"""Short runs without what takes longer than their steps."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def undrawn(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs end without a picture of their losses, but where that is tested."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.parent.name != "monitoring":
            patch.setattr("internvl2.train.monitoring.log.draw", lambda folder: None)
        yield
