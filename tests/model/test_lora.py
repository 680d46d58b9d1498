"""Adapters compute what PEFT's do, merge into plain weights, and are all that their part trains."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from internvl2.config import DecoderConfig, InternVLConfig, RotaryConfig, VisionConfig
from internvl2.model.attention import PackedAttention
from internvl2.model.internvl import InternVL, random_model
from internvl2.model.lora import (
    HashedDropout,
    LoraLinear,
    LoraSettings,
    add_lora,
    is_adapter,
    merged_weight,
    plain_name,
    with_new_adapters,
)
from internvl2.model.parallel import recompute_layers
from internvl2.model.quantize import Nf4Linear, quantize_decoder, store_quantized
from internvl2.model.rotary import Positions

CONFIG = InternVLConfig(
    vision=VisionConfig(32, 2, 4, 64, image_size=28),
    decoder=DecoderConfig("qwen2", 64, 32, 2, 4, 2, 8, 64, 512, RotaryConfig(1e4)),
    template="internvl2_5",
    tile_size=28,
    image_token_id=7,
)
PLAIN = LoraSettings(4, 6.0)
KINDS = [
    replace(PLAIN, dora=dora, rslora=rslora) for dora in (False, True) for rslora in (False, True)
]
LENGTHS = (9, 6)


def trained(model: nn.Module) -> nn.Module:
    """Adapters as they are after some training: nothing is 0 any more."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".magnitude"):
                parameter *= 1 + 0.3 * torch.rand_like(parameter)
            elif is_adapter(name):
                parameter.normal_(std=0.3)
    return model


def adapted(decoder: LoraSettings | None = PLAIN, vision: LoraSettings | None = PLAIN) -> InternVL:
    model = random_model(CONFIG)
    add_lora(model, decoder, vision)
    return model


def loss(model: InternVL) -> torch.Tensor:
    torch.manual_seed(3)
    tokens = torch.arange(10, 25)
    tokens[[2, 11]] = 7
    tiles = torch.randint(256, (2, 28, 28, 3), dtype=torch.uint8)
    hidden = model(tokens, Positions.packed(LENGTHS), tiles, PackedAttention.of(LENGTHS))
    return model.logits(hidden).square().mean()


def gradients(model: InternVL) -> dict[str, torch.Tensor]:
    loss(model).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.parity
def test_outputs_and_gradients_are_those_of_peft():
    pytest.importorskip("peft")
    from peft import LoraConfig, get_peft_model

    for settings in KINDS:
        base = nn.Linear(24, 40)
        ours = trained(LoraLinear(base, settings))
        rank, alpha = settings.rank, settings.alpha
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=["0"])
        config.use_dora, config.use_rslora = settings.dora, settings.rslora
        theirs = get_peft_model(nn.Sequential(base), config).base_model.model[0]
        pairs = [(ours.down, theirs.lora_A.default.weight), (ours.up, theirs.lora_B.default.weight)]
        if settings.dora:
            pairs.append((ours.magnitude, theirs.lora_magnitude_vector.default.weight))
        for mine, other in pairs:
            other.data.copy_(mine.data)
        x = torch.randn(7, 24)
        results = [layer(x) for layer in (ours, theirs)]
        torch.testing.assert_close(*results)
        for result in results:
            result.square().sum().backward()
        for mine, other in pairs:
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("settings", KINDS)
def test_a_merged_model_computes_what_the_adapted_one_does(settings: LoraSettings):
    model, plain = trained(adapted(settings, settings)), random_model(CONFIG)
    names = {plain_name(name): name for name, _ in model.named_parameters()}
    parameters = dict(model.named_parameters())
    adapters = {name: m for name, m in model.named_modules() if isinstance(m, LoraLinear)}
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            weight.copy_(parameters[names[name]])
            a = adapters.get(name.removesuffix(".weight"))
            if a is not None:
                weight.copy_(merged_weight(weight, a.down, a.up, a.magnitude, settings))
    expected, base = loss(model), loss(random_model(CONFIG))
    torch.testing.assert_close(loss(plain), expected)
    assert abs(expected - base) > 1e-3 * base


def test_a_merged_weight_keeps_its_type_and_is_rounded_once():
    torch.manual_seed(0)
    base, down, up = torch.randn(40, 24), torch.randn(4, 24), torch.randn(40, 4)
    base, down, up = (tensor.bfloat16() for tensor in (base, down, up))
    exact = base.double() + PLAIN.scale * (up.double() @ down.double())
    merged = merged_weight(base, down, up, None, PLAIN)
    assert merged.dtype == torch.bfloat16
    assert ((merged.double() - exact).abs() <= 2**-8 * exact.abs()).all()


@pytest.mark.parametrize("dora", [False, True])
def test_new_adapters_change_nothing(dora: bool):
    model = adapted(replace(PLAIN, dora=dora), replace(PLAIN, dora=dora))
    torch.testing.assert_close(loss(model), loss(random_model(CONFIG)), rtol=1e-6, atol=0)


def test_a_part_with_adapters_trains_them_alone():
    model = adapted(vision=None)
    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    decoder = {name for name in learned if name.startswith("decoder.")}
    assert all(is_adapter(name) for name in decoder)
    assert len(decoder) == 2 * 7 * CONFIG.decoder.num_layers
    assert learned - decoder == {
        name for name, _ in model.named_parameters() if not name.startswith("decoder.")
    }


def test_vision_layers_that_are_never_run_get_no_adapters():
    model = random_model(replace(CONFIG, select_layer=-2))
    add_lora(model, vision=PLAIN)
    layers = {name.split(".")[2] for name, _ in model.named_parameters() if is_adapter(name)}
    assert layers == {"0"}


def test_layers_that_have_adapters_get_no_others():
    with pytest.raises(ValueError, match="have adapters already"):
        add_lora(adapted(), PLAIN)


def test_names_without_adapters_are_those_of_the_plain_model():
    model, plain = adapted(replace(PLAIN, dora=True)), random_model(CONFIG)
    kept = [plain_name(name) for name, _ in model.named_parameters() if not is_adapter(name)]
    assert kept == [name for name, _ in plain.named_parameters()]


def test_inputs_are_dropped_in_training_mode_alone():
    layer = trained(LoraLinear(nn.Linear(64, 64), LoraSettings(4, 8.0, dropout=0.5)))
    x = torch.randn(3, 64)
    plain = layer.base(x)
    change = F.linear(F.linear(x, layer.down), layer.up) * 2
    torch.testing.assert_close(layer.eval()(x), plain + change)
    torch.manual_seed(0)
    mean = torch.stack([layer.train()(x) for _ in range(1000)]).mean(dim=0)
    assert not torch.equal(layer(x), layer(x))
    torch.testing.assert_close(mean, plain + change, rtol=0, atol=0.1 * change.abs().max().item())


@pytest.mark.compiled
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_layer_drops_as_many_inputs_others_each_time_and_the_same_going_back(backend):
    torch.compiler.reset()
    dropped = torch.compile(HashedDropout(0.25).train(), backend=backend)
    x = torch.ones(2048, 64, requires_grad=True)
    first, second = dropped(x), dropped(x)
    gone = first == 0, second == 0
    assert torch.equal(first[~gone[0]], torch.full_like(first[~gone[0]], 4 / 3))
    assert [g.float().mean().item() for g in gone] == pytest.approx([0.25, 0.25], abs=0.01)
    assert (gone[0] & gone[1]).float().mean().item() == pytest.approx(0.25**2, abs=0.01)
    for rows, columns in ((slice(1, None), slice(None)), (slice(None), slice(1, None))):
        before = tuple(slice(None, -1) if s.start else s for s in (rows, columns))
        together = gone[0][rows, columns] & gone[0][before]
        assert together.float().mean().item() == pytest.approx(0.25**2, abs=0.01)
    first.backward(torch.ones_like(first))
    assert torch.equal(x.grad == 0, gone[0])


@pytest.mark.compiled
@pytest.mark.gpu
def test_a_compiled_adapter_on_a_gpu_drops_the_same_inputs_going_back():
    layer = trained(LoraLinear(nn.Linear(256, 128), LoraSettings(8, 8.0, dropout=0.25)))
    layer = layer.bfloat16().cuda().train()
    with torch.no_grad():
        layer.base.weight.zero_()
        layer.up.fill_(1.0)
        layer.down.fill_(1.0)
    x = torch.rand(512, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    torch.compile(layer.forward)(x).sum().backward()
    share = (x.grad == 0).float().mean().item()
    assert share == pytest.approx(0.25, abs=0.02)
    kept = (x.grad != 0) / 0.75
    expected = (x.detach() * kept).float().sum(0) * 128
    torch.testing.assert_close(layer.down.grad[0].float(), expected, rtol=0.02, atol=1.0)


@pytest.mark.slow
def test_recomputed_layers_drop_the_same_inputs_again():
    settings = LoraSettings(4, 8.0, dropout=0.3, dora=True)
    plain, recomputed = (trained(adapted(settings, settings)).train() for _ in range(2))
    recompute_layers(recomputed, 1.0, 1.0)
    expected, found = gradients(plain), gradients(recomputed)
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name


def test_a_model_without_memory_is_filled_in_any_order():
    plain, settings = random_model(CONFIG), replace(PLAIN, dora=True)
    weights = list(plain.named_parameters())
    models = []
    for order in (weights, weights[::-1]):
        with torch.device("meta"):
            model = InternVL(CONFIG)
        add_lora(model, settings, settings)
        model.to_empty(device="cpu")
        filled = dict(with_new_adapters(order, model, seed=5))
        model.load_state_dict(filled, strict=True)
        models.append(model)
    torch.testing.assert_close(loss(models[0]), loss(plain))
    first, second = (dict(model.named_parameters()) for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    attention = "decoder.layers.0.attention"
    assert not torch.equal(first[f"{attention}.q.down"], first[f"{attention}.k.down"])


@pytest.mark.parametrize("dora", [False, True])
def test_quantised_bases_take_adapters(dora: bool):
    """As a plain base with the dequantised weight would: DoRA counts its rows' lengths."""
    base, x = Nf4Linear(torch.randn(40, 32), torch.randn(40)), torch.randn(7, 32)
    plain = nn.Linear(32, 40)
    plain.load_state_dict({"weight": base.weight, "bias": base.bias})
    results, learned = [], []
    for each in (base, plain):
        layer, inputs = trained(LoraLinear(each, replace(PLAIN, dora=dora))), x.clone()
        results.append(layer(inputs.requires_grad_()))
        results[-1].square().sum().backward()
        adapters = [p.grad for name, p in layer.named_parameters() if is_adapter(name)]
        learned.append([inputs.grad, *adapters])
    assert torch.equal(*results)
    for mine, other in zip(*learned, strict=True):
        assert torch.equal(mine, other)


def test_a_quantised_model_without_memory_is_filled():
    settings = replace(PLAIN, dora=True)
    expected = random_model(CONFIG)
    quantize_decoder(expected)
    add_lora(expected, settings, settings)
    with torch.device("meta"):
        model = InternVL(CONFIG)
    quantize_decoder(model)
    add_lora(model, settings, settings)
    model.to_empty(device="cpu")
    weights = with_new_adapters(random_model(CONFIG).named_parameters(), model, seed=5)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in store_quantized(weights, model):
            parameters.pop(name).copy_(weight)
    assert not parameters
    torch.testing.assert_close(loss(model), loss(expected))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "the rank of an adapter is 0; it must be at least 1"),
        ({"alpha": 0.0}, r"the alpha of an adapter is 0\.0; it must be above 0"),
        ({"dropout": 1.0}, r"the dropout of an adapter is 1\.0; it must be in \[0, 1\)"),
    ],
)
def test_senseless_settings_are_refused(changes: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        replace(PLAIN, **changes)


def trace_layers(model: InternVL) -> None:
    """As `compile_layers`, less the generation of code, which takes minutes for whole layers."""
    for layer in (*model.vision.layers, *model.decoder.layers):
        layer.forward = torch.compile(layer.forward, backend="aot_eager", fullgraph=True)


@pytest.mark.slow
@pytest.mark.compiled
def test_traced_layers_give_the_same_gradients():
    settings = replace(PLAIN, dora=True)
    models = [random_model(CONFIG), random_model(CONFIG)]
    for model in models:
        quantize_decoder(model)
        add_lora(model, settings, settings)
        trained(model).train()
    trace_layers(models[1])
    recompute_layers(models[1], 0.5, 0.5)
    expected, found = (gradients(model) for model in models)
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.compiled
def test_traced_layers_drop_the_same_inputs_again():
    model = trained(adapted(LoraSettings(4, 8.0, dropout=0.3))).train()
    trace_layers(model)
    expected = gradients(model)
    model.zero_grad()
    recompute_layers(model, 1.0, 1.0)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-7)
