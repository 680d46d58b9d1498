"""Recipes are read strictly, written back in full, and the package's own are as published."""

from pathlib import Path

import pytest

from internvl2.family import find
from internvl2.train.recipe import DataSource, Recipe, names


def read(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return Recipe.read(path)


def test_every_released_size_has_a_recipe():
    assert names() == ["1b", "26b", "2b", "40b", "4b", "76b", "8b"]


@pytest.mark.parametrize("name", names())
def test_a_packaged_recipe_names_a_member_and_has_the_published_values(name):
    recipe = Recipe.read(name)
    large = name in ("26b", "40b", "76b")
    assert find(recipe.model).name == recipe.model
    assert recipe.optimizer.learning_rate == (2e-5 if large else 4e-5)
    assert recipe.optimizer.weight_decay == (0.01 if name in ("1b", "2b", "4b") else 0.05)
    assert recipe.drop_path == (0.4 if large else 0.1)
    assert (recipe.freeze.vision, recipe.freeze.decoder, recipe.max_tiles) == (True, False, 6)


def test_what_is_written_reads_back_equal(tmp_path):
    data = (DataSource("a.jsonl", repeat=0.5), DataSource('b "quoted".jsonl', root="/x"))
    recipe = Recipe(model="m", data=data, dtype="float32", seed=7)
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
