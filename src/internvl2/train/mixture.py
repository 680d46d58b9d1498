"""The data that a recipe names, as a loader of packs."""

from pathlib import Path

from internvl2.processing.processor import Processor
from internvl2.train.dataset import Dataset
from internvl2.train.formats import SourceOptions, join, open_source
from internvl2.train.loader import Loader, LoaderOptions, Position
from internvl2.train.packing import Costs, Limits
from internvl2.train.parallel import World
from internvl2.train.recipe import DataSource, Recipe


def training_loader(
    recipe: Recipe, processor: Processor, world: World, position: Position | None
) -> Loader:
    """The steps of a run, from a position on."""
    if not recipe.data:
        raise ValueError("the recipe names no data; give --data FILE or [[data]] tables")
    options = LoaderOptions(
        packs_per_step=recipe.packs_per_step,
        epochs=recipe.schedule.epochs if recipe.schedule.max_steps is None else None,
        rank=world.rank,
        world=world.size,
        workers=recipe.workers,
        weighting=recipe.packing.loss_weighting,
        skip_bad_samples=recipe.skip_bad_samples,
        bad_samples=Path(recipe.output) / "bad_samples.jsonl",
        idle_tiles=recipe.shard,
    )
    dataset = _dataset(recipe, recipe.data, processor, shuffle=True)
    return Loader(dataset, Costs.of(processor.config), options, position)


def validation_loader(recipe: Recipe, processor: Processor, world: World) -> Loader:
    """Every sample of the validation data once, a pack per process and step."""
    options = LoaderOptions(
        packs_per_step=world.size, rank=world.rank, world=world.size, idle_tiles=recipe.shard
    )
    dataset = _dataset(recipe, recipe.validation.data, processor, shuffle=False)
    return Loader(dataset, Costs.of(processor.config), options)


def _dataset(
    recipe: Recipe, sources: tuple[DataSource, ...], processor: Processor, *, shuffle: bool
) -> Dataset:
    packing = recipe.packing
    opened = [
        open_source(
            source.path,
            SourceOptions(
                root=source.root,
                repeat=source.repeat,
                max_tiles=source.max_tiles,
                template=processor.template.name,
            ),
        )
        for source in sources
    ]
    return Dataset(
        join(opened),
        processor,
        Limits(packing.tokens, packing.tiles, packing.window),
        recipe.max_tiles,
        recipe.seed,
        shuffle,
    )
