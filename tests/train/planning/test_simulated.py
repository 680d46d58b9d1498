"""Predictions beside a step that is run for its shapes alone, with every tensor counted.

Nothing is computed and no memory taken: what lives at once is summed. Real widths and packs, few
layers, no compiled kernels; only what an allocator wastes is not there.
"""

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from internvl2.config import InternVLConfig
from internvl2.family import find
from internvl2.model.internvl import InternVL
from internvl2.model.parallel import recompute_layers
from internvl2.model.rotary import Positions
from internvl2.train.data.packing import TrainBatch
from internvl2.train.planning.activations import Execution
from internvl2.train.planning.memory import GAPS, SLACK, Pack, Step
from internvl2.train.planning.sizes import count
from internvl2.train.preparation import training, without_memory
from internvl2.train.recipe import Freeze, Recipe, Recompute
from internvl2.train.step_loss import pack_loss

LAYERS = 5


class Living(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make and nobody has dropped yet."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            weakref.finalize(storage, self._drop, key, size)
            self.now += size
            self.most = max(self.most, self.now)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return made


def batch_of(pack: Pack, config: InternVLConfig, features: Tensor | None) -> TrainBatch:
    """A pack of four equal samples, the tower's features of its tiles known or not."""
    whole, lengths = torch.zeros(pack.tokens, dtype=torch.int64), (pack.tokens // 4,) * 4
    side, encoded = config.tile_size, pack.tiles if features is None else 0
    return TrainBatch(
        tokens=whole,
        positions=Positions.packed(lengths),
        lengths=lengths,
        boundaries=torch.zeros(5, dtype=torch.int32),
        visual_rows=torch.arange(pack.tiles * config.tokens_per_tile),
        tiles=torch.zeros(encoded, side, side, 3, dtype=torch.uint8),
        num_tiles=pack.tiles,
        labels=whole,
        weights=torch.ones(pack.tokens),
        learned_rows=torch.arange(pack.learned),
        weight_sum=1.0,
        num_samples=4,
        num_tokens=pack.tokens,
        features=features,
    )


def brought(pack: Pack, config: InternVLConfig) -> Tensor:
    """What workers send of a pack's tiles where all features are kept."""
    wide = config.vision.hidden_size * config.shuffle**2
    return torch.zeros(pack.tiles, config.tokens_per_tile, wide, dtype=torch.bfloat16)


def simulated(model: InternVL, recipe: Recipe, state: int, pack: Pack) -> int:
    """The most bytes that live in the second of two packs."""
    with FakeTensorMode(allow_non_fake_inputs=True), Living() as living:
        model = model.to_empty(device="cpu")
        optimizer = torch.zeros(state, dtype=torch.uint8)
        for tensor in (*model.parameters(), *model.buffers(), optimizer):
            living.add(tensor)
        recompute_layers(model, recipe.recompute.vision, recipe.recompute.decoder)
        training(model)
        arrived: list[Tensor] = []
        if recipe.feature_cache is not None:
            arrived = [brought(pack, model.config) for _ in range(2)]
        for _ in range(2):
            features = arrived[0].clone() if arrived else None
            pack_loss(model, batch_of(pack, model.config, features), 1.0).backward()
    return living.most


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("1b", {"freeze": Freeze(vision=False), "recompute": Recompute(0.0, 0.5)}),
        ("1b", {"freeze": Freeze(vision=False), "recompute": Recompute(1.0, 1.0)}),
        ("2b-lora", {"recompute": Recompute(0.0, 0.0)}),
        ("2b-lora", {"recompute": Recompute(0.0, 1.0), "feature_cache": "features"}),
        ("8b-lora", {"recompute": Recompute(0.0, 0.0), "quantize": "nf4"}),
        ("8b-lora", {"recompute": Recompute(1.0, 1.0), "quantize": "nf4"}),
    ],
)
def test_the_predicted_peak_is_what_lives_at_once(name: str, changes: dict[str, Any]):
    recipe = replace(Recipe.read(name), **changes)
    config = find(recipe.model).config
    vision = replace(config.vision, num_layers=LAYERS)
    config = replace(config, vision=vision, decoder=replace(config.decoder, num_layers=LAYERS))
    model, pack = without_memory(recipe, config, torch.bfloat16), Pack.fullest(recipe, config)
    sizes = count(model, recipe.optimizer)[recipe.optimizer.moments]
    execution = Execution(compiled=False, fused=False)
    predicted = Step(recipe, config, sizes, execution, pack).peak.total
    lives = simulated(model, recipe, sizes.optimizer, pack)
    assert predicted - SLACK == pytest.approx(lives * (1 + GAPS), rel=0.07)
