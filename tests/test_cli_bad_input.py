"""Whatever is given, the command line answers a mistake with one clear line and exit code 2."""

import io
import json
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from internvl2.cli import main

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "tests/data/official/A_internlm2/checkpoint"
PICTURE = ROOT / "tests/data/official/preprocessing/pictures/wide_900x448.jpg"
VIDEO = ROOT / "tests/data/official/preprocessing/video.mp4"

Complaint = Callable[..., str]


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Complaint:
    """The one line that a command ends with; fails where it ends well or says more."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO(""))
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert (code, captured.out) == (2, "")
        (line,) = captured.err.splitlines()
        assert line.startswith("internvl2: error: ")
        return line

    return run


@pytest.fixture
def chat_complaint(complaint: Complaint) -> Complaint:
    def run(*arguments: object) -> str:
        return complaint("chat", "--model", MODEL, "--max-tokens", 2, *arguments, "Hello")

    return run


def png_bomb() -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50000, 50000, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


BROKEN_FILES = {
    "truncated.jpg": PICTURE.read_bytes()[:5000],
    "empty.jpg": b"",
    "words.jpg": b"these are words",
    "bomb.png": png_bomb(),
    "truncated.mp4": VIDEO.read_bytes()[:200],
}


@pytest.mark.parametrize("kind", ["--image", "--video"])
@pytest.mark.parametrize("name", [*BROKEN_FILES, "missing", "folder"])
def test_broken_media_are_named(chat_complaint: Complaint, tmp_path: Path, kind: str, name: str):
    (tmp_path / "folder").mkdir()
    if name in BROKEN_FILES:
        (tmp_path / name).write_bytes(BROKEN_FILES[name])
    assert name in chat_complaint(kind, tmp_path / name)


@pytest.mark.parametrize(
    "option",
    [
        *("--max-tiles 0", "--max-tiles 99999999", "--max-tiles x", "--frames 0", "--frames 99999"),
        *("--start -1", "--start nan", "--start 5 --end 2", "--end 0", "--start 100"),
        *("--temperature nan", "--temperature -1", "--top-p 0", "--top-p 1.5", "--top-k -1"),
        *("--min-p 2", "--repetition-penalty 0", "--max-tokens 0", "--min-tokens 5", "--seed x"),
        *("--dtype int8", "--device abacus", "--max-context 0", "--max-context 20", "--stop="),
        *("--no-repeat-ngram-size -1", "--presence-penalty inf", "--nonsense"),
    ],
)
def test_options_without_sense_are_refused(chat_complaint: Complaint, option: str):
    chat_complaint("--video", VIDEO, *option.split())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "",
            "a command is missing; known: chat, generate, info, convert, train, eval, bench, "
            "data, migrate; "
            "see internvl2 --help",
        ),
        ("chat --bogus hi", "unknown option --bogus; see internvl2 chat --help"),
        ("chat --imag x", "unknown option --imag; did you mean --image-path or --image?"),
        ("eval a.jsonl --show 1", "unknown option --show; see internvl2 --help"),
        ("chat a b c", "not understood: b, c; see internvl2 chat --help"),
        ("chat --dtype int3", "--dtype is 'int3'; known: 'bfloat16', 'float16', 'float32', 'bf16'"),
        ("chat --seed x", "--seed is 'x', not a whole number; see internvl2 chat --help"),
        ("chat --start x", "--start is 'x', not a number; see internvl2 chat --help"),
        ("chat --max-tiles", "--max-tiles needs a value; see internvl2 chat --help"),
        ("generate", "missing: IN.jsonl, OUT.jsonl; see internvl2 generate --help"),
        ("frobnicate", "not understood: frobnicate; known commands: chat, generate, info, convert"),
    ],
)
def test_mistyped_commands_are_told_in_plain_words(complaint: Complaint, line: str, expected: str):
    assert complaint(*line.split()).startswith(f"internvl2: error: {expected}")


@pytest.mark.parametrize("option", ["--image", "--video", "--model"])
def test_an_empty_path_is_not_the_current_folder(complaint: Complaint, option: str):
    line = complaint("chat", "--model", MODEL, option, "", "Hello")
    assert "empty" in line


@pytest.mark.parametrize("option", ["--text", "--system"])
def test_a_text_that_is_not_unicode_is_refused(complaint: Complaint, option: str):
    question = [] if option == "--text" else ["Hello"]
    assert "not valid Unicode" in complaint(
        "chat", "--model", MODEL, option, "caf\udce9", *question
    )


@pytest.mark.parametrize("pictures", [0, 2])
def test_boxes_need_exactly_one_picture(chat_complaint: Complaint, tmp_path: Path, pictures: int):
    given = ["--image", PICTURE] * pictures
    assert "exactly one picture" in chat_complaint(*given, "--save-boxes", tmp_path / "boxes.png")


def test_boxes_need_a_picture_file_in_a_folder_that_exists(
    chat_complaint: Complaint, tmp_path: Path
):
    for target in (
        tmp_path / "boxes.xyz",
        tmp_path / "boxes.mpg",
        tmp_path / "nowhere" / "boxes.png",
    ):
        assert str(target) in chat_complaint("--image", PICTURE, "--save-boxes", target)


def test_a_question_is_needed_once(complaint: Complaint):
    assert "empty" in complaint("chat", "--model", MODEL)
    assert "empty" in complaint("chat", "--model", MODEL, "  ")
    assert "twice" in complaint("chat", "--model", MODEL, "a", "--text", "b")


@pytest.mark.parametrize("command", ["chat", "info"])
def test_models_that_do_not_exist_are_named(complaint: Complaint, command: str):
    for model in ("/nowhere", "internvl9-1b", VIDEO, PICTURE.parent):
        arguments = [command, "--model", model, "Hi"] if command == "chat" else [command, model]
        assert str(model) in complaint(*arguments)


def damage(file: Path, kind: str) -> None:
    content = file.read_bytes()
    if kind == "missing":
        file.unlink()
    elif kind == "fields":
        record = json.loads(content)
        changed = {key: 1 if isinstance(value, dict) else "x" for key, value in record.items()}
        file.write_text(json.dumps(changed))
    else:
        damaged = {"empty": b"", "half": content[: len(content) // 2], "list": b"[]"}
        file.write_bytes(damaged[kind])


@pytest.mark.parametrize("kind", ["missing", "empty", "half", "list", "fields"])
@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors.index.json", "tokenizer_config.json"]
)
def test_damaged_checkpoints_are_named(complaint: Complaint, tmp_path: Path, name: str, kind: str):
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    damage(model / name, kind)
    assert str(model) in complaint("chat", "--model", model, "--max-tokens", 2, "Hi")


@pytest.mark.parametrize("kind", ["missing", "empty", "half"])
@pytest.mark.parametrize("name", ["model-00002-of-00004.safetensors", "tokenizer.model"])
def test_damaged_weights_and_vocabularies_are_named(
    complaint: Complaint, tmp_path: Path, name: str, kind: str
):
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    damage(model / name, kind)
    assert str(model) in complaint("chat", "--model", model, "--max-tokens", 2, "Hi")


def test_a_device_without_memory_is_one_line_but_a_fault_of_ours_is_not_hidden(
    chat_complaint: Complaint, monkeypatch: pytest.MonkeyPatch
):
    from internvl2.engine.engine import Engine

    def fail(text: str) -> Callable[..., None]:
        def load(*_: object, **__: object) -> None:
            raise RuntimeError(text)

        return load

    monkeypatch.setattr(Engine, "load", fail("CUDA out of memory.\nTried to allocate 9 GiB"))
    assert "Tried to allocate" in chat_complaint()
    monkeypatch.setattr(Engine, "load", fail("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        chat_complaint()


def test_convert_overwrites_nothing(complaint: Complaint, tmp_path: Path):
    assert "not empty" in complaint("convert", MODEL, MODEL, "--layout", "hf")
    (tmp_path / "file").write_text("mine")
    complaint("convert", MODEL, tmp_path / "file", "--layout", "hf")
    assert (tmp_path / "file").read_text() == "mine"
