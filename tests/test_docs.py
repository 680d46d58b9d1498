"""The documentation says what is there: commands, examples, the tree of modules, options, links.

Run as a program it writes the tree of modules in the README anew.
"""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "internvl2"
TREE = re.compile(r"(<!-- tree: .*? -->\n```text\n)(.*?)(```\n)", re.DOTALL)
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def first_line(module: Path) -> str:
    docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    return docstring.split("\n")[0].rstrip(".:")


def module_tree() -> str:
    """One line per module, folders after files, each with the first line of its docstring."""
    lines = ["src/internvl2/"]
    folders = sorted(path.parent for path in PACKAGE.rglob("__init__.py"))
    for folder in folders:
        indent = "  " * len(folder.relative_to(PACKAGE).parts)
        if folder != PACKAGE:
            name = f"{indent}{folder.name}/"
            lines.append(f"{name:<26} {first_line(folder / '__init__.py')}")
        for module in sorted(folder.glob("*.py")):
            if module.name != "__init__.py":
                name = f"{indent}  {module.name}"
                lines.append(f"{name:<26} {first_line(module)}")
    return "\n".join(line.rstrip() for line in lines) + "\n"


def fenced(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True, env=environment
    )


def test_the_tree_in_the_readme_is_that_of_the_modules():
    found = TREE.search((ROOT / "README.md").read_text(encoding="utf-8"))
    assert found is not None
    assert found[2] == module_tree()


def test_the_chinese_readme_has_the_same_commands():
    for language in ("bash", "sh", "python", "console"):
        assert fenced("README_zh.md", language) == fenced("README.md", language)


def test_the_first_screen_of_the_readme_has_the_two_commands():
    first_screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:40])
    assert first_screen.count("```bash\n") == 2
    for command in fenced("README.md", "bash"):
        assert command in first_screen
        assert "pip install -q -c constraints.txt -e" in command


@pytest.mark.trained
def test_the_first_question_of_the_readme_is_answered_as_it_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(ROOT)
    answer = asked(fenced("README.md", "bash")[0].splitlines()[-1], capsys)
    for page in ("README.md", "README_zh.md"):
        before, _ = (ROOT / page).read_text(encoding="utf-8").split("```bash\n", 1)
        assert f"`{answer.strip()}`" in before


@pytest.mark.slow
@pytest.mark.trained
def test_nano_gives_the_answers_that_the_readme_shows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(ROOT)
    (dialogue,) = fenced("README.md", "console")
    shown = dict(part.split("\n", 1) for part in dialogue.split("$ ")[1:])
    assert {line: asked(line, capsys) for line in shown} == shown


def asked(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command writes to standard output, on a CPU."""
    from internvl2.cli import main

    program, *arguments = shlex.split(command)
    assert program == "internvl2"
    assert main([*arguments, "--device", "cpu"]) == 0
    return capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.trained
def test_the_python_example_of_the_readme_answers_right():
    (example,) = fenced("README.md", "python")
    assert len(example.splitlines()) <= 12
    said = run(sys.executable, "-c", f"{example}\nprint([answer.text for answer in answers])")
    assert said.stdout.startswith("41.69\nFeb 8, 1997['A receipt.', 'A pie chart ")


def test_the_checks_run_the_commands_of_the_readme():
    checks = (ROOT / ".ci" / "run").read_text()
    assert "$(fenced 1)" in checks
    assert "$(fenced 2)" in checks


def test_links_between_pages_lead_somewhere():
    broken = [
        f"{page.name}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert broken == []


def test_files_that_pages_name_exist():
    faults = []
    for page in PAGES:
        for name in re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)`", page.read_text(encoding="utf-8")):
            if not any((base / name).exists() for base in (ROOT, PACKAGE, ROOT / "src")):
                faults.append(f"{page.name}: {name}")
    assert faults == []


@pytest.mark.parametrize(
    "command",
    [
        *("chat", "generate", "info", "convert", "eval", "migrate"),
        *("data make", "data check", "data convert", "bench latency", "bench throughput"),
    ],
)
def test_the_page_of_the_command_line_has_every_option(
    command: str, capsys: pytest.CaptureFixture[str]
):
    from internvl2.cli import main

    assert main([*command.split(), "--help"]) == 0
    options = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)) - {"--help"}
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert {option for option in options if f"`{option}" not in page} == set()


def totals() -> tuple[str, ...]:
    """The ten receipts with what was paid, as examples/batch.py writes it."""
    receipts = ROOT / "examples" / "receipts"
    files = [receipts / name for name in ("train.jsonl", "test.jsonl")]
    lines = [line for file in files for line in file.read_text("utf-8").splitlines()]
    records = [json.loads(line) for line in lines]
    return tuple(f"{r['image']} -> {r['answer'].split(', ')[1]}\n" for r in records)


@pytest.mark.slow
@pytest.mark.trained
@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("chat.py", ("41.69 (", "Feb 8, 1997\n")),
        ("video.py", ("lower left\n5 frames, 1280 visual tokens\n",)),
        ("batch.py", totals()),
    ],
)
def test_examples_are_short_and_answer_right(name: str, answers: tuple[str, ...]):
    example = ROOT / "examples" / name
    assert len(example.read_text().splitlines()) <= 40
    said = run(sys.executable, str(example)).stdout
    assert [answer for answer in answers if answer not in said] == []


def test_no_page_names_the_place_it_was_written_in():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        absolute = re.findall(r"file:/|(?<![\w.:/*}<-])/\w+/[\w/]*", text)
        assert set(absolute) <= {"/dev/shm"}, page


if __name__ == "__main__":
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(TREE.sub(rf"\g<1>{module_tree()}\g<3>", text), encoding="utf-8")
