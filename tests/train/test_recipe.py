"""Recipes are read strictly, written back in full, and the package's own are as published."""

from pathlib import Path
from typing import NamedTuple

import pytest

from internvl2.family import find
from internvl2.train.recipe import DataSource, Freeze, Lora, Recipe, names


class Published(NamedTuple):
    """What differs between the published recipes."""

    model: str
    learning_rate: float
    weight_decay: float
    drop_path: float


def read(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return Recipe.read(path)


OFFICIAL = {
    "1b": Published("internvl2-1b", 4e-5, 0.01, 0.1),
    "2b": Published("internvl2-2b", 4e-5, 0.01, 0.1),
    "4b": Published("internvl2-4b", 4e-5, 0.01, 0.1),
    "8b": Published("internvl2-8b", 4e-5, 0.05, 0.1),
    "26b": Published("internvl2-26b", 2e-5, 0.05, 0.4),
    "40b": Published("internvl2-40b", 2e-5, 0.05, 0.4),
    "76b": Published("internvl2-llama3-76b", 2e-5, 0.05, 0.4),
}
PADDLEMIX = {
    f"{size}-paddlemix": Published(f"internvl2-{size}", 4e-5, 0.01, 0.1)
    for size in ("1b", "2b", "8b")
}
LORA = {f"{size}-lora": full._replace(drop_path=0.0) for size, full in OFFICIAL.items()}

NANO = ("nano", *(f"nano-{stage}" for stage in range(1, 8)))

NANO_LORA = ("nano-lora", "nano-flags")


def test_every_released_size_has_a_recipe():
    assert set(names()) == OFFICIAL.keys() | PADDLEMIX.keys() | LORA.keys() | {*NANO, *NANO_LORA}


@pytest.mark.parametrize("name", NANO_LORA)
def test_the_adapters_of_nano_learn_beside_a_tower_that_sees_each_picture_once(name):
    recipe = Recipe.read(name)
    assert recipe.model == "nano"
    assert recipe.lora.decoder_rank > 0
    assert recipe.feature_cache is not None
    assert recipe.packing.tokens >= recipe.packing.tiles * (256 + 32)


@pytest.mark.parametrize("name", NANO)
def test_a_stage_of_nano_trains_all_of_the_model_before_it(name):
    recipe = Recipe.read(name)
    before = dict(zip(NANO[2:], NANO[1:], strict=False))
    assert recipe.model == (f"runs/{before[name]}" if name in before else "nano")
    assert recipe.from_scratch == (name not in before)
    assert recipe.freeze == Freeze(vision=False)
    visual = 256 * (recipe.tile_size or 448) ** 2 // 448**2
    assert recipe.packing.tokens >= recipe.packing.tiles * visual


@pytest.mark.parametrize("name", OFFICIAL | PADDLEMIX | LORA)
def test_a_packaged_recipe_has_the_published_values(name):
    recipe = Recipe.read(name)
    optimizer, schedule = recipe.optimizer, recipe.schedule
    found = Published(
        recipe.model, optimizer.learning_rate, optimizer.weight_decay, recipe.drop_path
    )
    assert find(recipe.model).name == recipe.model
    assert found == (OFFICIAL | PADDLEMIX | LORA)[name]
    assert (optimizer.betas, optimizer.eps, optimizer.max_grad_norm) == ((0.9, 0.999), 1e-8, 1.0)
    assert (schedule.kind, schedule.warmup_ratio, schedule.epochs) == ("cosine", 0.03, 1.0)
    assert recipe.freeze == Freeze(projector=name in LORA)
    assert recipe.lora == (Lora(decoder_rank=16) if name in LORA else Lora())
    assert (recipe.max_tiles, recipe.save_every) == (6, 200)
    share = 8 if name in LORA else 1  # of 128 samples a step
    assert recipe.packing.tokens * recipe.packs_per_step * share == 32 * 8192
    assert recipe.packing.tiles == (30 if name in OFFICIAL else 15)


def test_a_part_with_adapters_keeps_its_own_weights():
    kept = Recipe("m", freeze=Freeze(vision=False), lora=Lora(decoder_rank=4)).kept
    assert (kept.vision, kept.projector, kept.decoder, kept.freezes_head) == (
        False,
        False,
        True,
        True,
    )
    head = Recipe("m", freeze=Freeze(head=False), lora=Lora(decoder_rank=4)).kept
    assert not head.freezes_head


def test_what_is_written_reads_back_equal(tmp_path):
    data = (DataSource("a.jsonl", repeat=0.5), DataSource('b "quoted".jsonl', root="/x"))
    lora = Lora(vision_rank=4, rslora=True)
    recipe = Recipe("m", data=data, lora=lora, quantize=None, dtype="float32", seed=7)
    recipe.write(tmp_path / "recipe.toml")
    assert Recipe.read(tmp_path / "recipe.toml") == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('model = "m"\n[optimizer]\nlearning_rat = 1', "`optimizer.learning_rat`.*`learning_rate`"),
        ('model = "m"\nlearning_rate = 1', "unknown key `learning_rate`"),
        ('model = "m"\nseed = "7"', "`seed` is '7'; it must be a whole number"),
        ('model = "m"\n[schedule]\nkind = "cosin"', "`schedule.kind` is 'cosin'; .* one of"),
        ('model = "m"\n[packing]\ntokens = 0', "packing.tokens is 0; it must be at least 1"),
        pytest.param(
            'model = "m"\n[optimizer]\nbetas = [0.9]',
            "optimizer.betas is .*two numbers",
            marks=pytest.mark.wrong_types,
        ),
        ('model = "m"\n[[data]]\nroot = "x"', "`data.path` is missing"),
        ("seed = 1", "`model` is missing"),
        ('model = "m"\noptimizer = 3', "`optimizer` is 3; it must be a table"),
        ('model = "m"\ncompile = 1', "`compile` is 1; it must be true or false"),
        (
            'model = "m"\nquantize = "nf4"',
            "decoder's own weights are trained; give lora.decoder_rank",
        ),
        ('model = "m"\nquantize = "nf4"\nfreeze.decoder = true', "nothing has adapters"),
        ('model = "m"\nquantize = "fp4"', "`quantize` is 'fp4'; it must be one of 'nf4'"),
        ('model = "m"\n[lora]\nalpha = 16', "lora has values but no adapters"),
        ('model = "m"\n[lora]\ndecoder_rank = -1', "lora.decoder_rank is -1"),
        ('model = "m"\n[lora]\nvision_rank = 4\nalpha = 0', "lora.alpha is 0.0; .* above 0"),
        ('model = "m"\n[lora]\nvision_rank = 4\ndropout = 1.0', "lora.dropout is 1.0"),
        ('model = "m"\nfrom_scratch = true\nlora.vision_rank = 4', "lora and from_scratch"),
        ('model = "m"\ntile_size = 224\nlora.vision_rank = 4', "tile_size is 224, .* adapters"),
        ('model = "m"\nmin_tiles = 2\nlora.vision_rank = 4', "min_tiles is 2, .* adapters"),
        ('model = "m"\nmin_tiles = 7', "min_tiles is 7; .* at most max_tiles, which is 6"),
        ('model = "m"\npreprocess = "quick"', "`preprocess` is 'quick'; it must be one of"),
        (
            'model = "m"\nfreeze.vision_last = 1\nlora.vision_rank = 4',
            "lora.vision_rank is 4 and freeze.vision_last is 1",
        ),
        ("model = ", "recipe.toml: Invalid value"),
    ],
)
def test_a_mistake_is_named_with_its_file_and_key(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text)


def test_a_whole_number_is_taken_where_a_number_is_wanted(tmp_path):
    assert read(tmp_path, 'model = "m"\n[schedule]\nepochs = 2').schedule.epochs == 2.0


def test_an_unknown_recipe_names_the_nearest_and_a_missing_file_says_so():
    with pytest.raises(ValueError, match="unknown recipe '8bb'; did you mean '8b'"):
        Recipe.read("8bb")
    with pytest.raises(FileNotFoundError, match=r"no recipe file nowhere.toml"):
        Recipe.read("nowhere.toml")
