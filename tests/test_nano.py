"""The model in the package: it answers where none is named, and its answers have meaning.

Run as a program it prints which samples nano answers right, for RIGHT to be chosen from.
"""

import json
import sys
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import pytest

from internvl2 import Answer, Engine, SamplingParams
from internvl2.checkpoint.hub import resolve
from internvl2.cli import main
from internvl2.eval.suites import Drawn, Part, find
from internvl2.synthetic.catalogue import sample

RIGHT = {
    "text": 2,
    "document fields": 2,
    "charts": 0,
    "shapes": 0,
    "arithmetic": 0,
    "video direction": 2,
}
"""The number of a held-out sample of each part of the suite that nano answers to the letter."""
DIFFICULTY = 0.0
BRIEF = SamplingParams(max_tokens=24)
SHORT = ("--max-tokens", "24", "--device", "cpu")
NANO = resolve("nano")

pytestmark = pytest.mark.trained


@pytest.fixture(scope="module")
def nano() -> Iterator[Engine]:
    with Engine.load(device="cpu") as engine:
        yield engine


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Answer]:
    """Every answer that is given from now on, by any command."""
    given = []
    complete = Engine.answers

    def noting(self: Engine, *arguments: object):
        for answered in complete(self, *arguments):
            given.append(answered.answer)
            yield answered

    monkeypatch.setattr(Engine, "answers", noting)
    return given


def drawn(part: Part, number: int) -> Drawn:
    made = sample(part.task, number, "test", DIFFICULTY)
    assert part.takes(made)
    return Drawn(1, part, number, DIFFICULTY, (made.turns[0].answer,))


def asked(name: str) -> Drawn:
    (part,) = (part for part in find("nano") if part.name == name)
    return drawn(part, RIGHT[name])


def saved(question: Drawn, folder: Path) -> tuple[Path, str]:
    """The one picture of a sample as a file, and what is asked about it."""
    picture, text = question.messages[0].content
    picture.source.save(folder / "picture.png")
    return folder / "picture.png", text.text


@pytest.mark.parametrize("name", RIGHT)
def test_what_was_never_trained_on_is_answered_to_the_letter(nano: Engine, name: str):
    question = asked(name)
    assert nano.answer(question.messages, BRIEF).text == question.answers[0]


def test_the_first_command_of_a_newcomer_answers_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    question = asked("document fields")
    picture, text = saved(question, tmp_path)
    assert main(["chat", "--image", str(picture), text, *SHORT]) == 0
    said = capsys.readouterr()
    assert said.out == question.answers[0] + "\n"
    assert said.err.startswith("model: nano (in the package), 13.7M weights, bfloat16, cpu\n")


def test_every_command_gives_the_same_tokens(tmp_path: Path, answers: list[Answer]):
    picture, text = saved(asked("charts"), tmp_path)
    requests, results, data = (tmp_path / f"{name}.jsonl" for name in ("in", "out", "data"))
    request = {"image": picture.name, "question": text}
    requests.write_text(json.dumps(request))
    data.write_text(json.dumps(request | {"answer": "yes"}))
    assert main(["chat", "--json", "--image", str(picture), text, *SHORT]) == 0
    assert main(["generate", str(requests), str(results), *SHORT]) == 0
    assert main(["eval", str(data), *SHORT]) == 0
    one, *others = [(answer.prompt_token_ids, answer.token_ids) for answer in answers]
    assert others == [one, one]


@pytest.mark.slow
def test_its_own_suite_is_asked_without_naming_it(capsys: pytest.CaptureFixture[str]):
    options = ("--count", "1", "--max-tiles", "1", *SHORT)
    assert main(["eval", "--suite", "nano", "--json", *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["settings"]["model"] == "nano"
    assert report["answered"] == len(find("nano"))


def test_it_stays_small_and_says_what_it_is():
    assert (NANO / "README.md").is_file()
    assert sum(file.stat().st_size for file in NANO.iterdir()) < 30e6


def choices(engine: Engine, part: Part, among: int = 24) -> str:
    """The part's name, and the numbers that are answered right with their tiles."""
    fitting = (n for n in count() if part.takes(sample(part.task, n, "test", DIFFICULTY)))
    questions = [drawn(part, number) for number in islice(fitting, among)]
    given = engine.generate([one.messages for one in questions], BRIEF)
    right = (
        f"{one.number} ({answer.usage.image_tokens // engine.model.config.tokens_per_tile} tiles)"
        for one, answer in zip(questions, given, strict=True)
        if answer.text == one.answers[0]
    )
    return f"{part.name}: {', '.join(right) or 'none'}"


if __name__ == "__main__":
    with Engine.load(sys.argv[1] if sys.argv[1:] else "nano", device="cpu") as chosen:
        for part_of_suite in find("nano"):
            if part_of_suite.name in RIGHT:
                print(choices(chosen, part_of_suite), flush=True)
