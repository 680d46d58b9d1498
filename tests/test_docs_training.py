"""The way from ten pictures to a tuned model that docs/training.md begins with, and its example.

Commands run as they stand, one after the other, in an empty folder, and print what the page shows.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import internvl2
from internvl2.checkpoint.config_files import read_config
from internvl2.checkpoint.hub import resolve
from internvl2.cli import main
from internvl2.config import InternVLConfig
from internvl2.model.internvl import InternVL
from internvl2.processing.processor import Processor

ROOT = Path(__file__).parents[1]
RECEIPTS = ROOT / "examples" / "receipts"
WALK, FLAGS = "From ten pictures to a tuned model", "Nano learns flags"
GAIN = 0.3
"""Of exact answers, in the short version of what the page does in more steps."""


def section(title: str) -> str:
    page = (ROOT / "docs" / "training.md").read_text("utf-8")
    return page.split(f"## {title}\n")[1].split("\n## ")[0]


def fenced(language: str, title: str = WALK) -> list[str]:
    """What stands in blocks of that language in a section of the page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", section(title), re.DOTALL | re.MULTILINE)


def commands(title: str = WALK) -> list[str]:
    joined = "".join(fenced("bash", title)).replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip()]


def make_nano(folder: Path) -> None:
    """A checkpoint with nano's vocabulary and template, a fraction of its size, untrained."""
    embedded = resolve("nano", weights=False)
    config = shrunk(read_config(embedded))
    torch.manual_seed(0)
    model = InternVL(config).to(torch.bfloat16)
    internvl2.save(model, Processor.from_directory(embedded, config), folder, "opengvlab")


def shrunk(config: InternVLConfig) -> InternVLConfig:
    return replace(
        config,
        vision=replace(
            config.vision, hidden_size=32, num_layers=1, num_heads=1, intermediate_size=32
        ),
        decoder=replace(
            config.decoder,
            hidden_size=32,
            num_layers=2,
            num_heads=2,
            num_kv_heads=1,
            head_dim=16,
            intermediate_size=32,
        ),
    )


def run(line: str) -> int:
    words = shlex.split(line)
    if words[0] == "internvl2":
        return main(words[1:])
    done = subprocess.run(line, shell=True, check=False, capture_output=True, text=True)
    print(done.stdout, end="")
    return done.returncode


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_the_page_shows_the_first_lines_of_the_files():
    shown = fenced("json")
    for name, block in zip(("train.jsonl", "boxes.jsonl"), shown, strict=True):
        assert block.splitlines() == (RECEIPTS / name).read_text("utf-8").splitlines()[:2]


def test_held_out_receipts_are_in_no_training_file():
    learned = {
        r["image"] for name in ("train", "boxes") for r in records(RECEIPTS / f"{name}.jsonl")
    }
    held_out = {r["image"] for r in records(RECEIPTS / "test.jsonl")}
    assert (len(learned), len(held_out)) == (8, 2)
    assert learned | held_out == {picture.name for picture in RECEIPTS.glob("*.jpg")}


@pytest.mark.trained
@pytest.mark.slow
def test_every_command_from_ten_pictures_to_a_tuned_model_prints_what_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    printed = ""
    for line in commands():
        assert run(line) == 0, (line, capsys.readouterr().err)
        said = capsys.readouterr().out
        assert said.strip() or " chat " not in line, line
        printed += said
    lookup, before, losses, after, box = fenced("text")
    for shown in (lookup, before, after):
        assert shown in printed
    assert [json.loads(line)["step"] for line in losses.splitlines()] == [4, 8, 12, 16]
    assert re.sub(r"\d+", "0", box) in re.sub(r"\d+", "0", printed)
    assert printed.count("\n*  LoRA r16, features kept ") == 1
    assert printed.count("\n*  LoRA r16 ") == 1
    check_files(tmp_path)


def check_files(folder: Path) -> None:
    """What the page says that each command leaves."""
    assert "Vogel Sports" in (folder / "receipts.html").read_text("utf-8")
    assert "759" in (folder / "boxes.html").read_text("utf-8")
    tuned = folder / "runs" / "receipts"
    logged = records(tuned / "metrics.jsonl")
    measured = {record["step"]: record["scores"]["loss"] for record in logged if "scores" in record}
    assert list(measured) == [4, 8, 12, 16]
    assert measured[4] > 0.2 > 0.05 > measured[16]
    assert len([record for record in logged if "tokens" in record]) == 16
    assert (tuned / "loss.png").is_file()
    for adapter in (tuned, tuned / "best"):
        described = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
        assert described["base_model_name_or_path"].endswith("nano")
    assert (folder / "total.png").is_file()
    config = json.loads((folder / "receipts-hf" / "config.json").read_text("utf-8"))
    assert config["architectures"] == ["InternVLForConditionalGeneration"]


@pytest.mark.slow
def test_every_command_of_the_lesson_in_flags_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_nano(tmp_path / "nano")
    monkeypatch.chdir(tmp_path)
    fewer = {"--count 600": "--count 12", "--count 100": "--count 3"}
    for line in lesson(fewer):
        tiny = line if " data make " in line else f"{line} --model ./nano"
        assert run(tiny) == 0, tiny
    assert len(records(tmp_path / "flags-test" / "samples.jsonl")) == 3
    assert (tmp_path / "runs" / "flags" / "adapter_model.safetensors").is_file()
    assert any((tmp_path / "runs" / "nano-features").iterdir())


@pytest.mark.trained
@pytest.mark.slow
def test_nano_learns_flags_that_it_has_not_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The lesson with fewer pictures, each seen as often."""
    monkeypatch.chdir(tmp_path)
    fewer = {"--count 600": "--count 320", "--count 100": "--count 50"}
    exact = []
    for line in lesson(fewer):
        asked = " eval " in line
        assert run(f"{line} --json" if asked else line) == 0, (line, capsys.readouterr().err)
        printed = capsys.readouterr().out
        if asked:
            exact.append(json.loads(printed)["scores"]["exact_match"])
    before, after = exact
    assert before < 0.1
    assert after - before >= GAIN


def lesson(fewer: dict[str, str]) -> list[str]:
    """The commands of the lesson in flags, with smaller sets."""
    text = "\n".join(commands(FLAGS))
    assert all(count in text for count in fewer)
    for count, smaller in fewer.items():
        text = text.replace(count, smaller)
    return text.splitlines()


@pytest.mark.trained
@pytest.mark.slow
def test_the_example_of_fine_tuning_is_short_and_answers_right(tmp_path: Path):
    example = ROOT / "examples" / "finetune.py"
    assert len(example.read_text().splitlines()) <= 40
    done = subprocess.run(
        [sys.executable, str(example)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "Clark Florist, £79.80\n"
    assert (tmp_path / "tuned" / "adapter_model.safetensors").is_file()


def test_the_plan_on_the_page_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]):
    first, *shown = fenced("text", "Planning")[0].splitlines()
    assert run(first.removeprefix("$ ")) == 0
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == shown
