"""`internvl2 data`: what is done with data sets beside training on them, each in its module."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import subcommand

from internvl2.cli.data_check import Check
from internvl2.cli.data_convert import Convert
from internvl2.cli.data_make import Make


@dataclass(frozen=True)
class Data:
    """Make a practice data set, look at one before training on it, or convert one."""

    action: (
        Annotated[Make, subcommand(name="make")]
        | Annotated[Check, subcommand(name="check")]
        | Annotated[Convert, subcommand(name="convert")]
    )  # fmt: skip

    def run(self) -> int:
        """The exit code of the action."""
        return self.action.run()
