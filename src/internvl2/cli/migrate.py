"""`internvl2 migrate`: a recipe out of what another trainer is started with."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

INCOMPLETE = 1


@dataclass(frozen=True)
class Migrate:
    """Turn another trainer's script, command or file of flags into a recipe.

    Read are shell scripts and commands with internvl_chat_finetune.py (OpenGVLab, PaddleMIX),
    `swift sft` or `llamafactory-cli train`, and LLaMA-Factory's YAML or JSON. A command may also
    follow two dashes: `internvl2 migrate -- swift sft --model ...`. Nothing of it is executed.
    """

    source: Annotated[Positional[str], arg(metavar="FILE")] = "-"
    """The script, YAML or JSON; - reads standard input."""
    out: Path | None = None
    """New file for the recipe; standard output unless given."""
    gpus: int | None = None
    """How many GPUs the source trains on, where it does not say so or says otherwise."""
    set: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...")] = ()
    """Variables that the script would be started with."""
    command: str | None = None
    """A command instead of a file, as one text."""

    def run(self) -> int:
        """The recipe on standard output or in a file, the report on standard error.

        The code is 1 where something has no counterpart.
        """
        from internvl2.train.migrate.migration import migrate
        from internvl2.train.migrate.writing import recipe_text, report

        if self.out is not None and self.out.exists():
            raise ValueError(f"{self.out} is there already; name a new file")
        if self.gpus is not None and self.gpus < 1:
            raise ValueError(f"gpus is {self.gpus}; it must be at least 1")
        text, where, folder = self._source()
        found = migrate(text, where, folder=folder, variables=_variables(self.set), gpus=self.gpus)
        recipe = recipe_text(found)
        if self.out is None:
            print(recipe, end="")
        else:
            self.out.write_text(recipe, encoding="utf-8")
        print("\n".join(report(found)), file=sys.stderr)
        return 0 if found.is_complete else INCOMPLETE

    def _source(self) -> tuple[str, str, Path]:
        """The text, what it is called, and where it stands."""
        if self.command is not None:
            return self.command, "the command", Path()
        if self.source == "-":
            return sys.stdin.read(), "standard input", Path()
        path = Path(self.source)
        if not path.is_file():
            raise FileNotFoundError(f"{path} is absent")
        try:
            return path.read_text(encoding="utf-8"), str(path), path.parent
        except UnicodeDecodeError:
            raise ValueError(f"{path} is no text") from None


def with_command(arguments: Sequence[str]) -> list[str]:
    """Arguments of `migrate` whose words after `--` are one command."""
    if "--" not in arguments:
        return list(arguments)
    place = list(arguments).index("--")
    return [*arguments[:place], f"--command={shlex.join(arguments[place + 1 :])}"]


def _variables(given: Sequence[str]) -> dict[str, str]:
    found = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"--set {item}: NAME=VALUE was expected")
        found[name] = value
    return found
