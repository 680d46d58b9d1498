"""The commands with which docs/training.md begins lead from ten pictures to a tuned model."""

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from internvl2.cli import main

PAGE = Path(__file__).parents[1] / "docs" / "training.md"
RECIPE_OPTIONS = ("--device", "cpu", "--workers", "0", "--packing.tokens", "1024")
"""A small model is trained in this process."""


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.M)


def commands() -> list[list[str]]:
    """Of the first block of shell commands, each in words."""
    lines = fenced("bash")[0].replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.strip()]


def write_samples(folder: Path) -> None:
    """Thirteen pictures, described as the page shows it; the last three are not trained on."""
    (example,) = (line for line in fenced("json")[0].splitlines() if line)
    folder.mkdir()
    for number in range(1, 14):
        name = ("valve", "pump")[number % 2]
        picture = Image.new("RGB", (112, 112), "white")
        pencil = ImageDraw.Draw(picture)
        shape = pencil.ellipse if name == "pump" else pencil.rectangle
        shape((number, number, 60 + 2 * number, 60 + 2 * number), fill=(15 * number, 0, 90))
        picture.save(folder / f"{number}.png")
        record = json.loads(example)
        record["image"] = f"{number}.png"
        record["conversations"][-1]["value"] = name
        file = "train.jsonl" if number <= 10 else "test.jsonl"
        with (folder / file).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")


def adapted(words: list[str], model: str) -> list[str]:
    """A command of the page for another model."""
    words = [model if word == "internvl2-2b" else word for word in words]
    if "2b-lora" in words:
        return [*words, "--model", model, *RECIPE_OPTIONS]
    return words if words[0] == "convert" else [*words, "--device", "cpu"]


@pytest.mark.slow
def test_every_command_from_ten_pictures_to_a_tuned_model_runs(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_samples(tmp_path / "mine")
    model = str(data("official", "A_internlm2", "checkpoint"))
    for words in commands():
        assert main(adapted(words, model)) == 0, (words, capsys.readouterr().err)
    assert (tmp_path / "mine.html").is_file()
    assert (tmp_path / "runs" / "mine" / "adapter_config.json").is_file()
    assert (tmp_path / "models" / "mine" / "config.json").is_file()
