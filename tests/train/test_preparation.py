"""Random weights are those that the modules would begin with, whoever draws them."""

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from internvl2.config import DecoderConfig, InternVLConfig, RotaryConfig, VisionConfig
from internvl2.model.internvl import InternVL
from internvl2.train import preparation
from internvl2.train.preparation import compiles, random_weights, without_memory
from internvl2.train.recipe import Recipe

CONFIG = InternVLConfig(
    vision=VisionConfig(128, 2, 4, 256, image_size=28, qkv_bias=True, qk_norm=True),
    decoder=DecoderConfig("qwen2", 64, 128, 2, 4, 2, 32, 256, 512, RotaryConfig(1e4)),
    template="internvl2_5",
    tile_size=28,
)
CPU = torch.device("cpu")


def drawn(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        model = InternVL(CONFIG)
    return dict(random_weights(model, seed, CPU, dtype))


def test_every_parameter_is_drawn_once_in_its_shape():
    expected = InternVL(CONFIG).state_dict()
    assert {n: t.shape for n, t in drawn().items()} == {n: t.shape for n, t in expected.items()}


def test_norms_and_layer_scales_begin_as_the_modules_make_them():
    weights, model = drawn(), InternVL(CONFIG)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
            continue
        for own, parameter in module.named_parameters(prefix=name, recurse=False):
            if not own.endswith(("class_embedding", "position_embedding")):
                assert torch.equal(weights[own], parameter), own


def test_biases_are_0_and_matrices_and_embeddings_have_the_deviation_of_the_recipes():
    for name, tensor in drawn().items():
        if name.endswith("bias"):
            assert not tensor.any(), name
        elif tensor.ndim > 1 or "class" in name:
            assert 0.015 < float(tensor.std()) < 0.025, name


def test_the_seed_decides_them_and_nothing_else_does():
    one = drawn()
    torch.manual_seed(7)
    two = drawn()
    assert all(torch.equal(t, two[name]) for name, t in one.items())
    assert not torch.equal(drawn(seed=1)["decoder.head.weight"], one["decoder.head.weight"])


def test_they_are_drawn_in_the_type_of_the_model():
    assert {t.dtype for t in drawn(dtype=torch.bfloat16).values()} == {torch.bfloat16}


@pytest.mark.skipif(find_spec("triton") is not None, reason="Triton is installed")
def test_compilation_that_was_asked_for_needs_triton_on_a_gpu():
    recipe = replace(Recipe.read("2b"), compile=None)
    assert not compiles(recipe, torch.device("cuda"))
    with pytest.raises(ValueError, match=r"needs Triton on a GPU.*pip install triton"):
        compiles(replace(recipe, compile=True), torch.device("cuda"))


def test_a_run_from_nothing_begins_alike_on_every_device():
    recipe = replace(Recipe.read("nano"), dtype="float32")
    source = preparation._random(recipe, torch.device("meta"))
    name, first = next(source.weights(without_memory(recipe, source.config, source.dtype)))
    assert (name, first.device.type) == ("vision.class_embedding", "cpu")
