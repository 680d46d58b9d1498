"""`internvl2 data`: what is done with data sets beside training on them, each in its module."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import subcommand

from internvl2.cli.data_check import Check
from internvl2.cli.data_make import Make


@dataclass(frozen=True)
class Data:
    """Make a practice data set, or look at one before training on it."""

    action: (
        Annotated[Make, subcommand(name="make")]
        | Annotated[Check, subcommand(name="check")]
    )  # fmt: skip

    def run(self) -> int:
        """The exit code of the action."""
        return self.action.run()
