"""Plans: what fits, what is fastest, what is taken, and what the parts of a prediction are."""

from dataclasses import replace

import pytest
import torch

from internvl2.checkpoint.config_files import write_config
from internvl2.config import InternVLConfig
from internvl2.family import find, parameters
from internvl2.train.planning.machine import GIB, Machine, Speeds, given, known
from internvl2.train.planning.memory import Pack
from internvl2.train.planning.plan import Plan, Prediction, make_plan, shape_of
from internvl2.train.planning.sizes import Sizes, count
from internvl2.train.planning.strategies import Strategy, strategies, trains_the_same
from internvl2.train.preparation import without_memory
from internvl2.train.recipe import Freeze, Lora, Packing, Recipe

SPEEDS = Speeds(989, 4800, 900)


def machine(memory: float, gpus: int = 1) -> Machine:
    """A card with so many GiB."""
    return Machine("a card", "cuda", memory, SPEEDS, count=gpus)


def sizes(recipe: Recipe, moments: str = "fp32") -> Sizes:
    """Of a released width with few layers."""
    model = without_memory(recipe, few_layers(recipe.model), torch.bfloat16)
    return next(s for name, s in count(model, recipe.optimizer).items() if name == moments)


def few_layers(name: str) -> InternVLConfig:
    """A release with four layers in each part."""
    config = find(name).config
    vision, decoder = replace(config.vision, num_layers=4), replace(config.decoder, num_layers=4)
    return replace(config, vision=vision, decoder=decoder)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """1B's own, for a model of its width with few layers."""
    folder = tmp_path_factory.mktemp("shape")
    write_config(few_layers("internvl2-1b"), folder, "opengvlab")
    return replace(Recipe.read("1b"), model=str(folder))


@pytest.fixture(scope="module")
def roomy(recipe: Recipe) -> Plan:
    return make_plan(recipe, machine(139))


@pytest.fixture(scope="module")
def narrow(recipe: Recipe, roomy: Plan) -> Plan:
    """On a card that cannot hold the recipe as it is, though less than all of it."""
    return make_plan(recipe, machine(0.8 * roomy.given.memory.total / GIB))


def test_what_is_said_to_fit_is_below_the_memory_of_the_card(narrow: Plan):
    fitting = [option for option in narrow.options if option.fits]
    assert fitting
    assert max(option.memory.total for option in fitting) < narrow.machine.memory * GIB


def test_the_pick_trains_what_the_recipe_trains_in_the_fastest_way_that_fits(
    roomy: Plan, narrow: Plan, recipe: Recipe
):
    assert not narrow.given.fits
    for plan in (roomy, narrow):
        pick, config = plan.pick, shape_of(recipe.model)
        assert pick is not None
        assert trains_the_same(pick.recipe, recipe)
        (same,) = [s for s in strategies(recipe) if trains_the_same(s.recipe, recipe)]
        variants = map(Prediction(same, config, plan.machine), same.variants(1))
        assert pick.order == max(variant.order for variant in variants if variant.fits)


def test_less_memory_never_trains_faster(roomy: Plan, narrow: Plan):
    for wide, tight in zip(roomy.options, narrow.options, strict=True):
        assert wide.strategy == tight.strategy
        assert tight.order <= wide.order
        assert tight.memory.total <= wide.memory.total


def test_where_the_recipe_does_not_fit_the_fastest_of_all_that_fit_is_taken(recipe: Recipe):
    plan = make_plan(recipe, machine(3.0))
    fitting = [option for option in plan.options if option.fits]
    assert plan.pick is not None
    assert not any(trains_the_same(option.recipe, recipe) for option in fitting)
    assert plan.pick.order == max(option.order for option in fitting)


@pytest.mark.slow
def test_a_card_too_small_for_anything_has_no_pick_but_a_least_need(recipe: Recipe):
    plan = make_plan(recipe, machine(0.5))
    assert plan.pick is None
    assert plan.smallest.memory.total == min(option.memory.total for option in plan.options)


def test_smaller_packs_keep_less_and_gpus_divide_what_is_divided(recipe: Recipe):
    config, strategy = shape_of(recipe.model), Strategy("it", recipe)
    small = replace(recipe, packing=Packing(tokens=4096, tiles=15))
    one, many = (Prediction(strategy, config, machine(139, gpus)) for gpus in (1, 8))
    assert one(small).memory.activations == pytest.approx(0.5 * one(recipe).memory.activations)
    divided = replace(recipe, shard=True)
    assert many(divided).memory.optimizer == pytest.approx(one(divided).memory.optimizer / 8)


@pytest.mark.parametrize("name", ["1b", "2b-lora"])
def test_where_features_are_kept_packs_take_the_time_of_text_and_the_memory_of_features(name: str):
    plain = replace(Recipe.read(name), packing=Packing(tokens=4096, tiles=12))
    kept = replace(plain, feature_cache="features")
    config = few_layers(plain.model)
    tiny_tower = replace(config, vision=replace(config.vision, num_layers=1))
    predict, without = (
        Prediction(Strategy("it", kept), c, machine(139)) for c in (config, tiny_tower)
    )
    slow, fast = predict(plain), predict(kept)
    assert fast.order > slow.order
    assert without(kept).order == pytest.approx(fast.order, rel=1e-6)
    assert without(plain).order > slow.order
    features = 12 * 256 * 4096 * 2
    pixels = 12 * 3 * 448**2
    laid_out = 0 if name == "1b" else features  # its projector learns, and keeps its input anyway
    more = fast.memory.total - slow.memory.total
    assert more == 2 * (features - pixels) + laid_out


def test_the_first_look_at_tiles_is_part_of_the_memory_where_features_are_kept():
    recipe = replace(Recipe.read("2b-lora"), packing=Packing(tokens=8192, tiles=32))
    kept = replace(recipe, feature_cache="features")
    config = replace(few_layers(recipe.model), tile_size=448)
    vision = replace(config.vision, intermediate_size=400_000)
    predict = Prediction(Strategy("it", kept), replace(config, vision=vision), machine(139))
    tower = 32 * 1025 * 2 * (2 * 400_000)
    assert predict(kept).memory.total > tower


def test_packs_must_be_divisible_among_the_gpus(recipe: Recipe):
    with pytest.raises(ValueError, match=r"packs_per_step is 32; it must be a multiple .* 3"):
        make_plan(recipe, machine(80, 3))


def test_adapters_are_trained_numbers_and_quantised_matrices_take_half_a_byte():
    config = few_layers("internvl2-2b")
    adapted = replace(Recipe.read("2b-lora"), lora=Lora(decoder_rank=16))
    # Of q and o, k and v, gate up down: inputs and outputs, for each rank.
    ends = 2 * (2048 + 2048) + 2 * (2048 + 1024) + 3 * (2048 + 8192)
    numbers = 4 * 16 * ends
    found = sizes(adapted)
    assert found.trained == numbers
    assert found.gradients == 2 * numbers
    assert found.optimizer == 10 * numbers
    assert found.parameters == 2 * (parameters(config).total + numbers)
    quantised = sizes(replace(adapted, quantize="nf4"))
    matrices = 4 * (2 * 2048 * (2048 + 1024) + 3 * 2048 * 8192)
    assert quantised.quantised == matrices
    assert quantised.parameters == found.parameters - 2 * matrices
    assert quantised.buffers == pytest.approx(0.516 * matrices, rel=0.001)


def test_8_bit_averages_take_a_quarter_and_muon_has_one_for_matrices():
    recipe = Recipe.read("1b")
    all_trained = replace(recipe, freeze=Freeze(vision=False))
    plain, small = (sizes(all_trained, moments) for moments in ("fp32", "8bit"))
    assert plain.optimizer == 10 * plain.trained
    # Two bytes, and two scales of 4 bytes for 128 numbers; few tensors have no whole blocks.
    assert small.optimizer == pytest.approx((2 + 2 + 8 / 128) * small.trained, rel=0.005)
    muon = replace(all_trained, optimizer=replace(recipe.optimizer, name="muon"))
    vision = 4 * (4 * 1024**2 + 2 * 1024 * 4096)
    decoder = 4 * (2 * 896 * (896 + 128) + 3 * 896 * 4864)
    projector = 4096 * 896 + 896**2
    one_average = 4 * (vision + decoder + projector)
    assert sizes(muon).optimizer == plain.optimizer - one_average


def test_devices_are_known_by_the_names_they_give_themselves():
    names = {
        "NVIDIA H100 80GB HBM3": (79.2, 989),
        "NVIDIA A100-SXM4-80GB": (79.2, 312),
        "NVIDIA A100-SXM4-40GB": (39.2, 312),
        "NVIDIA GeForce RTX 4090": (23.5, 165),
        "NVIDIA L40S": (44.4, 362),
    }
    for name, (memory, tflops) in names.items():
        machine = known(name)
        assert machine.speeds is not None
        assert (machine.memory, machine.speeds.tflops) == (pytest.approx(memory - 0.75), tflops)
    with pytest.raises(ValueError, match="unknown device 'h101'; known: b200, h200"):
        known("h101")


def test_a_device_that_is_not_known_has_memory_but_no_speed(recipe: Recipe):
    plan = make_plan(recipe, given("new card", 48, None))
    assert plan.pick is not None
    assert {option.tokens_per_second for option in plan.options} == {None}


def test_a_card_without_bf16_trains_in_fp32(recipe: Recipe):
    plan = make_plan(recipe, known("v100"))
    assert {option.recipe.dtype for option in plan.options} == {"float32"}
    count_of_all = parameters(shape_of(recipe.model)).total
    assert plan.given.memory.weights == 4 * count_of_all


def test_strategies_take_of_a_recipe_what_goes_with_them(recipe: Recipe):
    found = strategies(replace(recipe, layout="hf", feature_cache="features"))
    assert [(s.recipe.layout, s.recipe.feature_cache) for s in found] == [
        ("hf", None),
        ("hf", "features"),
        ("hf", "features"),
        ("opengvlab", "features"),
        ("opengvlab", "features"),
    ]


def test_quantised_weights_may_be_divided_and_one_gpu_leaves_the_recipe_as_it_is():
    adapted = Strategy("it", replace(Recipe.read("76b-lora"), quantize="nf4"))
    assert {variant.shard for variant in adapted.variants(8)} == {False, True}
    assert {variant.shard for variant in adapted.variants(1)} == {True}


@pytest.mark.parametrize(
    "name", ["OpenGVLab/InternVL2-1B", "OpenGVLab/InternVL2-1B-hf", "a/InternVL2-1B-Instruct"]
)
def test_every_stage_and_layout_of_a_release_has_its_shape(name: str):
    assert shape_of(name) == find("internvl2-1b").config


def test_the_device_of_the_recipe_is_planned_for():
    assert given(None, None, None, "cpu").kind == "cpu"
    with pytest.raises(ValueError, match="unknown device 'toaster'"):
        given(None, None, None, "toaster")


def test_a_full_pack_has_no_more_tiles_than_its_tokens_hold():
    recipe = replace(Recipe.read("1b"), packing=Packing(tokens=2048, tiles=30))
    assert Pack.fullest(recipe, shape_of("internvl2-1b")) == Pack(2048, 8, 256)
