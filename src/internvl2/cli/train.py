"""`internvl2 train`: a recipe, and whatever of it the command line changes."""

import logging
import os
import shlex
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import Positional, arg

from internvl2.cli.plan import PlanOptions, PlanTraining, changing_the_recipe
from internvl2.train.recipe import DataSource, Recipe, Synthetic

if TYPE_CHECKING:
    from internvl2.eval.evaluate import Validation

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Train:
    """Fine-tune a model, or train one from nothing, as a recipe says; goes on where it ended.

    Every value of the recipe is an option: `--optimizer.learning-rate 1e-5`, `--data a.jsonl`.
    `internvl2 train RECIPE --help` lists them with the recipe's values. `--plan` says how much
    memory training takes and how fast it will be, and trains nothing. Several GPUs:
    `torchrun --nproc-per-node 8 -m internvl2 train RECIPE`.
    """

    recipe: Annotated[Positional[str], arg(metavar="RECIPE")]
    """1b, 2b, 4b, 8b, 26b, 40b, 76b, the same with adapters (1b-lora ... 76b-lora), 1b-paddlemix,
    2b-paddlemix, 8b-paddlemix, nano, nano-1 ... nano-7, or the path of a TOML file."""

    def run(self) -> int:
        """0 when the model is trained, or when SIGTERM ended the run with a checkpoint."""
        return train(Recipe.read(self.recipe))


def train(recipe: Recipe) -> int:
    """Runs a recipe to its end."""
    from internvl2.train.trainer import Trainer

    if os.environ.get("RANK", "0") != "0":
        logging.getLogger("internvl2").setLevel(logging.WARNING)
    if recipe.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process
    ending = Trainer(recipe, _answers(recipe)).run()
    if ending.reason == "stopped":
        logger.info("stopped after step %d; the same command goes on from there", ending.step)
    else:
        folder = shlex.quote(str(ending.folder))
        logger.info("trained; ask it with: internvl2 chat --model %s", folder)
    return 0


def _answers(recipe: Recipe) -> "Validation | None":
    """What scores answers while training, where the recipe has questions."""
    validation = recipe.validation
    if validation.questions is None:
        return None
    from internvl2.eval.evaluate import Asking, Validation
    from internvl2.eval.questions import read_questions
    from internvl2.processing.processor import EncodeOptions

    questions = read_questions(validation.questions, validation.metrics)
    asking = Asking(encoding=EncodeOptions(max_tiles=recipe.max_tiles))
    return Validation(questions, validation.metrics, asking)


@dataclass(frozen=True)
class TrainRecipe:
    """`train` with the recipe as the command line changed it."""

    settings: Recipe

    def run(self) -> int:
        """The same exit codes."""
        return train(self.settings)


@dataclass(frozen=True)
class _Options:
    """All that may stand behind a recipe's name."""

    planning: Annotated[PlanOptions, arg(name="")]
    recipe: Annotated[tyro.conf.FlagConversionOff[Recipe], arg(name="")]


def parse_train(arguments: Sequence[str]) -> TrainRecipe | PlanTraining:
    """The recipe that is named first, changed by the options after it."""
    name, *options = arguments
    if name.startswith("-"):
        raise ValueError(f"train {name}: give the recipe before its options")
    found = tyro.cli(
        _Options,
        prog=f"internvl2 train {name}",
        description="Train as the recipe says; options change its values.",
        default=_Options(PlanOptions(), Recipe.read(name)),
        args=options,
        config=(
            tyro.conf.AvoidSubcommands,
            tyro.conf.FlagCreatePairsOff,
            tyro.conf.HelptextFromCommentsOff,
        ),
        registry=recipe_values(),
    )
    if found.planning.plan:
        return PlanTraining(name, found.recipe, changing_the_recipe(options), found.planning)
    return TrainRecipe(found.recipe)


def recipe_values() -> tyro.constructors.ConstructorRegistry:
    """Lets a data set be given as its path, and drawn samples as names of tasks."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def source(
        info: tyro.constructors.PrimitiveTypeInfo,
    ) -> tyro.constructors.PrimitiveConstructorSpec[DataSource] | None:
        if info.type is not DataSource:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="PATH",
            instance_from_str=lambda texts: DataSource(texts[0]),
            is_instance=lambda value: isinstance(value, DataSource),
            str_from_instance=lambda value: [value.path],
        )

    @registry.primitive_rule
    def drawn(
        info: tyro.constructors.PrimitiveTypeInfo,
    ) -> tyro.constructors.PrimitiveConstructorSpec[Synthetic] | None:
        if info.type is not Synthetic:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="all|TASK,TASK",
            instance_from_str=lambda texts: Synthetic(_tasks(texts[0])),
            is_instance=lambda value: isinstance(value, Synthetic),
            str_from_instance=lambda value: [",".join(value.tasks) or "all"],
        )

    return registry


def _tasks(text: str) -> tuple[str, ...]:
    return () if text == "all" else tuple(text.split(","))
