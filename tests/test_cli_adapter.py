"""Adapters on the command line: beside a model, as the model, merged for other programs."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from internvl2.checkpoint.config_files import read_config
from internvl2.checkpoint.lora_writing import Base, Parts, write_adapter
from internvl2.checkpoint.source import open_checkpoint
from internvl2.checkpoint.store import choose_quantization, load_model, load_share
from internvl2.cli import main
from internvl2.engine.engine import Engine
from internvl2.engine.sequence import SamplingParams
from internvl2.model.lora import LoraSettings, add_lora, is_adapter
from internvl2.model.low_bit import quantize_for_answers
from internvl2.model.tensor_parallel import Share
from internvl2.processing.conversation import Message

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "tests/data/official/A_internlm2/checkpoint"
OTHER = ROOT / "tests/data/official/B_qwen2/checkpoint"
QUESTION = "What is this?"


@dataclass(frozen=True)
class Finished:
    code: int
    out: str
    err: str


Run = Callable[..., Finished]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def run_main(*arguments: object) -> Finished:
        monkeypatch.setattr(sys, "stdin", StringIO())
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Finished(code, captured.out, captured.err)

    return run_main


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the small recorded model's decoder, which changes its answers."""
    model, config = load_model(MODEL), read_config(MODEL)
    parts = Parts(LoraSettings(2, 4.0))
    add_lora(model, parts.decoder)
    noise = torch.Generator().manual_seed(0)
    trained = {
        name: parameter + torch.randn(parameter.shape, generator=noise)
        for name, parameter in model.named_parameters()
        if is_adapter(name)
    }
    base = Base(str(MODEL), open_checkpoint(MODEL, config).fingerprint(config))
    target = tmp_path_factory.mktemp("adapters") / "mine"
    write_adapter(trained, config, parts, base, target)
    return target


@pytest.fixture(scope="module")
def answer(adapter: Path) -> str:
    """What base and adapter say together."""
    with Engine.load(MODEL, adapter=adapter, device="cpu") as engine:
        return engine.answer([Message.user(QUESTION)], SamplingParams(max_tokens=4)).text


def test_chat_answers_from_a_model_and_an_adapter_at_once(run: Run, adapter: Path, answer: str):
    asked = ("--max-tokens", 4, QUESTION)
    both = run("chat", "--model", MODEL, "--adapter", adapter, *asked)
    assert both.out == answer + "\n"
    assert run("chat", "--model", adapter, *asked).out == both.out
    assert run("chat", "--model", MODEL, *asked).out != both.out


def test_generate_and_eval_take_an_adapter(run: Run, adapter: Path, answer: str, tmp_path: Path):
    asked, quiz = tmp_path / "asked.jsonl", tmp_path / "quiz.jsonl"
    asked.write_text(json.dumps({"question": QUESTION}) + "\n")
    quiz.write_text(json.dumps({"question": QUESTION, "answers": [answer]}) + "\n")
    loading = ("--model", MODEL, "--adapter", adapter, "--max-tokens", 4)
    run("generate", asked, tmp_path / "answers.jsonl", *loading)
    assert json.loads((tmp_path / "answers.jsonl").read_text())["text"] == answer
    report = json.loads(run("eval", quiz, *loading, "--json").out)
    assert report["scores"]["exact_match"] == 1
    assert report["settings"]["adapter"] == str(adapter)


def test_convert_merges_an_adapter(run: Run, adapter: Path, answer: str, tmp_path: Path):
    asked = ("--max-tokens", 4, QUESTION)
    run("convert", adapter, tmp_path / "own", "--layout", "opengvlab")
    run("convert", MODEL, tmp_path / "given", "--layout", "hf", "--adapter", adapter)
    for merged in ("own", "given"):
        assert run("chat", "--model", tmp_path / merged, *asked).out == answer + "\n"


def test_info_describes_an_adapter_beside_its_base(run: Run, adapter: Path):
    about = json.loads(run("info", adapter, "--json").out)
    assert about["name"] == str(MODEL)
    assert (about["adapter"]["rank"], about["adapter"]["alpha"]) == (2, 4)
    assert about["adapter"]["base"] == str(MODEL)
    assert about["adapter"]["ranks"]["decoder.self_attn.q_proj"] == [2]
    lines = run("info", MODEL, "--adapter", adapter).out
    assert "adapter         LoRA, rank 2, alpha 4" in lines
    assert f"base            {MODEL}" in lines


def test_info_describes_an_adapter_whose_base_is_not_here(run: Run, adapter: Path, tmp_path: Path):
    for file in adapter.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "somebody/else"
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    done = run("info", tmp_path)
    assert done.code == 0
    assert "base            somebody/else" in done.out


def test_info_tells_every_rank_that_a_matrix_has(run: Run, adapter: Path, tmp_path: Path):
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = next(name for name in tensors if name.endswith("1.self_attn.q_proj.lora_A.weight"))
    tensors[name] = torch.zeros(5, tensors[name].shape[1])
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "somebody/else"
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert "decoder.self_attn.q_proj 2/5" in run("info", tmp_path).out


def test_the_adapter_of_another_model_is_one_line_that_names_all_three(run: Run, adapter: Path):
    done = run("chat", "--model", OTHER, "--adapter", adapter, QUESTION)
    assert done.code == 2
    assert done.err.count("\n") == 1
    for named in (adapter, MODEL, OTHER):
        assert str(named) in done.err
    done = run("chat", "--model", MODEL, "--adapter", OTHER, QUESTION)
    assert (done.code, "it is not an adapter" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"{MODEL}/config.json", "is a file; give the directory that holds adapter_config.json"),
        ("mine", "there is no directory mine; an adapter is a directory or a hub id OWNER/NAME"),
    ],
)
def test_what_is_no_adapters_name_is_one_line(run: Run, name: str, message: str):
    done = run("chat", "--model", MODEL, "--adapter", name, QUESTION)
    assert (done.code, message in done.err, done.err.count("\n")) == (2, True, 1)


def test_an_adapter_is_merged_before_the_decoder_is_quantised(adapter):
    found = load_model(MODEL, adapter=adapter, quantize="int8").state_dict()
    merged = load_model(MODEL, adapter=adapter)
    quantize_for_answers(merged, "int8")
    assert all(torch.equal(found[name], tensor) for name, tensor in merged.state_dict().items())


def test_a_process_reads_its_share_of_base_and_adapter(adapter):
    share = Share(1, 2)
    own = load_share(MODEL, share, device="cpu", dtype=torch.float32, adapter=adapter)
    merged = load_model(MODEL, adapter=adapter, dtype=torch.float32)
    parts = dict(share.parts(merged.state_dict().items(), merged.config.decoder))
    assert all(torch.equal(parts[name], tensor) for name, tensor in own.state_dict().items())


def test_nothing_is_merged_into_four_bit_weights(adapter, tmp_path):
    described = {"quant_method": "awq", "bits": 4, "group_size": 32}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": described}))
    with pytest.raises(ValueError, match=r"cannot be merged.*internvl2 convert --adapter"):
        choose_quantization(tmp_path, None, torch.device("cpu"), torch.float32, adapter)
