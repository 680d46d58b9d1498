"""`internvl2 migrate`: where the recipe goes, where the report, and the exit code."""

import io
from pathlib import Path

import pytest

from internvl2.cli import main
from internvl2.train.recipe import Recipe

SOURCES = Path(__file__).parent / "sources"


def test_the_recipe_goes_to_a_file_and_the_report_to_standard_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "recipe.toml"
    script = str(SOURCES / "paddlemix_1b.sh")
    assert main(["migrate", script, "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    for words in ("translated (", "needs nothing here (", "--learning_rate 4e-5"):
        assert words in printed.err
    assert Recipe.read(out).packs_per_step == 64
    assert main(["migrate", script, "--out", str(out)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_what_has_no_counterpart_makes_the_exit_code_1(capsys: pytest.CaptureFixture[str]):
    command = "swift sft --model OpenGVLab/InternVL2-2B --neftune_noise_alpha 5"
    assert main(["migrate", "--gpus", "2", "--", *command.split()]) == 1
    printed = capsys.readouterr()
    assert 'model = "OpenGVLab/InternVL2-2B"  # --model' in printed.out
    assert "NO COUNTERPART (1)" in printed.err


def test_a_script_from_standard_input_is_started_with_given_variables(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    script = (SOURCES / "official_lora.sh").read_text()
    monkeypatch.setattr("sys.stdin", io.StringIO(script))
    assert main(["migrate", "-", "--set", "GPUS=1", "BATCH_SIZE=64"]) == 0
    assert "packs_per_step = 32" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["gone.sh"], "gone.sh is absent"),
        (["--gpus", "0", "--", "swift", "sft"], "gpus is 0; it must be at least 1"),
        (["--set", "GPUS", "--", "swift", "sft"], "--set GPUS: NAME=VALUE was expected"),
        (["--", "python", "train.py"], "there is no training command"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["migrate", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line
