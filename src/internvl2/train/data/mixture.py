"""The data that a recipe names, as a loader of packs."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from internvl2.processing.processor import Processor
from internvl2.synthetic.words import Split
from internvl2.train.data.dataset import Dataset
from internvl2.train.data.drawn import DrawnSource, task_weights
from internvl2.train.data.filling import Costs, Limits
from internvl2.train.data.formats import (
    Indexed,
    Source,
    SourceOptions,
    from_records,
    join,
    open_source,
)
from internvl2.train.data.loader import Loader, LoaderOptions, Position
from internvl2.train.data.tile_store import TileStore
from internvl2.train.parallel import World
from internvl2.train.recipe import DataSource, Recipe, Synthetic

NO_DATA = (
    "the recipe names no data; give --data FILE, --synthetic TASKS, or [[data]] or "
    "[[synthetic]] tables"
)


def training_loader(
    recipe: Recipe,
    processor: Processor,
    world: World,
    position: Position | None,
    records: Iterable[Any] | Indexed = (),
    store: TileStore | None = None,
) -> Loader:
    """The steps of a run, from a position on; `records` join what the recipe names."""
    options = LoaderOptions(
        packs_per_step=recipe.packs_per_step,
        epochs=recipe.schedule.epochs if recipe.schedule.max_steps is None else None,
        rank=world.rank,
        world=world.size,
        workers=recipe.workers,
        fill=recipe.packing.fill,
        weighting=recipe.packing.loss_weighting,
        skip_bad_samples=recipe.skip_bad_samples,
        bad_samples=Path(recipe.output) / "bad_samples.jsonl",
        idle_tiles=recipe.shard,
        store=store,
    )
    template = processor.template.name
    sources = [_open(source, template) for source in recipe.data]
    sources += [drawn_source(drawn, "train") for drawn in recipe.synthetic]
    own = from_records(records, SourceOptions(template=template))
    if len(own):
        sources.append(own)
    if not sources:
        raise ValueError(NO_DATA)
    dataset = _dataset(recipe, sources, processor, shuffle=True)
    return Loader(dataset, Costs.of(processor.config), options, position)


def validation_loader(
    recipe: Recipe, processor: Processor, world: World, store: TileStore | None = None
) -> Loader:
    """Every sample of the validation data once, a pack per process and step; none is augmented."""
    return _fixed_loader(recipe, validation_sources(recipe, processor), processor, world, store)


def guard_loader(
    recipe: Recipe, processor: Processor, world: World, store: TileStore | None = None
) -> Loader:
    """The guard's data in the same way."""
    return _fixed_loader(recipe, guard_sources(recipe, processor), processor, world, store)


def validation_sources(recipe: Recipe, processor: Processor) -> list[Source]:
    """The validation data, opened; an error names a set that cannot be."""
    return _open_plain(recipe.validation.data, processor) + [
        drawn_source(drawn, "test") for drawn in recipe.validation.synthetic
    ]


def guard_sources(recipe: Recipe, processor: Processor) -> list[Source]:
    """The guard's data, opened."""
    return _open_plain(recipe.guard.data, processor)


def source_options(source: DataSource, template: str) -> SourceOptions:
    """How a set of a recipe is read for a model with this chat template."""
    return SourceOptions(
        root=source.root,
        repeat=source.repeat,
        max_tiles=source.max_tiles,
        augment=source.augment,
        num_frames=source.num_frames,
        template=template,
    )


def drawn_source(drawn: Synthetic, split: Split) -> DrawnSource:
    """The drawn samples that a recipe asks for."""
    return DrawnSource(
        samples=drawn.samples,
        weights=task_weights(drawn.tasks, drawn.weights),
        difficulty=drawn.difficulty,
        split=split,
        first=drawn.first,
        pictures=drawn.pictures,
        max_tiles=drawn.max_tiles,
        augment=drawn.augment and split == "train",
    )


def _open_plain(sources: Iterable[DataSource], processor: Processor) -> list[Source]:
    plain = [replace(source, augment=False) for source in sources]
    return [_open(source, processor.template.name) for source in plain]


def _open(source: DataSource, template: str) -> Source:
    return open_source(source.path, source_options(source, template))


def _fixed_loader(
    recipe: Recipe,
    sources: list[Source],
    processor: Processor,
    world: World,
    store: TileStore | None,
) -> Loader:
    options = LoaderOptions(
        packs_per_step=world.size,
        rank=world.rank,
        world=world.size,
        workers=recipe.workers,
        idle_tiles=recipe.shard,
        store=store,
    )
    dataset = _dataset(recipe, sources, processor, shuffle=False)
    return Loader(dataset, Costs.of(processor.config), options)


def _dataset(
    recipe: Recipe, sources: list[Source], processor: Processor, *, shuffle: bool
) -> Dataset:
    packing = recipe.packing
    return Dataset(
        join(sources),
        processor,
        Limits(packing.tokens, packing.tiles, packing.window),
        recipe.max_tiles,
        recipe.seed,
        shuffle,
    )
