"""The command line as a shell sees it: what it prints where, and with which exit code."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from internvl2.cli import main
from internvl2.cli.options import MediaOptions
from internvl2.cores import read_cores

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "tests/data/official/A_internlm2/checkpoint"
PICTURES = ROOT / "tests/data/official/preprocessing/pictures"
VIDEO = ROOT / "tests/data/official/preprocessing/video.mp4"
PICTURE = PICTURES / "wide_900x448.jpg"


@dataclass(frozen=True)
class Finished:
    code: int
    out: str
    err: str


Run = Callable[..., Finished]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command line in this process; `stdin` is piped in."""

    def run_main(*arguments: object, stdin: str = "") -> Finished:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Finished(code, captured.out, captured.err)

    return run_main


@pytest.fixture
def chat(run: Run) -> Run:
    """`internvl2 chat` with the small recorded model and a short answer."""

    def run_chat(*arguments: object, stdin: str = "") -> Finished:
        return run("chat", "--model", MODEL, "--max-tokens", 4, *arguments, stdin=stdin)

    return run_chat


def test_the_answer_alone_is_on_standard_output(chat: Run):
    done = chat("--image", PICTURE, "What is this?")
    about = json.loads(chat("--image", PICTURE, "What is this?", "--json").out)
    assert done.code == 0
    assert done.out == about["text"] + "\n"
    assert "tokens/s" in done.err


def test_json_gives_the_promised_fields(chat: Run):
    about = json.loads(chat("--json", "--image", PICTURE, "What is this?").out)
    assert list(about) == [
        *("model", "prompt_token_ids", "token_ids", "text", "finish_reason"),
        *("usage", "tiles", "timings"),
    ]
    assert about["usage"] == {
        "prompt_tokens": len(about["prompt_token_ids"]),
        "completion_tokens": 4,
        "image_tokens": 9 * 16,
    }
    assert about["tiles"] == [{"columns": 4, "rows": 2, "thumbnail": True}]
    assert set(about["timings"]) == {"load_s", "first_token_s", "tokens_per_s"}


@pytest.mark.parity
def test_the_ids_are_those_of_the_official_chat(run: Run, data: Callable[..., Path]):
    recorded = json.loads((data("official", "A_internlm2") / "expected.json").read_text())
    (expected,) = (one for one in recorded["runs"] if one["name"] == "text_only")
    question = expected["question"]
    done = run("chat", "--model", MODEL, "--dtype", "float32", "--json", question)
    ids = [i for i, count in expected["input_ids_rle"] for _ in range(count)]
    about = json.loads(done.out)
    assert about["prompt_token_ids"] == ids
    assert about["token_ids"][: len(expected["new_ids"])] == expected["new_ids"]


def test_the_question_comes_from_standard_input_where_none_is_given(chat: Run):
    assert chat(stdin="Who are you?\n").out == chat("Who are you?").out


def test_paddlemix_flags_work_as_they_are(run: Run, chat: Run):
    theirs = ("--model_name_or_path", MODEL, "--max_tokens", 4, "--text", "Hello")
    assert (
        run("chat", *theirs, "--image_path", PICTURE).out == chat("--image", PICTURE, "Hello").out
    )
    assert run("chat", *theirs, "--image_path", "None").out == chat("Hello").out
    assert run("chat", *theirs, "--video_path", VIDEO).out == chat("--video", VIDEO, "Hello").out


def test_the_word_none_is_a_system_text_like_any_other(chat: Run):
    without, with_word = (
        json.loads(chat("--json", *options, "Hi").out) for options in ((), ("--system", "None"))
    )
    assert len(with_word["prompt_token_ids"]) < len(without["prompt_token_ids"]) - 2


def test_a_terminal_without_chinese_letters_gets_escapes(run: Run, monkeypatch: Any):
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    assert run("chat", "--model", MODEL, "--max-tokens", 4, "Hi").code == 0
    narrow.seek(0)
    assert "\\u" in narrow.read()


def test_a_video_is_eight_frames_of_one_tile(chat: Run):
    about = json.loads(chat("--video", VIDEO, "--json", "What happens?").out)
    assert about["tiles"] == [{"columns": 1, "rows": 1, "thumbnail": False}] * 8


def test_several_pictures_are_given_one_by_one(chat: Run):
    one, two = PICTURES / "tiny_3x2.png", PICTURES / "gray.png"
    about = json.loads(chat("--image", one, "--image", two, "--max-tiles", 1, "--json", "Hi").out)
    assert len(about["tiles"]) == 2


def test_a_stop_text_ends_the_answer(chat: Run):
    whole = chat("Hello").out.rstrip("\n")
    stopped = json.loads(chat("Hello", "--json", "--stop", whole[1], "--stop", "never").out)
    assert stopped["text"] == whole.split(whole[1])[0]
    assert stopped["finish_reason"] == "stop"


def test_a_seed_repeats_a_sampled_answer(chat: Run):
    options = ("--temperature", 2, "--top-k", 50, "--seed", 7, "Hello")
    assert chat(*options).out == chat(*options).out


def test_boxes_are_drawn_over_the_one_picture(chat: Run, tmp_path: Path):
    target = tmp_path / "boxes.png"
    assert chat("--image", PICTURE, "--save-boxes", target, "Where?").code == 0
    assert target.stat().st_size > 0


@pytest.mark.parametrize("command", [("chat", "Hello", "--model"), ("info",)])
def test_an_empty_name_is_answered_with_the_models_there_are(run: Run, command: tuple[str, ...]):
    done = run(*command, "")
    assert done.code == 2
    for word in ("empty", "directory", "OpenGVLab/InternVL2-2B", "nano", "internvl2-1b"):
        assert word in done.err


def test_every_command_that_answers_names_its_model_once(run: Run, chat: Run, tmp_path: Path):
    (tmp_path / "in.jsonl").write_text('{"question": "Hello", "answer": "Hi"}\n')
    files = (tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    small = ("--model", MODEL, "--max-tokens", 2)
    ended = [
        *(chat("Hello"), chat("Hello", "--json")),
        *(run("generate", *files, *small), run("eval", files[0], *small)),
    ]
    line = rf"model: {re.escape(str(MODEL))}, 0\.\d+M weights, \w+, \w+(:\d)?"
    for done in ended:
        named = [one for one in done.err.splitlines() if "model" in one]
        assert len(named) == 1
        assert re.fullmatch(line, named[0])


def test_info_describes_the_built_in_model_where_none_is_named(run: Run):
    assert json.loads(run("info", "--json").out)["name"] == "nano"
    assert run("info").out == run("info", "nano").out


def test_info_says_what_a_device_would_be_used_with_and_why(run: Run):
    about = json.loads(run("info", "--device", "cpu", "--dtype", "fp32", "--json").out)
    assert about["device"] == "cpu"
    assert about["choices"]["number format"] == {"chosen": "float32", "why": "asked for"}
    lines = run("info", MODEL, "--device").out.splitlines()
    assert [line.split("  ")[1] for line in lines[1:4]] == [
        "number format",
        "attention, prefill",
        "attention, decode",
    ]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--device", "tpu"), "unknown device 'tpu'; known: cpu, cuda, cuda:N, npu, mps"),
        (("--dtype", "bf16"), "--dtype bf16 goes with --device"),
        (("--device", "cpu", "--dtype", "float64"), "'float64'; known: 'bfloat16', 'float16'"),
        (("--device", "cpu", "--adapter", "here"), "whatever the --adapter"),
    ],
)
def test_info_refuses_a_device_that_cannot_be(options: tuple[str, ...], complaint: str, run: Run):
    done = run("info", *options)
    assert done.code == 2
    assert complaint in done.err


def test_info_needs_no_more_than_a_config(run: Run, tmp_path: Path):
    shutil.copy(Path(MODEL) / "config.json", tmp_path)
    about = json.loads(run("info", str(tmp_path), "--json").out)
    assert about["parameters"] == json.loads(run("info", MODEL, "--json").out)["parameters"]
    assert about["special_tokens"]["<img>"] is None


def test_info_describes_a_member_and_a_checkpoint(run: Run):
    about = json.loads(run("info", "OpenGVLab/InternVL2-1B", "--json").out)
    assert about["parameters"]["total"] == 938_158_976
    assert about["memory"]["weights"] == 2 * about["parameters"]["total"]
    own = json.loads(run("info", MODEL, "--json").out)
    assert own["special_tokens"]["<IMG_CONTEXT>"] == 913
    lines = run("info", MODEL).out
    assert all(word in lines for word in ("parameters", "memory", "template", "<|im_end|> 909"))


def test_convert_writes_a_checkpoint_that_answers_the_same(run: Run, chat: Run, tmp_path: Path):
    target = tmp_path / "hf"
    done = run("convert", MODEL, target, "--layout", "hf")
    assert (done.code, done.out) == (0, "")
    answer = run("chat", "--model", target, "--max-tokens", 4, "--image", PICTURE, "Hi")
    assert answer.out == chat("--image", PICTURE, "Hi").out


def test_help_ends_with_zero_and_a_mistake_with_two(run: Run):
    assert run("--help").code == 0
    assert run("chat", "--help").code == 0
    mistake = run("chat", "--imagg", "x", "Hi")
    assert mistake.code == 2
    assert "--image" in mistake.err
    assert len(mistake.err.splitlines()) == 1


@pytest.mark.slow
def test_the_command_is_interrupted_with_130_and_ends_quietly_on_a_closed_pipe():
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "internvl2", "chat", "--model", str(MODEL)]
    command += ["--min-tokens", "20000", "--max-tokens", "20000", "Hello"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment}
    for provoke, code in ((lambda p: p.send_signal(signal.SIGINT), 130), (close_output, 141)):
        with subprocess.Popen(command, **pipes) as process:
            assert process.stdout is not None
            assert process.stdout.read(1)
            time.sleep(0.1)
            provoke(process)
            assert process.wait(200) == code
            assert process.stderr is not None
            assert b"Traceback" not in process.stderr.read()


def close_output(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.parametrize(
    ("given", "threads"),
    [
        ({}, str(read_cores().threads)),
        ({"OMP_NUM_THREADS": "5"}, "5"),
        ({"MKL_NUM_THREADS": "5"}, None),
    ],
)
def test_torch_has_a_thread_for_each_core_that_is_ours_unless_the_user_says_otherwise(
    given: dict[str, str], threads: str | None, monkeypatch: pytest.MonkeyPatch
):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    main(["--help"])
    assert os.environ.get("OMP_NUM_THREADS") == threads


def test_a_picture_is_cut_as_the_model_wants_it_unless_told():
    assert MediaOptions().encoding().max_tiles is None
    assert MediaOptions(max_tiles=3).encoding().max_tiles == 3


@pytest.mark.parametrize(("given", "spins"), [({}, "3000"), ({"OMP_WAIT_POLICY": "active"}, None)])
def test_threads_do_not_spin_for_long_unless_the_user_says_how_they_wait(
    given: dict[str, str], spins: str | None, monkeypatch: Any
):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    main(["--help"])
    assert os.environ.get("GOMP_SPINCOUNT") == spins
