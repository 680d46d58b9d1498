"""`internvl2 data check`: what a recipe would train on, and what is wrong with it."""

import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import Positional, arg

from internvl2 import console
from internvl2.cli.train import recipe_values
from internvl2.train.recipe import Recipe

if TYPE_CHECKING:
    from internvl2.processing.processor import Processor
    from internvl2.train.data.formats import Record

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """What is looked at, and where it is told."""

    limit: int | None = None
    """Look at the first N samples of each set only; of drawn samples 100 unless given."""
    show: int = 3
    """So many samples of each set are shown as the model reads them."""
    preview: Path | None = None
    """HTML file to write: pictures with their boxes and tiles, and what is learned from them."""
    preview_samples: int = 12
    """Most samples of each set in the preview; half of them such that something was found in."""
    json: bool = False
    """Print one JSON object instead of lines."""

    def __post_init__(self) -> None:
        for name, least in (("limit", 1), ("show", 0), ("preview_samples", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")


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
        return check(self.recipe, Recipe.read(self.recipe), self)


@dataclass(frozen=True, kw_only=True)
class CheckRecipe(CheckOptions):
    """`data check` with the recipe as the command line changed it."""

    settings: Annotated[Recipe, tyro.conf.FlagConversionOff, arg(name="")]
    recipe: tyro.conf.Suppress[str]

    def run(self) -> int:
        """The same exit codes."""
        return check(self.recipe, self.settings, self)


def parse_check(arguments: Sequence[str]) -> CheckRecipe:
    """The recipe that is named first, changed by the options after it."""
    name, *options = arguments
    return tyro.cli(
        CheckRecipe,
        prog=f"internvl2 data check {name}",
        description="Look at what the recipe would train on; options change its values.",
        default=CheckRecipe(recipe=name, settings=Recipe.read(name)),
        args=options,
        config=(
            tyro.conf.AvoidSubcommands,
            tyro.conf.FlagCreatePairsOff,
            tyro.conf.HelptextFromCommentsOff,
        ),
        registry=recipe_values(),
    )


def check(name: str, recipe: Recipe, options: CheckOptions) -> int:
    """Prints what is found in the data of a recipe."""
    from internvl2.train.doctor.examination import Examination
    from internvl2.train.doctor.page import page
    from internvl2.train.doctor.report import lines, plain
    from internvl2.train.doctor.sets import open_sets

    if options.preview is not None and not options.preview.absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {options.preview.absolute().parent}")
    processor = _processor(recipe)
    sets = open_sets(recipe, processor.template.name, options.limit, _questions)
    examination = Examination(recipe, processor, sets)
    with console.progress(examination.samples, "looking", unit="sample") as bar:
        examination.run(min(recipe.workers, os.cpu_count() or 1), bar.update)
    report = examination.report(name, options.show)
    if options.json:
        print(json.dumps(plain(report), ensure_ascii=False))
    else:
        for line in lines(report, colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ):
            print(line)
    if options.preview is not None:
        options.preview.write_text(
            page(report, examination.examples(options.preview_samples)), encoding="utf-8"
        )
        logger.info("wrote %s", options.preview)
    if report.is_partial and not report.has_faults:
        raise KeyboardInterrupt  # the exit code of what was interrupted
    return int(report.has_faults)


def _questions(recipe: Recipe) -> "tuple[Record, ...]":
    """What a run would ask while it validates, as it asks it, with the first right answer."""
    from internvl2.eval.questions import read_questions
    from internvl2.processing.conversation import Message, Picture
    from internvl2.train.data.formats import Record

    def budgeted(message: Message) -> Message:
        parts = (
            replace(part, max_tiles=part.max_tiles or recipe.max_tiles)
            if isinstance(part, Picture)
            else part
            for part in message.content
        )
        return replace(message, content=tuple(parts))

    path = recipe.validation.questions
    assert path is not None
    return tuple(
        Record(
            (*map(budgeted, asked.messages), Message.assistant(asked.answers[0])),
            f"{path}:{asked.line}",
        )
        for asked in read_questions(path, recipe.validation.metrics)
    )


def _processor(recipe: Recipe) -> "Processor":
    """What encodes a recipe's samples; the model's weights are not read."""
    from internvl2.checkpoint.config_files import read_config
    from internvl2.checkpoint.hub import resolve
    from internvl2.processing.processor import Processor
    from internvl2.train.tiling import training_processor

    directory = resolve(recipe.model, weights=False)
    processor = Processor.from_directory(directory, read_config(directory))
    return training_processor(processor, recipe)
