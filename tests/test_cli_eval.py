"""`internvl2 eval`: what is printed, what is kept, what is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest

from internvl2.cli import main
from internvl2.cli.evaluate import MetricName
from internvl2.engine.engine import Engine
from internvl2.engine.sequence import SamplingParams
from internvl2.eval.metrics import METRICS
from internvl2.eval.suites import SUITES

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "tests/data/official/A_internlm2/checkpoint"
PICTURE = ROOT / "tests/data/official/preprocessing/pictures/gray.png"
USUAL = ("--model", str(MODEL), "--max-tokens", "3", "--dtype", "float32", "--device", "cpu")
QUESTION = {"question": "Hello", "answer": "hi"}


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


Evaluate = Callable[..., Ended]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three questions, one with a picture."""
    shutil.copy(PICTURE, tmp_path / "a.png")
    path = tmp_path / "q.jsonl"
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a square"}]
    records = [
        {"id": "x", "question": "Hello", "answers": ["hi", "hello"], "category": "easy"},
        {"image": "a.png", "conversations": turns, "category": "hard"},
        {"messages": [{"role": "user", "content": "Who?"}], "answer": "me", "category": "hard"},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def evaluate(capsys: pytest.CaptureFixture[str]) -> Evaluate:
    def run(*arguments: object) -> Ended:
        code = main(["eval", *map(str, arguments)])
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_every_metric_can_be_asked_for():
    assert get_args(MetricName) == tuple(METRICS)


def test_a_table_has_a_row_for_each_category_and_one_for_all(data: Path, evaluate: Evaluate):
    done = evaluate(data, *USUAL, "--metric", "contains", "--metric", "vqa_accuracy")
    head, *rows = done.out.splitlines()
    assert done.code == 0
    assert head.split() == ["answered", "cut", "off", "contains", "vqa_accuracy"]
    assert [row.split()[:2] for row in rows] == [["easy", "1/1"], ["hard", "2/2"], ["all", "3/3"]]


def test_the_report_holds_scores_and_settings(data: Path, tmp_path: Path, evaluate: Evaluate):
    done = evaluate(data, *USUAL, "--json", "--out", tmp_path / "out", "--suffix", "Say it.")
    report = json.loads(done.out)
    assert report == json.loads((tmp_path / "out/report.json").read_text())
    assert set(report["scores"]) == {"exact_match", "anls"}
    assert (report["questions"], report["answered"]) == (3, 3)
    assert report["settings"] == json.loads((tmp_path / "out/settings.json").read_text())
    assert report["settings"]["suffix"] == "Say it."
    first, *_ = lines_of(tmp_path / "out")
    assert first["question"] == "Hello Say it."
    assert (first["id"], first["answers"]) == ("x", ["hi", "hello"])
    assert set(first["scores"]) == {"exact_match", "anls"}


def test_answers_are_those_of_the_chat(data: Path, tmp_path: Path, evaluate: Evaluate):
    evaluate(data, *USUAL, "--out", tmp_path / "out")
    with Engine.load(MODEL, device="cpu", dtype="float32") as engine:
        text = engine.chat(params=SamplingParams(max_tokens=3)).ask("Hello").text
    assert lines_of(tmp_path / "out")[0]["text"] == text


def test_a_run_that_was_interrupted_asks_only_what_is_missing(
    data: Path, tmp_path: Path, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    whole = evaluate(data, *USUAL, "--out", out)
    before = lines_of(out)
    results = out / "results.jsonl"
    results.write_text("".join(results.read_text().splitlines(keepends=True)[:2]) + '{"line": 3')
    asked = []
    answers = Engine.answers
    monkeypatch.setattr(
        Engine, "answers", lambda self, r, *a: answers(self, [asked.append(q) or q for q in r], *a)
    )
    again = evaluate(data, *USUAL, "--out", out)
    assert len(asked) == 1
    assert (again, lines_of(out)) == (whole, before)


def test_other_metrics_and_fewer_questions_keep_the_answers(
    data: Path, tmp_path: Path, evaluate: Evaluate
):
    evaluate(data, *USUAL, "--out", tmp_path / "out")
    done = evaluate(data, *USUAL, "--out", tmp_path / "out", "--limit", 1, "--metric", "contains")
    assert done.out.splitlines()[-1].split()[:2] == ["all", "1/1"]
    assert [set(line["scores"]) for line in lines_of(tmp_path / "out")] == [{"contains"}] * 3


def test_a_question_that_cannot_be_answered_is_named_and_not_scored(
    tmp_path: Path, evaluate: Evaluate
):
    data = tmp_path / "q.jsonl"
    missing = {"image": "missing.png", **QUESTION}
    data.write_text(json.dumps(QUESTION) + "\n" + json.dumps(missing) + "\n")
    done = evaluate(data, *USUAL, "--out", tmp_path / "out")
    assert done.code == 1
    assert done.out.splitlines()[-1].split()[:2] == ["all", "1/2"]
    assert f"{data}:2: " in done.err
    assert "1 of 2 questions were not answered" in done.err
    shutil.copy(PICTURE, tmp_path / "missing.png")
    assert evaluate(data, *USUAL, "--out", tmp_path / "out").code == 0


@pytest.mark.parametrize(
    ("content", "options", "reason"),
    [
        (None, (), "does not exist"),
        ("{broken\n", (), "q.jsonl:1: not JSON"),
        ("", (), "holds no question"),
        ('{"question": "x"}\n', (), "q.jsonl:1: the record has no right answer"),
        (json.dumps(QUESTION), ("--metric", "iou"), "has no box, which iou needs"),
        (json.dumps(QUESTION), ("--metric", "bleu"), "bleu"),
        (json.dumps(QUESTION), ("--limit", "0"), "--limit is 0"),
        (json.dumps(QUESTION), ("--max-tokens", "0"), "--max-tokens is 0"),
        (json.dumps(QUESTION), ("--media-root", "nowhere"), "nowhere is not a folder"),
        (json.dumps(QUESTION), ("--out", __file__), "is a file; give a folder"),
        (json.dumps(QUESTION), ("--out", str(ROOT)), "something else than an evaluation"),
    ],
)
def test_bad_input_is_told_in_one_line(
    tmp_path: Path, evaluate: Evaluate, content: str | None, options: tuple[str, ...], reason: str
):
    data = tmp_path / "q.jsonl"
    if content is not None:
        data.write_text(content)
    done = evaluate(data, *USUAL, *options)
    assert (done.code, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert line.startswith("internvl2: error: ")
    assert reason in line


def test_other_settings_need_another_folder(data: Path, tmp_path: Path, evaluate: Evaluate):
    evaluate(data, *USUAL, "--out", tmp_path / "out")
    done = evaluate(data, *USUAL, "--out", tmp_path / "out", "--max-tiles", 6)
    assert done.code == 2
    assert "max_tiles None, but now it is 6; name another folder" in done.err


@pytest.mark.slow
def test_a_run_that_was_killed_keeps_its_answers(tmp_path: Path, evaluate: Evaluate):
    data, out = tmp_path / "q.jsonl", tmp_path / "out"
    records = [{"question": f"Count to {n}", "answer": "1"} for n in range(60)]
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    command = [sys.executable, "-m", "internvl2", "eval", str(data), *USUAL, "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        results = out / "results.jsonl"
        while process.poll() is None and (not results.exists() or not results.stat().st_size):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    kept = results.read_bytes().splitlines(keepends=True)
    assert kept
    assert evaluate(data, *USUAL, "--out", out).code == 0
    texts = {line["line"]: line["text"] for line in lines_of(out)}
    whole = [json.loads(line) for line in kept if line.endswith(b"\n")]
    assert len(texts) == 60
    assert all(texts[line["line"]] == line["text"] for line in whole)


def test_a_suite_has_a_row_for_each_part_with_its_own_metrics(evaluate: Evaluate, tmp_path: Path):
    suite = ("--suite", "nano", "--count", 1, "--max-tiles", 1)
    done = evaluate(*suite, *USUAL, "--json", "--out", tmp_path / "out")
    report = json.loads(done.out)
    scores = {row["name"]: list(row["scores"]) for row in report["categories"]}
    assert report["answered"] == len(scores) == len(SUITES["nano"])
    assert scores == {part.name: list(part.metrics) for part in SUITES["nano"]}
    assert report["settings"]["data"] == "nano, 1 of each part, difficulty 1"
    before = lines_of(tmp_path / "out")
    assert evaluate(*suite, *USUAL, "--json", "--out", tmp_path / "out") == done
    assert lines_of(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ((), "neither a file nor a suite of questions; give DATA.jsonl or --suite nano"),
        (("q.jsonl", "--suite", "nano"), "a file and a suite of questions"),
        (("--suite", "giga"), "unknown suite 'giga'; known: nano"),
        (("--suite", "nano", "--metric", "iou"), "--metric is for files of questions"),
        (("--suite", "nano", "--limit", 2), "--limit is for files of questions"),
        (("--suite", "nano", "--difficulty", 2), "--difficulty is 2"),
        (("q.jsonl", "--count", 5), "--count is for suites of questions"),
    ],
)
def test_a_suite_is_asked_for_in_one_way(
    evaluate: Evaluate, options: tuple[object, ...], reason: str
):
    done = evaluate(*options, *USUAL)
    assert (done.code, done.out) == (2, "")
    assert reason in done.err
