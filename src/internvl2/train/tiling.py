"""How a recipe changes the way in which its model's pictures become tiles."""

from dataclasses import replace

from internvl2.config import InternVLConfig
from internvl2.processing.processor import Processor
from internvl2.train.recipe import Recipe


def as_trained(config: InternVLConfig, recipe: Recipe) -> InternVLConfig:
    """The config of a recipe's model with the tiles that the recipe trains it for."""
    return replace(
        config,
        tile_size=recipe.tile_size or config.tile_size,
        min_tiles=recipe.min_tiles or config.min_tiles,
    )


def training_processor(processor: Processor, recipe: Recipe) -> Processor:
    """The processor of a recipe's model, cutting pictures as the recipe says.

    By one thread: there is a process for each core.
    """
    pictures = replace(processor.pictures, arithmetic=recipe.preprocess, threads=1)
    return processor.changed(as_trained(processor.config, recipe), pictures)
