"""Recomputed and compiled layers give the gradients of plain ones."""

from collections.abc import Iterator

import pytest
import torch

from internvl2.config import DecoderConfig, InternVLConfig, RotaryConfig, VisionConfig
from internvl2.model.attention import PackedAttention
from internvl2.model.internvl import InternVL, random_model
from internvl2.model.parallel import compile_layers, recompute_layers
from internvl2.model.rotary import Positions, Rotary

LENGTHS = (9, 6)
CONFIG = InternVLConfig(
    vision=VisionConfig(32, 4, 4, 64, image_size=28, drop_path_rate=0.4),
    decoder=DecoderConfig("qwen2", 64, 32, 4, 4, 2, 8, 64, 512, RotaryConfig(1e4)),
    template="internvl2_5",
    tile_size=28,
    image_token_id=7,
)


def model() -> InternVL:
    return random_model(CONFIG).train()


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


def saved_numbers(model: InternVL) -> int:
    """Numbers that the forward pass keeps for the backward pass, weights not counted."""
    weights = {p.data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(t: torch.Tensor) -> torch.Tensor:
        if t.data_ptr() not in weights:
            kept[t.data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        result = loss(model)
    assert result.requires_grad
    return sum(kept.values())


def runs(model: InternVL) -> Iterator[int]:
    """How often the attention of each vision and decoder layer runs in a step."""
    counts = []
    for layer in [*model.vision.layers, *model.decoder.layers]:
        count = [0]
        layer.attention.register_forward_hook(lambda *_, c=count: c.__setitem__(0, c[0] + 1))
        counts.append(count)
    loss(model).backward()
    return (count[0] for count in counts)


@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_recomputed_layers_give_the_same_gradients_even_with_drop_path(ratio: float):
    plain, recomputed = model(), model()
    recompute_layers(recomputed, ratio, ratio)
    expected, found = gradients(plain), gradients(recomputed)
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name


def test_the_share_says_how_many_layers_run_twice():
    each = model()
    recompute_layers(each, vision=0.5, decoder=0.25)
    assert list(runs(each)) == [2, 2, 1, 1, 2, 1, 1, 1]


def test_fewer_activations_are_kept():
    plain, recomputed = model(), model()
    recompute_layers(recomputed, 1.0, 1.0)
    assert saved_numbers(recomputed) < 0.7 * saved_numbers(plain)


def test_frozen_vision_layers_run_once():
    each = model()
    each.vision.requires_grad_(False)
    recompute_layers(each, 1.0, 0.0)
    assert list(runs(each)) == [1] * 8


@pytest.mark.slow
def test_names_of_parameters_stay():
    plain, changed = model(), model()
    compile_layers(changed)
    recompute_layers(changed, 1.0, 1.0)
    assert list(plain.state_dict()) == list(changed.state_dict())


def test_nothing_is_recomputed_without_gradients():
    plain, recomputed = model().eval(), model().eval()
    recompute_layers(recomputed, 1.0, 1.0)
    with torch.no_grad():
        assert torch.equal(loss(plain), loss(recomputed))


def test_a_share_above_one_is_refused():
    with pytest.raises(ValueError, match=r"recompute is 1\.5"):
        recompute_layers(model(), 1.5)


@pytest.mark.slow
@pytest.mark.compiled
def test_one_graph_serves_all_decoder_layers_and_all_lengths(monkeypatch: pytest.MonkeyPatch):
    """On the path of the GPU's kernel, which is imitated here."""
    from torch._dynamo.testing import CompileCounter  # takes seconds

    monkeypatch.setattr("internvl2.model.attention.has_varlen_kernel", lambda q: True)
    monkeypatch.setattr(
        "internvl2.model.attention.varlen_attention",
        lambda q, k, v, starts, ends, longest, _: q * (1 + 0 * longest) + 0 * starts.sum(),
    )
    layers, graphs = model().decoder.layers, CompileCounter()
    seen = []
    for lengths in [(9, 6), (4, 5, 6), (1, 2, 3, 4, 5), (7, 8), (2, 2, 11)]:
        rotate = Rotary(CONFIG.decoder.rotary, 8)(Positions.packed(lengths))
        for layer in layers:
            run = torch.compile(layer.forward, backend=graphs, fullgraph=True)
            run(torch.randn(15, 32), rotate, PackedAttention.of(lengths))
        seen.append(graphs.frame_count)
    assert seen == [1, 2, 2, 2, 2]


@pytest.mark.slow
@pytest.mark.compiled
def test_compiled_layers_give_the_same_gradients():
    plain, compiled = model(), model()
    compile_layers(compiled)
    recompute_layers(compiled, 0.5, 0.5)
    for layer in [*plain.vision.layers, *compiled.vision.layers]:
        layer.drop_path_rate = 0.0
    expected, found = gradients(plain), gradients(compiled)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7)
