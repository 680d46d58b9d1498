"""A run with a parameter that cannot learn stops and names it."""

import pytest
import torch
from torch import nn

from internvl2.train.optimizers.audit import PATIENCE, GradientAudit


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.vision = nn.Linear(3, 3)
        self.projector = nn.Linear(3, 3)
        self.decoder = nn.Linear(3, 3)

    def loss(self, *, with_pictures: bool = True) -> torch.Tensor:
        x = torch.ones(2, 3)
        x = self.projector(self.vision(x)) if with_pictures else x
        return self.decoder(x).square().sum()


ALL = ("vision", "projector", "decoder")


@pytest.fixture
def model() -> Parts:
    return Parts()


def test_a_sound_model_passes_and_the_audit_is_over(model: Parts):
    audit = GradientAudit(model)
    model.loss().backward()
    assert not audit.is_done
    audit.check(ALL)
    assert audit.is_done


def test_a_trained_parameter_without_a_gradient_is_named(model: Parts):
    audit = GradientAudit(model)
    model.loss().backward()
    model.vision.bias.grad = None
    with pytest.raises(ValueError, match=r"vision\.bias is to be trained, yet it has no"):
        audit.check(ALL)


def test_a_tower_run_without_gradients_is_found(model: Parts):
    audit = GradientAudit(model)
    with torch.no_grad():
        x = model.vision(torch.ones(2, 3))
    model.decoder(model.projector(x)).sum().backward()
    with pytest.raises(ValueError, match=r"vision\.bias"):
        audit.check(ALL)


def test_a_frozen_parameter_with_a_gradient_is_named(model: Parts):
    model.vision.weight.requires_grad_(False)
    audit = GradientAudit(model)
    model.loss().backward()
    model.vision.weight.grad = torch.ones(3, 3)
    with pytest.raises(ValueError, match=r"vision\.weight is frozen, yet"):
        audit.check(ALL)


def test_a_frozen_part_needs_no_gradient(model: Parts):
    model.vision.requires_grad_(False)
    audit = GradientAudit(model)
    model.loss().backward()
    audit.check(ALL)
    assert audit.is_done


def test_parts_are_looked_at_once_they_are_fed(model: Parts):
    audit = GradientAudit(model)
    model.loss(with_pictures=False).backward()
    audit.check(("decoder",))
    assert not audit.is_done
    model.loss().backward()
    model.projector.weight.grad = None
    with pytest.raises(ValueError, match=r"feeds the projector"):
        audit.check(ALL)


def test_a_gradient_that_stays_zero_is_named_in_the_end(model: Parts):
    audit = GradientAudit(model)
    for step in range(PATIENCE):
        model.zero_grad()
        model.loss().backward()
        model.vision.weight.grad.zero_()
        if step < PATIENCE - 1:
            audit.check(ALL)
    with pytest.raises(ValueError, match=rf"vision\.weight .* first {PATIENCE} steps"):
        audit.check(ALL)


def test_a_layer_that_is_left_out_for_a_step_is_no_fault(model: Parts):
    audit = GradientAudit(model)
    model.loss().backward()
    model.vision.weight.grad.zero_()
    audit.check(ALL)
    assert not audit.is_done
    model.loss().backward()
    audit.check(ALL)
    assert audit.is_done
