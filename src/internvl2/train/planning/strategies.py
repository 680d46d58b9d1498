"""What of a model can be trained, and in which ways: variants of a recipe."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from internvl2.train.recipe import Freeze, Lora, Recipe, Recompute

RANK = 16
"""Of the adapters that are planned where the recipe has none."""
SHARES = (0.0, 0.5, 1.0)
"""Of layers whose activations are computed again."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """One choice of what is trained."""

    name: str
    recipe: Recipe

    def variants(self, processes: int) -> Iterator[Recipe]:
        """All ways to train that: moments, recomputation, division."""
        recipe = self.recipe
        vision = SHARES if _trains_vision(recipe) else (recipe.recompute.vision,)
        divided = (False, True) if processes > 1 else (recipe.shard,)
        for seen, read, moments, shard in product(vision, SHARES, ("fp32", "8bit"), divided):
            yield replace(
                recipe,
                recompute=Recompute(seen, read),
                optimizer=replace(recipe.optimizer, moments=moments),
                shard=shard,
            )


def strategies(recipe: Recipe) -> list[Strategy]:
    """From the most that can be trained to the least; the recipe's own first where it is another.

    Each takes of the recipe what goes with it: features of pictures are kept where the vision tower
    is frozen, and adapters have one layout and the base's tiles.
    """
    plain = replace(recipe, lora=Lora(), quantize=None)
    lora = recipe.lora if recipe.lora.is_used else Lora(decoder_rank=RANK)
    frozen = recipe.freeze if recipe.lora.is_used else Freeze(vision=True, projector=True)
    adapted = replace(
        recipe,
        lora=lora,
        freeze=frozen,
        quantize=None,
        from_scratch=False,
        tile_size=None,
        min_tiles=None,
        layout="opengvlab",
    )
    rank = max(lora.decoder_rank, lora.vision_rank)
    found = [
        Strategy("everything", replace(plain, freeze=Freeze(vision=False), feature_cache=None)),
        Strategy("vision frozen", replace(plain, freeze=Freeze())),
        Strategy("decoder alone", replace(plain, freeze=Freeze(projector=True))),
        Strategy(f"LoRA r{rank}", adapted),
    ]
    if adapted.kept.decoder:
        found.append(Strategy(f"QLoRA r{rank}", replace(adapted, quantize="nf4")))
    if not any(trains_the_same(strategy.recipe, recipe) for strategy in found):
        found.insert(0, Strategy("the recipe's", recipe))
    return found


def trains_the_same(one: Recipe, other: Recipe) -> bool:
    """Whether two recipes differ in nothing that decides what is learned in which form."""
    return (one.freeze, one.lora, one.quantize) == (other.freeze, other.lora, other.quantize)


def _trains_vision(recipe: Recipe) -> bool:
    return bool(not recipe.freeze.vision or recipe.freeze.vision_last or recipe.lora.vision_rank)
