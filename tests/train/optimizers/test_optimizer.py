"""The optimizer: exact weights in 16 bits, small averages, groups, norms and schedules."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from internvl2.config import DecoderConfig, InternVLConfig, RotaryConfig, VisionConfig
from internvl2.model.internvl import random_model
from internvl2.train.optimizers.adamw import ExactAdamW
from internvl2.train.optimizers.groups import (
    build_optimizer,
    freeze_parts,
    gradient_norms,
    parameter_groups,
    set_learning_rate,
)
from internvl2.train.optimizers.schedule import rate_factor
from internvl2.train.recipe import Freeze, Optimizer, Schedule

SHAPES = [(300, 256), (8, 4, 32), (4, 3, 5, 5), (256,), (7,), (1,)]
OPTIONS = {"lr": 1e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
CONFIG = InternVLConfig(
    vision=VisionConfig(128, 3, 4, 256, image_size=28),
    decoder=DecoderConfig("qwen2", 64, 128, 2, 4, 2, 32, 256, 512, RotaryConfig(1e4)),
    template="internvl2_5",
    tile_size=28,
)


def parameters(dtype: torch.dtype) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter((0.02 * torch.randn(shape)).bfloat16().to(dtype)) for shape in SHAPES]


def give_gradients(*twins: list[nn.Parameter]) -> None:
    """The same gradients to each list, with values that bf16 holds."""
    for ps in zip(*twins, strict=True):
        gradient = (torch.randn(ps[0].shape) * 0.01).bfloat16()
        for p in ps:
            p.grad = gradient.to(p.dtype)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_200_steps_are_those_of_fp32_adamw(dtype: torch.dtype):
    ours, theirs = parameters(dtype), parameters(torch.float32)
    mine, plain = ExactAdamW(ours, **OPTIONS), torch.optim.AdamW(theirs, **OPTIONS)
    start = [p.detach().clone() for p in theirs]
    for _ in range(200):
        give_gradients(ours, theirs)
        mine.step()
        plain.step()
    for p, q, before in zip(ours, theirs, start, strict=True):
        assert relative(mine.master(p), q) < 1e-6
        assert relative(mine.master(p) - before, q - before) < 1e-5
        torch.testing.assert_close(p.float(), q, rtol=2**-8, atol=0)


def test_steps_that_plain_bf16_would_round_away_add_up():
    ours, plain = (nn.Parameter(torch.ones(256, 256, dtype=torch.bfloat16)) for _ in range(2))
    options = {"lr": 1e-5, "weight_decay": 0.0}
    mine, lossy = ExactAdamW([ours], **options), torch.optim.AdamW([plain], **options)
    for _ in range(300):
        ours.grad = torch.ones_like(ours)
        plain.grad = torch.ones_like(plain)
        mine.step()
        lossy.step()
    assert torch.equal(plain.detach(), torch.ones_like(plain))
    assert float(mine.master(ours)[0, 0]) == pytest.approx(1 - 300e-5, rel=1e-5)
    assert ours[0, 0].item() == pytest.approx(1 - 300e-5, rel=2**-8)


def test_large_parameters_in_pieces_and_small_ones_together_move_as_each_alone(
    monkeypatch: pytest.MonkeyPatch,
):
    results = []
    for chunk, small, together in ((2**24, 2**16, 2**24), (1000, 10, 2**24), (2**24, 2**16, 600)):
        monkeypatch.setattr("internvl2.train.optimizers.adamw.CHUNK", chunk)
        monkeypatch.setattr("internvl2.train.optimizers.adamw.SMALL", small)
        monkeypatch.setattr("internvl2.train.optimizers.adamw.TOGETHER", together)
        ps = parameters(torch.bfloat16)
        optimizer = ExactAdamW(ps, **OPTIONS)
        for _ in range(3):
            give_gradients(ps)
            optimizer.step()
        results.append([optimizer.master(p) for p in ps])
    for a, *others in zip(*results, strict=True):
        assert all(torch.equal(a, b) for b in others)


def test_a_parameter_without_a_gradient_stays_and_counts_no_step():
    ps = parameters(torch.bfloat16)
    before = ps[0].detach().clone()
    optimizer = ExactAdamW(ps, **OPTIONS)
    give_gradients(ps)
    ps[0].grad = None
    optimizer.step()
    assert torch.equal(ps[0], before)
    assert not optimizer.state[ps[0]]


def test_gradients_are_scaled_within_the_step():
    ours, theirs = parameters(torch.float32), parameters(torch.float32)
    mine, plain = ExactAdamW(ours, **OPTIONS), torch.optim.AdamW(theirs, **OPTIONS)
    for _ in range(3):
        give_gradients(ours, theirs)
        mine.step(scale=torch.tensor(0.25))
        for p in theirs:
            p.grad *= 0.25
        plain.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("moments", "expected"), [("fp32", 12), ("8bit", 6 + 8 / 128)])
def test_memory_per_number_is_counted(moments, expected: float):
    weight = nn.Parameter(torch.zeros(512, 256, dtype=torch.bfloat16))
    weight.grad = torch.ones_like(weight)
    optimizer = ExactAdamW([weight], moments=moments)
    optimizer.step()
    tensors = [weight, *(t for key, t in optimizer.state[weight].items() if key != "step")]
    total = sum(t.numel() * t.element_size() for t in tensors)
    assert total / weight.numel() == pytest.approx(expected)


def fit(moments, dtype, kind=ExactAdamW, rate=2e-3, **options) -> tuple[list, torch.Tensor]:
    """Loss of each step of a small regression from noisy batches, and the weights in the end."""
    generator = torch.Generator().manual_seed(1)
    goal = torch.randn(128, 128, generator=generator) / 11
    weight = nn.Parameter(torch.zeros(128, 128, dtype=dtype))
    optimizer = kind([{"params": [weight], **options}], weight_decay=0.0, moments=moments)
    losses = []
    for step in range(400):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / 400)
        x = torch.randn(64, 128, generator=generator)
        noise = 0.1 * torch.randn(64, 128, generator=generator)
        loss = (x @ weight.float().T - (x @ goal.T + noise)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, optimizer.master(weight).detach()


def test_8_bit_averages_learn_as_well_as_fp32_ones():
    exact, exact_weight = fit("fp32", torch.float32)
    small, small_weight = fit("8bit", torch.bfloat16)
    assert exact[0] == pytest.approx(1, rel=0.2)
    assert sum(small[-20:]) < 1.05 * sum(exact[-20:])
    assert relative(small_weight, exact_weight) < 0.05


def test_8_bit_squares_keep_their_expectation():
    """An average that changes by 0.1 % a step must move though its codes are 1 % apart."""
    weight = nn.Parameter(torch.zeros(8, 128))
    optimizer = ExactAdamW([weight], lr=0.0, moments="8bit", betas=(0.9, 0.99))
    torch.manual_seed(0)
    seen = []
    for step in range(600):
        weight.grad = torch.randn(8, 128)
        optimizer.step()
        if step > 400:
            state = optimizer.state[weight]
            codes = (state["square"].float() / 255) ** 4
            seen.append((codes * state["square_scales"].repeat_interleave(128, 1)).mean())
    assert float(torch.stack(seen).mean()) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("name", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
@pytest.mark.parametrize("moments", ["fp32", "8bit"])
def test_a_saved_state_continues_bit_for_bit(tmp_path, name, moments):
    settings = Optimizer(name=name, moments=moments)
    first = random_model(CONFIG, dtype=torch.bfloat16)
    freeze_parts(first, Freeze(vision=False))
    optimizer = build_optimizer(first, settings)
    models, optimizers = [first], [optimizer]
    for step in range(6):
        if step == 3:
            torch.save([first.state_dict(), optimizer.state_dict()], tmp_path / "state.pt")
            weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
            models.append(copy.deepcopy(first))
            models[1].load_state_dict(weights)
            optimizers.append(build_optimizer(models[1], settings))
            optimizers[1].load_state_dict(state)
        give_gradients(*(list(m.parameters()) for m in models))
        for each in optimizers:
            each.step()
    for p, q in zip(*(m.parameters() for m in models), strict=True):
        assert torch.equal(optimizers[0].master(p), optimizers[1].master(q))
        for key, value in optimizers[0].state[p].items():
            other = optimizers[1].state[q][key]
            assert value.dtype == other.dtype
            assert torch.equal(value, other)


def test_a_state_of_other_groups_is_refused():
    one, two = ExactAdamW(parameters(torch.float32)), ExactAdamW(parameters(torch.float32)[:2])
    with pytest.raises(ValueError, match="groups of"):
        one.load_state_dict(two.state_dict())


def test_half_precision_weights_are_refused():
    with pytest.raises(ValueError, match="float16"):
        ExactAdamW([nn.Parameter(torch.zeros(2, dtype=torch.float16))])


def test_muon_takes_the_steps_of_torchs_own():
    torch.manual_seed(0)
    starts = [0.02 * torch.randn(64, 160), 0.1 * torch.randn(64, 160), 0.02 * torch.randn(160, 64)]
    settings = {"lr": 1e-3, "weight_decay": 0.1}
    ours, theirs = ([nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    kind = type(build_optimizer(random_model(CONFIG), Optimizer(name="muon")))
    mine = kind([{"params": ours, "matrices": True}], **settings)
    plain = torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **settings)
    for _ in range(5):
        give_gradients(ours, theirs)
        mine.step()
        plain.step()
    for start, our, their in zip(starts, ours, theirs, strict=True):
        assert relative(our - start, their - start) < 4e-2


@pytest.mark.parametrize("moments", [pytest.param("fp32", marks=pytest.mark.slow), "8bit"])
def test_muon_learns(moments):
    kind = type(build_optimizer(random_model(CONFIG), Optimizer(name="muon")))
    losses, _ = fit(moments, torch.bfloat16, kind, rate=1e-2, matrices=True)
    assert losses[0] > 0.8
    assert sum(losses[-20:]) / 20 < 0.02


def trained(freeze: Freeze, config: InternVLConfig = CONFIG) -> set[str]:
    model = random_model(config)
    freeze_parts(model, freeze)
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_the_usual_recipe_trains_projector_decoder_and_head():
    names = trained(Freeze())
    assert {name.split(".")[0] for name in names} == {"projector", "decoder"}
    assert {"decoder.head.weight", "decoder.embedding.weight"} <= names


def test_the_head_is_frozen_or_trained_by_itself():
    assert "decoder.head.weight" not in trained(Freeze(head=True))
    only = trained(Freeze(projector=True, decoder=True, head=False))
    assert only == {"decoder.head.weight"}


def test_the_head_is_frozen_with_the_decoder():
    names = trained(Freeze(decoder=True))
    assert {name.split(".")[0] for name in names} == {"projector"}


def test_the_last_layers_of_a_frozen_tower_are_trained():
    names = {n for n in trained(Freeze(vision_last=1)) if n.startswith("vision.")}
    assert names
    assert all(name.startswith("vision.layers.2.") for name in names)


def test_vision_layers_that_are_never_run_are_not_trained():
    config = replace(CONFIG, select_layer=-2)
    assert not any("vision.layers.2." in name for name in trained(Freeze(vision=False), config))
    assert any("vision.layers.1." in name for name in trained(Freeze(vision_last=1), config))


def test_more_last_layers_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="uses 3 vision layers"):
        trained(Freeze(vision_last=4))


def factors(settings: Optimizer) -> dict[str, float]:
    model = random_model(CONFIG)
    groups = parameter_groups(model, settings)
    return {name: group.factor for group in groups for name, _ in group.parameters}


def test_rates_differ_by_part_and_fall_towards_the_first_vision_layer():
    rates = factors(Optimizer(vision_rate=0.1, projector_rate=2.0, layer_decay=0.5))
    assert rates["decoder.head.weight"] == 1
    assert rates["projector.linear1.weight"] == 2
    assert rates["vision.layers.2.scale1"] == pytest.approx(0.1)
    assert rates["vision.layers.0.mlp.fc1.weight"] == pytest.approx(0.025)
    assert rates["vision.patch_embedding.weight"] == pytest.approx(0.0125)


def test_norms_biases_and_position_embeddings_do_not_decay():
    groups = parameter_groups(random_model(CONFIG), Optimizer(weight_decay=0.1))
    still = {n for group in groups for n, _ in group.parameters if group.weight_decay == 0}
    model = random_model(CONFIG)
    vectors = {name for name, p in model.named_parameters() if p.ndim == 1}
    assert still == vectors | {"vision.position_embedding"}


def test_muon_takes_the_matrices_of_layers_only():
    groups = parameter_groups(random_model(CONFIG), Optimizer(name="muon"))
    names = {n for group in groups for n, _ in group.parameters if group.matrices}
    assert "decoder.layers.0.attention.q.weight" in names
    assert "projector.linear1.weight" in names
    assert not names & {
        "decoder.embedding.weight",
        "decoder.head.weight",
        "vision.patch_embedding.weight",
        "vision.position_embedding",
        "decoder.norm.weight",
    }


def test_a_model_that_is_all_frozen_is_an_error():
    model = random_model(CONFIG)
    freeze_parts(model, Freeze(vision=True, projector=True, decoder=True, head=True))
    with pytest.raises(ValueError, match="nothing would be trained"):
        build_optimizer(model, Optimizer())


def test_the_rate_is_shared_out_to_the_groups():
    optimizer = build_optimizer(random_model(CONFIG), Optimizer(vision_rate=0.1))
    set_learning_rate(optimizer, 3e-4)
    rates = {group["part"]: group["lr"] for group in optimizer.param_groups}
    assert rates == pytest.approx({"vision": 3e-5, "projector": 3e-4, "decoder": 3e-4})


def test_norms_of_parts_make_up_the_total_and_clip_like_torch():
    model = random_model(CONFIG)
    give_gradients(list(model.parameters()))
    norms = gradient_norms(model)
    assert set(norms.parts) == {"vision", "projector", "decoder"}
    total = math.hypot(*(float(norm) for norm in norms.parts.values()))
    assert float(norms.total) == pytest.approx(total, rel=1e-6)
    expected = next(model.parameters()).grad * norms.clipping(0.5)
    torch_total = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    assert float(norms.total) == pytest.approx(float(torch_total), rel=1e-5)
    torch.testing.assert_close(next(model.parameters()).grad, expected, rtol=1e-5, atol=0)


def test_small_gradients_are_not_scaled():
    model = random_model(CONFIG)
    give_gradients(list(model.parameters()))
    assert float(gradient_norms(model).clipping(1e6)) == 1


def test_bf16_gradients_have_fp32_norms():
    model = nn.ModuleDict({"decoder": nn.Linear(100, 100, dtype=torch.bfloat16, bias=False)})
    model["decoder"].weight.grad = torch.full((100, 100), 1.0, dtype=torch.bfloat16)
    model["decoder"].weight.grad[0, 0] = 0
    assert float(gradient_norms(model).total) == pytest.approx(9999**0.5, rel=1e-6)


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_the_rate_rises_in_the_warm_up_and_never_is_zero(kind):
    factors = [rate_factor(Schedule(kind=kind, warmup_ratio=0.1), step, 100) for step in range(100)]
    assert min(factors) > 0
    assert factors[:10] == sorted(factors[:10])
    assert factors[10] == 1
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_schedules_have_their_shapes():
    def halfway(kind) -> float:
        return rate_factor(Schedule(kind=kind, warmup_ratio=0.0), 50, 100)

    assert halfway("constant") == 1
    assert halfway("linear") == pytest.approx(0.5)
    assert halfway("cosine") == pytest.approx(0.5)
    quarter = rate_factor(Schedule(kind="cosine", warmup_ratio=0.0), 25, 100)
    assert quarter == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


@pytest.mark.slow
@pytest.mark.parametrize("moments", ["fp32", "8bit"])
def test_compiled_steps_are_those_of_eager_ones(monkeypatch: pytest.MonkeyPatch, moments):
    monkeypatch.setattr("internvl2.train.optimizers.adamw.SMALL", 300)
    twins = [parameters(torch.bfloat16) for _ in range(2)]
    optimizers = [
        ExactAdamW(ps, moments=moments, compiled=compiled)
        for ps, compiled in zip(twins, (False, True), strict=True)
    ]
    for step in range(4):
        give_gradients(*twins)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = 1e-4 * (step + 1)
            optimizer.step()
    for p, q in zip(*twins, strict=True):
        assert relative(optimizers[1].master(q), optimizers[0].master(p)) < 1e-4
