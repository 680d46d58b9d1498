"""Questions as they are read, asked, scored and kept."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from internvl2.checkpoint.store import Loaded, load
from internvl2.engine.engine import Engine
from internvl2.eval.evaluate import Asking, Validation, ask, score, summarise
from internvl2.eval.questions import Question, Reading, read_questions
from internvl2.eval.results import Given, Results, Settings
from internvl2.model.attention import PackedAttention
from internvl2.model.rotary import Positions
from internvl2.processing.conversation import Message, Picture, Video

MODEL = Path(__file__).parents[1] / "data/official/A_internlm2/checkpoint"
PICTURE = Path(__file__).parents[1] / "data/official/preprocessing/pictures/gray.png"
ANY = ("exact_match",)
SETTINGS = Settings(
    data="q.jsonl",
    data_digest="d",
    model="m",
    weights_digest="w",
    device="cpu",
    dtype="float32",
    max_context=None,
    max_tokens=8,
    max_tiles=12,
    fit=False,
    thinking=False,
    official_pictures=False,
    suffix="",
    media_root=None,
    frames=8,
    start=None,
    end=None,
)

Read = Callable[..., tuple[Question, ...]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read_records(*records: Any, metrics=ANY, reading: Reading | None = None):
        path = tmp_path / "q.jsonl"
        lines = [item if isinstance(item, str) else json.dumps(item) for item in records]
        path.write_text("".join(line + "\n" for line in lines))
        return read_questions(path, metrics, reading)

    return read_records


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load(MODEL, device="cpu", dtype="float32")


def plain(line: int, answer: str = "x", category: str | None = None) -> Question:
    return Question(line, 1, (Message.user("Hello"),), (answer,), category)


def test_a_plain_question_has_its_media_before_it(read: Read, tmp_path: Path):
    (question,) = read({"question": "What?", "images": ["a.png", "https://b/c.png"], "answer": 5})
    pictures = [part.source for part in question.messages[0].content if isinstance(part, Picture)]
    assert pictures == [tmp_path / "a.png", "https://b/c.png"]
    assert question.messages[0].text == "What?"
    assert question.answers == ("5",)


def test_every_answer_of_an_official_record_is_asked_for(read: Read, tmp_path: Path):
    turns = [("human", "<image>\nOne?"), ("gpt", "1"), ("human", "Two?"), ("gpt", "2")]
    conversations = [{"from": role, "value": text} for role, text in turns]
    first, second = read({"id": 9, "image": "a.png", "conversations": conversations})
    assert (first.key, first.answers, len(first.messages)) == ("1.1", ("1",), 1)
    assert (second.key, second.answers, len(second.messages)) == ("1.2", ("2",), 3)
    assert second.messages[1].text == "1"
    assert first.messages[0].content[0] == Picture(tmp_path / "a.png", inline=True)


def test_messages_end_with_a_question_where_answers_are_given(read: Read):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    (question,) = read({"messages": messages, "answers": ["me", "I"], "question_id": "q"})
    assert (question.answers, question.id) == (("me", "I"), "q")
    assert len(question.messages) == 2


def test_a_suffix_ends_the_last_question_only(read: Read):
    turns = [("human", "One?"), ("gpt", "1"), ("human", "Two?"), ("gpt", "2")]
    conversations = [{"from": role, "value": text} for role, text in turns]
    reading = Reading(suffix="Be brief.")
    _, second = read({"conversations": conversations}, reading=reading)
    assert second.messages[0].text == "One?"
    assert second.messages[2].text == "Two? Be brief."


def test_videos_are_looked_at_as_asked(read: Read, tmp_path: Path):
    reading = Reading(tmp_path / "media", num_frames=4, start=1.0)
    (question,) = read({"question": "What?", "video": "v.mp4", "answer": "x"}, reading=reading)
    (video,) = (part for part in question.messages[0].content if isinstance(part, Video))
    assert video == Video(tmp_path / "media" / "v.mp4", num_frames=4, start=1.0)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("{broken", "not JSON"),
        ("[", "an array begins; one JSON object on each line was expected"),
        ("[1]", "the line is a list"),
        ({"quest": "x"}, "none of conversations, messages, question"),
        ({"question": "x", "answer": "y", "imgae": "a.png"}, "unknown field 'imgae'"),
        ({"question": "x"}, "no right answer"),
        ({"question": " ", "answer": "y"}, "it must be a text"),
        ({"question": "x", "answer": ""}, "a right answer is empty"),
        ({"question": "x", "answers": []}, "answers is empty"),
        ({"question": "x", "answers": [None]}, "neither a text nor a number"),
        ({"question": "x", "answer": "y", "answers": ["y"]}, "both answer and answers"),
        ({"question": "x", "answer": "y", "image": 3}, "3 is no path"),
        ({"question": "x", "answer": "y", "category": 3}, "category is 3"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, "conversations[0].from is 'bot'"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(read: Read, tmp_path: Path, record: Any, reason: str):
    good = {"question": "x", "answer": "y"}
    with pytest.raises(ValueError, match=":3: ") as caught:
        read(good, "", record)
    assert str(caught.value).startswith(f"{tmp_path / 'q.jsonl'}:3: ")
    assert reason in str(caught.value)


def test_a_right_answer_that_the_metric_cannot_use_is_named(read: Read):
    with pytest.raises(ValueError, match=r":1: the answer 'cat' has no box, which iou needs"):
        read({"question": "x", "answer": "cat"}, metrics=("iou",))


def test_a_file_without_questions_is_an_error(read: Read):
    with pytest.raises(ValueError, match="holds no question"):
        read("")


def test_scores_are_means_by_category_and_over_all():
    questions = [plain(1, "a", "u"), plain(2, "b", "u"), plain(3, "c", "v"), plain(4, "d", "v")]
    given = {"1.1": Given("a", "stop"), "2.1": Given("x", "length"), "3.1": Given("C", "stop")}
    rows = summarise(questions, given, ANY)
    found = [(r.name, r.questions, r.answered, r.cut_off, r.scores["exact_match"]) for r in rows]
    assert found == [("u", 2, 2, 1, 0.5), ("v", 2, 1, 0, 1.0), ("all", 4, 3, 1, 2 / 3)]


def test_without_answers_there_are_no_scores():
    (row,) = summarise([plain(1)], {}, ANY)
    assert (row.answered, row.scores) == (0, {})


def test_the_models_own_answers_have_the_full_score(loaded: Loaded):
    asked = [plain(1), Question(2, 1, (Message.user(Picture(PICTURE), "What?"),), ("x",))]
    asking = Asking(max_tokens=4)
    with Engine(loaded.model, loaded.processor) as engine:
        texts = {one.index: one.answer.text for one in ask(engine, asked, asking) if one.answer}
        known = [replace(one, answers=(texts[i],)) for i, one in enumerate(asked)]
        scores = score(engine, loaded.processor, known, ["exact_match", "anls"], asking)
    assert scores == {"exact_match": 1, "anls": 1}


def test_a_model_in_training_is_left_as_it_was(loaded: Loaded, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(random, "getrandbits")  # what the engine draws seeds with
    model = loaded.model.train()
    model.vision.eval()
    before = torch.get_rng_state()
    validation = Validation([plain(1)], ANY, Asking(max_tokens=2))
    assert validation(model, loaded.processor, 10) == {"exact_match": 0}
    assert torch.equal(torch.get_rng_state(), before)
    assert model.decoder.training
    assert not model.vision.training


def test_a_model_can_be_trained_after_it_was_scored(loaded: Loaded):
    question = Question(1, 1, (Message.user(Picture(PICTURE), "What?"),), ("x",))
    score(loaded.model.train(), loaded.processor, [question], ANY, Asking(max_tokens=2))
    prompt = loaded.processor.encode(question.messages)
    tokens = torch.tensor(prompt.token_ids)
    positions, attend = Positions.packed([len(tokens)]), PackedAttention.of([len(tokens)])
    hidden = loaded.model(tokens, positions, torch.from_numpy(prompt.tiles), attend)
    loaded.model.logits(hidden).float().logsumexp(-1).sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.model.parameters())
    loaded.model.zero_grad(set_to_none=True)


def test_a_question_that_cannot_be_answered_ends_the_scoring(loaded: Loaded):
    missing = Question(7, 1, (Message.user(Picture("missing.png"), "What?"),), ("x",))
    with pytest.raises(ValueError, match=r"question 7\.1: .*missing\.png"):
        score(loaded.model, loaded.processor, [missing], ANY)


def test_answers_on_disk_are_found_again(tmp_path: Path):
    with Results(tmp_path / "out", SETTINGS) as results:
        results.add(plain(1), Given("a", "stop"))
        results.add(plain(2), Given("b\n", "length"))
    with Results(tmp_path / "out", SETTINGS) as results:
        assert results.given == {"1.1": Given("a", "stop"), "2.1": Given("b\n", "length")}


def test_a_half_written_answer_is_taken_off(tmp_path: Path):
    with Results(tmp_path, SETTINGS) as results:
        results.add(plain(1), Given("a", "stop"))
        results.add(plain(2), Given("b", "stop"))
    path = tmp_path / "results.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    with Results(tmp_path, SETTINGS) as results:
        assert list(results.given) == ["1.1"]
        results.add(plain(2), Given("b", "stop"))
    assert [json.loads(line)["line"] for line in path.read_text().splitlines()] == [1, 2]


def test_finished_results_are_in_order_and_scored(tmp_path: Path):
    questions = [plain(1, "a"), plain(2, "b")]
    with Results(tmp_path, SETTINGS) as results:
        results.add(questions[1], Given("b", "stop"))
        results.add(questions[0], Given("x", "stop"))
        results.finish(questions, lambda question: ANY, {"scores": {}})
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(line["text"], line["scores"]["exact_match"]) for line in lines] == [("x", 0), ("b", 1)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("report.json", "results.jsonl", "settings.json")
    ]


def test_answers_of_other_settings_are_not_mixed_in(tmp_path: Path):
    Results(tmp_path / "out", SETTINGS).close()
    with pytest.raises(ValueError, match="max_tiles 12, but now it is 6; name another folder"):
        Results(tmp_path / "out", replace(SETTINGS, max_tiles=6))


def test_a_folder_of_something_else_is_never_touched(tmp_path: Path):
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(ValueError, match="something else than an evaluation"):
        Results(tmp_path, SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]
