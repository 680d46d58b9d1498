"""A conversation at the terminal: commands, pending pictures, mistakes, Ctrl-C."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from internvl2.cli.options import MediaOptions
from internvl2.cli.session import Session
from internvl2.engine.engine import Engine
from internvl2.engine.sequence import SamplingParams

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "tests/data/official/A_internlm2/checkpoint"
PICTURE = ROOT / "tests/data/official/preprocessing/pictures/gray.png"
VIDEO = ROOT / "tests/data/official/preprocessing/video.mp4"


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine.load(MODEL, device="cpu") as engine:
        yield engine


@pytest.fixture
def session(engine: Engine) -> Session:
    return Session(engine.chat(params=SamplingParams(max_tokens=3)), MediaOptions(), "small")


def roles(session: Session) -> list[str]:
    return [message.role for message in session.chat.messages]


def test_a_question_and_its_answer_are_remembered(
    session: Session, capsys: pytest.CaptureFixture[str]
):
    session.handle("Hello")
    assert roles(session) == ["user", "assistant"]
    assert capsys.readouterr().out == session.chat.messages[-1].text + "\n"


def test_pictures_and_a_video_belong_to_the_next_question_only(session: Session):
    session.handle(f"/image {PICTURE}")
    session.handle(f"/video '{VIDEO}'")
    session.handle("What is this?")
    assert len(session.chat.messages[0].content) == 3
    session.handle("And now?")
    assert len(session.chat.messages[2].content) == 1


def test_system_is_set_and_taken_back(session: Session):
    session.handle("/system Be brief.")
    assert roles(session) == ["system"]
    session.handle("/system")
    assert roles(session) == []


def test_retry_asks_the_last_question_again_with_its_picture(
    session: Session, capsys: pytest.CaptureFixture[str]
):
    session.handle(f"/image {PICTURE}")
    session.handle("What is this?")
    before = list(session.chat.messages)
    first = capsys.readouterr().out
    session.handle("/retry")
    assert session.chat.messages == before
    assert capsys.readouterr().out == first


def test_clear_forgets_turns_and_pending_pictures(session: Session):
    session.handle("Hello")
    session.handle(f"/image {PICTURE}")
    session.handle("/clear")
    assert session.chat.messages == []
    assert session.pictures == []


def test_a_saved_conversation_holds_its_messages(session: Session, tmp_path: Path):
    session.handle(f"/image {PICTURE}")
    session.handle("What is this?")
    session.handle(f"/save {tmp_path / 'saved.json'}")
    saved = json.loads((tmp_path / "saved.json").read_text())
    picture, text = saved["messages"][0]["content"]
    assert picture == {"type": "image_url", "image_url": {"url": str(PICTURE)}}
    assert text == {"type": "text", "text": "What is this?"}


@pytest.mark.parametrize(
    "line", ["/image missing.png", "/image", "/video nowhere", "/nonsense", "/retry", "/save"]
)
def test_mistakes_are_told(session: Session, line: str):
    with pytest.raises((ValueError, OSError)):
        session.handle(line)


def test_a_mistake_does_not_end_the_conversation(
    session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    lines = iter(["/nonsense", "Hello", "/help", "/quit", "never read"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    monkeypatch.setenv("XDG_STATE_HOME", "/nonexistent/state")
    session.run()
    said = capsys.readouterr()
    assert "error: unknown command /nonsense" in said.err
    assert "/retry" in said.err
    assert roles(session) == ["user", "assistant"]
    assert next(lines) == "never read"


def test_ctrl_c_stops_the_answer_and_keeps_question_and_session(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    session = Session(engine.chat(params=SamplingParams(max_tokens=500)), MediaOptions(), "small")
    session.pictures = [str(PICTURE)]
    original = type(session.chat).stream

    def stream_and_interrupt(*arguments: object) -> Iterator[object]:
        for output in original(*arguments):  # pyright: ignore[reportArgumentType]
            signal.raise_signal(signal.SIGINT)
            yield output

    monkeypatch.setattr(type(session.chat), "stream", stream_and_interrupt)
    session.handle("Hello")
    assert session.chat.messages == []
    assert session.pictures == [str(PICTURE)]
    assert "stopped" in capsys.readouterr().err
    assert not engine.has_work
