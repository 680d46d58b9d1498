"""What a step does with gradients before the optimizer sees them."""

import pytest
import torch

from internvl2.checkpoint.store import load_model
from internvl2.train.optimization import Optimization
from internvl2.train.optimizers.groups import freeze_parts
from internvl2.train.parallel import World
from internvl2.train.recipe import Freeze, Optimizer, Recipe


@pytest.mark.parametrize(("allowed", "seen"), [(1.0, 1.0), (1e6, 1e3)])
def test_the_optimizer_sees_gradients_of_at_most_the_allowed_norm(data, allowed, seen):
    model = load_model(data("official", "A_internlm2", "checkpoint"), dtype=torch.float32)
    freeze_parts(model, Freeze())
    trained = [p for p in model.parameters() if p.requires_grad]
    each = 1e3 / sum(p.numel() for p in trained) ** 0.5
    for parameter in trained:
        parameter.grad = torch.full_like(parameter, each)
    settings = Optimizer(max_grad_norm=allowed)
    optimization = Optimization(model, Recipe("", optimizer=settings), compiled=False)
    alone = World(0, 1, torch.device("cpu"))
    moved = optimization.step(alone, 1.0, ("vision", "projector", "decoder"))
    means = [t for name, t in optimization.tensors().items() if name.endswith(":mean")]
    length = sum(float(mean.square().sum()) for mean in means) ** 0.5
    assert moved.norms["total"] == pytest.approx(1e3, rel=1e-4)
    assert length / (1 - settings.betas[0]) == pytest.approx(seen, rel=1e-3)
