"""The data that a recipe names, as a loader of packs."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from internvl2.processing.processor import Processor
from internvl2.synthetic.words import Split
from internvl2.train.data.dataset import Dataset
from internvl2.train.data.drawn import DrawnSource, task_weights
from internvl2.train.data.formats import (
    Indexed,
    Source,
    SourceOptions,
    from_records,
    join,
    open_source,
)
from internvl2.train.data.loader import Loader, LoaderOptions, Position
from internvl2.train.data.packing import Costs, Limits
from internvl2.train.parallel import World
from internvl2.train.recipe import DataSource, Recipe, Synthetic


def training_loader(
    recipe: Recipe,
    processor: Processor,
    world: World,
    position: Position | None,
    records: Iterable[Any] | Indexed = (),
) -> Loader:
    """The steps of a run, from a position on; `records` join what the recipe names."""
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
    template = processor.template.name
    sources = [_open(source, template) for source in recipe.data]
    sources += [_drawn(drawn, "train") for drawn in recipe.synthetic]
    own = from_records(records, SourceOptions(template=template))
    if len(own):
        sources.append(own)
    if not sources:
        raise ValueError(
            "the recipe names no data; give --data FILE, --synthetic TASKS, or [[data]] or "
            "[[synthetic]] tables"
        )
    dataset = _dataset(recipe, sources, processor, shuffle=True)
    return Loader(dataset, Costs.of(processor.config), options, position)


def validation_loader(recipe: Recipe, processor: Processor, world: World) -> Loader:
    """Every sample of the validation data once, a pack per process and step; none is augmented."""
    options = LoaderOptions(
        packs_per_step=world.size,
        rank=world.rank,
        world=world.size,
        workers=recipe.workers,
        idle_tiles=recipe.shard,
    )
    sources = validation_sources(recipe, processor)
    dataset = _dataset(recipe, sources, processor, shuffle=False)
    return Loader(dataset, Costs.of(processor.config), options)


def validation_sources(recipe: Recipe, processor: Processor) -> list[Source]:
    """The validation data, opened; an error names a set that cannot be."""
    plain = [replace(source, augment=False) for source in recipe.validation.data]
    opened = [_open(source, processor.template.name) for source in plain]
    return opened + [_drawn(drawn, "test") for drawn in recipe.validation.synthetic]


def _open(source: DataSource, template: str) -> Source:
    options = SourceOptions(
        root=source.root,
        repeat=source.repeat,
        max_tiles=source.max_tiles,
        augment=source.augment,
        num_frames=source.num_frames,
        template=template,
    )
    return open_source(source.path, options)


def _drawn(drawn: Synthetic, split: Split) -> Source:
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
