"""`internvl2 train`: recipes by name and path, options over them, and a model that answers."""

import json
from pathlib import Path

import pytest

from internvl2.cli import main
from internvl2.cli.train import parse_train
from internvl2.train.recipe import DataSource, Recipe

RECIPE = """
model = "internvl2-1b"
packs_per_step = 1
workers = 0
[[data]]
path = "a.jsonl"
repeat = 2
"""
TINY = ("--packing.tokens", "128", "--packing.tiles", "4", "--packing.window", "2")
SHORT = ("--schedule.max-steps", "2", "--device", "cpu", "--max-tiles", "1")


@pytest.fixture
def recipe(tmp_path) -> Path:
    (tmp_path / "mine.toml").write_text(RECIPE)
    return tmp_path / "mine.toml"


@pytest.fixture
def samples(tmp_path) -> Path:
    turns = [{"from": "human", "value": "Say a."}, {"from": "gpt", "value": "a"}]
    (tmp_path / "data.jsonl").write_text((json.dumps({"conversations": turns}) + "\n") * 6)
    return tmp_path / "data.jsonl"


def test_an_option_changes_its_value_and_nothing_else(recipe):
    changed = parse_train([str(recipe), "--optimizer.learning-rate", "1e-5"]).settings
    expected = Recipe.read(recipe)
    assert changed.optimizer.learning_rate == 1e-5
    assert changed.data == expected.data == (DataSource("a.jsonl", repeat=2.0),)
    assert changed.schedule == expected.schedule


def test_data_can_be_named_on_the_command_line():
    changed = parse_train(
        ["2b", "--data", "a.jsonl", "b.json", "--freeze.vision", "False"]
    ).settings
    assert changed.data == (DataSource("a.jsonl"), DataSource("b.json"))
    assert changed.model == "internvl2-2b"
    assert not changed.freeze.vision


def test_a_trained_folder_answers_at_once(recipe, samples, data, tmp_path, capsys):
    model = str(data("official", "A_internlm2", "checkpoint"))
    out = str(tmp_path / "run")
    given = ["--model", model, "--data", str(samples), "--output", out, *SHORT, *TINY]
    assert main(["train", str(recipe), *given]) == 0
    assert f"internvl2 chat --model {out}" in capsys.readouterr().err
    assert Recipe.read(Path(out) / "recipe.toml").data == (DataSource(str(samples)),)
    assert main(["chat", "--model", out, "--device", "cpu", "--max-tokens", "2", "Say a."]) == 0
    assert main(["train", str(recipe), *given]) == 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["2c"], "unknown recipe '2c'"),
        (["nowhere/mine.toml"], "there is no recipe file nowhere/mine.toml"),
        (["--seed", "1", "2b"], "give the recipe before its options"),
        (["2b", "--optimizer.learning-rat", "1"], "--optimizer.learning-rate"),
        (["2b", "--packs-per-step", "0"], "packs_per_step is 0; it must be at least 1"),
        (["2b", "--schedule.kind", "sawtooth"], "sawtooth"),
    ],
)
def test_a_mistake_is_one_line(arguments, complaint, capsys):
    assert main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


def test_missing_data_is_one_line_and_can_be_put_right(recipe, samples, data, tmp_path, capsys):
    model = str(data("official", "A_internlm2", "checkpoint"))
    given = ["--model", model, "--output", str(tmp_path / "run"), *SHORT, *TINY]
    assert main(["train", str(recipe), *given, "--data", "nowhere.jsonl"]) == 2
    assert "nowhere.jsonl is absent" in capsys.readouterr().err
    assert main(["train", str(recipe), *given, "--data", str(samples)]) == 0


def test_answers_are_scored_while_training(recipe, samples, data, tmp_path):
    model = str(data("official", "A_internlm2", "checkpoint"))
    out = tmp_path / "run"
    asked = ["--validation.questions", str(samples), "--validation.every", "1"]
    given = ["--model", model, "--data", str(samples), "--output", str(out), *SHORT, *TINY]
    assert main(["train", str(recipe), *given, *asked]) == 0
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [set(r["scores"]) for r in records if "scores" in r] == [{"exact_match"}] * 2


def test_a_sample_that_cannot_be_used_is_one_line_or_a_note(
    recipe, samples, data, tmp_path, capsys
):
    model = str(data("official", "A_internlm2", "checkpoint"))
    with samples.open("a") as file:
        file.write('{"image": "a.png", "image": "b.png"}\n')
    out = tmp_path / "run"
    given = ["--model", model, "--data", str(samples), "--output", str(out), *SHORT, *TINY]
    given += ["--schedule.max-steps", "4"]
    assert main(["train", str(recipe), *given]) == 2
    reason = f"{samples}:7: the key 'image' is given twice in one object"
    assert capsys.readouterr().err.endswith(f"error: {reason}\n")
    assert (
        main(["train", str(recipe), *given, "--skip-bad-samples", "9", "--output", f"{out}2"]) == 0
    )
    assert f"left out {reason}" in capsys.readouterr().err
    assert "given twice" in (tmp_path / "run2" / "bad_samples.jsonl").read_text()


@pytest.mark.parametrize("member", ["E_qwen25_internvl2_5", "E2_internlm2_internvl2_5"])
def test_a_packaged_recipe_trains_members_of_later_families(member, samples, data, tmp_path):
    model = str(data("official", member, "checkpoint"))
    given = ["--model", model, "--data", str(samples), "--output", str(tmp_path / "run")]
    given += ["--packs-per-step", "1", "--workers", "0", *SHORT, *TINY]
    assert main(["train", "2b-paddlemix", *given]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["template"] == "internvl2_5"
