"""`internvl2 train RECIPE --plan`: a table, one choice, and the command that trains so."""

import json
import shlex
from pathlib import Path

import pytest

from internvl2.cli import main
from internvl2.cli.plan import PlanTraining, changing_the_recipe
from internvl2.cli.train import TrainRecipe, parse_train
from internvl2.train.planning.machine import known
from internvl2.train.planning.plan import make_plan
from internvl2.train.planning.strategies import trains_the_same

CARD = ("--plan-device", "h100")
MORE_MISTAKES = [
    (["--plan", "--plan-gpus", "0"], "--plan-gpus is 0; it must be at least 1"),
    (["--plan", "--plan-memory", "0.5"], "--plan-memory is 0.5; it must be above 0.75 GiB"),
    (["--plan", "--model", "internvl2-9b"], "unknown model 'internvl2-9b'"),
    (["--plan", "--model", "./none"], "there is no directory ./none"),
]


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["train", *arguments]) == 0
    return capsys.readouterr().out


def test_the_table_marks_one_way_and_ends_with_its_command(capsys: pytest.CaptureFixture[str]):
    out = planned(capsys, "nano", "--plan", *CARD, "--freeze.vision", "True")
    lines = out.splitlines()
    assert lines[0] == "nano on h100, 78.5 GiB free"
    headings = ["trained", "recomputed", "moments", "GiB", "fits", "tokens/s"]
    assert [heading for heading in headings if heading not in lines[1]] == []
    assert [line.split("  ")[1].strip() for line in lines if line.startswith("*")] == [
        "vision frozen"
    ]
    assert lines[-1] == "internvl2 train nano --freeze.vision True"


def test_the_table_says_which_ways_keep_features_and_what_that_means(
    capsys: pytest.CaptureFixture[str],
):
    changes = ("--synthetic", "--data", "a.jsonl", "--freeze.vision", "True")
    kept = (*changes, "--feature-cache", "features")
    lines = planned(capsys, "nano", "--plan", *CARD, *kept).splitlines()
    told = [line for line in lines if "features kept" in line]
    assert [line[3:].split("  ")[0] for line in told[:-1]] == [
        "the recipe as it is, features kept",
        "vision frozen, features kept",
        "decoder alone, features kept",
        "LoRA r16, features kept",
        "QLoRA r16, features kept",
    ]
    assert "for new ones the vision tower runs, too" in told[-1]
    assert "features kept" not in planned(capsys, "nano", "--plan", *CARD, *changes)


def test_the_command_trains_what_was_picked(capsys: pytest.CaptureFixture[str]):
    changes = ("--data", "a b.jsonl", "--packing.tokens=8192")
    out = planned(capsys, "nano", *changes, "--plan", "--json", *CARD, "--plan-memory=3")
    found = json.loads(out)
    program, verb, *arguments = shlex.split(found["command"])
    assert (program, verb) == ("internvl2", "train")
    again, asked = parse_train(arguments), parse_train(["nano", *changes, "--plan"])
    assert isinstance(again, TrainRecipe)
    assert isinstance(asked, PlanTraining)
    assert asked.settings.data == again.settings.data
    assert trains_the_same(again.settings, asked.settings)
    picked = next(o for o in found["options"] if o["strategy"] == found["pick"])
    whole = make_plan(again.settings, known("h100")).given.memory.total
    assert whole / 2**30 == pytest.approx(picked["gib"]["total"], abs=0.01)


@pytest.mark.slow
def test_several_gpus_are_started_with_torchrun(capsys: pytest.CaptureFixture[str]):
    out = planned(capsys, "nano", "--plan", *CARD, "--plan-gpus", "4")
    assert out.splitlines()[0] == "nano on 4 x h100, 78.5 GiB free"
    assert "\ntorchrun --nproc-per-node 4 -m internvl2 train nano" in out


@pytest.mark.slow
def test_where_nothing_fits_the_least_need_is_told(capsys: pytest.CaptureFixture[str]):
    assert main(["train", "nano", "--plan", "--plan-memory", "1"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("nothing fits; the least is ")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--plan-gpus", "2"], "--plan-gpus is given without --plan"),
        (["--plan", "--plan-device", "h101"], "unknown device 'h101'; known: b200, h200"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE_MISTAKES),
    ],
)
def test_a_wrong_question_is_answered_with_one_line(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["train", "nano", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line


def test_options_that_are_about_planning_are_no_part_of_the_command():
    given = ["--plan", "--plan_memory", "80", "--plan-gpus=2", "--data", "x", "--json", "--seed=1"]
    assert changing_the_recipe(given) == ["--data", "x", "--seed=1"]


@pytest.mark.slow
def test_a_plan_for_this_machine_needs_nothing_but_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "nano", "--plan"]) in (0, 1)
    assert capsys.readouterr().out.startswith("nano on ")
    assert list(tmp_path.iterdir()) == []
