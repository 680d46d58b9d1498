"""`internvl2 bench`: tables, JSON, and options that do not go together."""

import json
from pathlib import Path

import pytest

from internvl2.cli import main

MODEL = str(Path(__file__).parent / "data/official/A_internlm2/checkpoint")
SMALL = ["--model", MODEL, "--device", "cpu", "--rounds", "1", "--tokens", "3"]


def test_latency_is_a_table(capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "latency", *SMALL, "--size", "60x40"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "0.322M weights, float32" in said[0]
    assert "threads, torch " in said[1]
    assert "GB/s of weights" in said[2]
    assert sum(line.startswith("first token, ") for line in said) == 3
    assert said[-1].startswith("next tokens, batch 1")


@pytest.mark.trained
def test_nano_is_measured_with_its_own_weights_unless_another_is_named(
    capsys: pytest.CaptureFixture[str],
):
    few = ["--device", "cpu", "--rounds", "1", "--tokens", "3", "--text-only"]
    assert main(["bench", "latency", *few]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("nano (in the package): 13.7M weights, ")
    assert "GB/s of weights" in said[2]


def test_throughput_is_an_object_for_programs(capsys: pytest.CaptureFixture[str]):
    options = ["--requests", "2", "--frames", "2", "--preprocess", "fast", "--json"]
    assert main(["bench", "throughput", *SMALL, *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["conditions"]["device"] == "cpu"
    assert found["conditions"]["load_s"] > 0
    whats = {row["what"] for row in found["rows"]}
    assert whats == {"2 x video of 2 frames, 3 tokens out"}
    assert [row["unit"] for row in found["rows"]] == ["requests/s", "tokens/s"]


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("latency --size 12", "'12' is not WIDTHxHEIGHT"),
        ("latency --text-only --frames 2", "--text-only asks without pictures"),
        ("latency --random --model 2b --offline", "--offline goes with weights that are loaded"),
        ("latency --random --revision main", "--revision goes with weights that are loaded"),
        ("latency --tokens 1", "--tokens is 1"),
        ("throughput --requests 0", "--requests is 0"),
        ("throughput --size 9x9 --frames 2", "--size and --frames are both given"),
        ("throughput --random --model 3b", "unknown model 'internvl2-3b'"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    command: str, complaint: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["bench", *command.split()]) == 2
    assert complaint in capsys.readouterr().err
