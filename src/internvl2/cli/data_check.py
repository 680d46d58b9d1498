"""`internvl2 data check`: what a recipe would train on, and what is wrong with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import Positional, arg

from internvl2.cli.train import recipe_values
from internvl2.train.recipe import Recipe

if TYPE_CHECKING:
    from internvl2.processing.processor import Processor


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """What is looked at, and where it is told."""

    limit: int | None = None
    """Look at the first N samples of each set only; of drawn samples 100 unless given."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Check(CheckOptions):
    """Look at all that a recipe would train on, as it would, and say what is wrong with it.

    Every value of the recipe is an option, as in `internvl2 train`; `internvl2 data check RECIPE
    --help` lists them. Exit code 1 says that there are faults.
    """

    recipe: Annotated[Positional[str], arg(metavar="RECIPE")]
    """As in `internvl2 train`: 1b, 2b, ... nano, or the path of a TOML file."""

    def run(self) -> int:
        """0 when a run could train on it, 1 when there are faults."""
        return check(Recipe.read(self.recipe), self)


@dataclass(frozen=True, kw_only=True)
class CheckRecipe(CheckOptions):
    """`data check` with the recipe as the command line changed it."""

    recipe: Annotated[Recipe, tyro.conf.FlagConversionOff, arg(name="")]

    def run(self) -> int:
        """The same exit codes."""
        return check(self.recipe, self)


def parse_check(arguments: Sequence[str]) -> CheckRecipe:
    """The recipe that is named first, changed by the options after it."""
    name, *options = arguments
    return tyro.cli(
        CheckRecipe,
        prog=f"internvl2 data check {name}",
        description="Look at what the recipe would train on; options change its values.",
        default=CheckRecipe(recipe=Recipe.read(name)),
        args=options,
        config=(
            tyro.conf.AvoidSubcommands,
            tyro.conf.FlagCreatePairsOff,
            tyro.conf.HelptextFromCommentsOff,
        ),
        registry=recipe_values(),
    )


def check(recipe: Recipe, options: CheckOptions) -> int:
    """Prints what is found."""
    from internvl2.train.doctor.sets import ClosedSet, open_sets

    sets = open_sets(recipe, _processor(recipe.model).template.name, options.limit)
    for found in sets:
        closed = isinstance(found, ClosedSet)
        print(f"{found.name}: {found.reason if closed else f'{len(found.source)} samples'}")
    return int(any(isinstance(found, ClosedSet) for found in sets))


def _processor(model: str) -> "Processor":
    """What encodes samples for a model; its weights are not read."""
    from internvl2.checkpoint.config_files import read_config
    from internvl2.checkpoint.hub import resolve
    from internvl2.processing.processor import Processor

    directory = resolve(model)
    return Processor.from_directory(directory, read_config(directory))
