import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch

from internvl2.checkpoint import convert as module
from internvl2.checkpoint.config_files import LAYOUTS, read_config
from internvl2.checkpoint.convert import convert
from internvl2.checkpoint.store import load, load_model, save
from internvl2.model.internvl import random_model
from internvl2.processing.processor import Processor
from internvl2.processing.readers import from_openai

CASES = ["A_internlm2", "B_qwen2", "C_phi3", "D_llama3_vit6b", "F_qwen3"]
TALK = from_openai([{"role": "user", "content": "What is 3 + 4? 你好"}])


@pytest.fixture
def source(tiny, tmp_path):
    """The directory of a tiny member without a tokenizer."""
    save(random_model(tiny("internlm2")), None, tmp_path / "source", "opengvlab")
    return tmp_path / "source"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_converted_directory_is_complete(case, layout, data, tmp_path):
    original = data("official", case, "checkpoint")
    done = convert(original, tmp_path / "new", layout, max_shard_bytes=400_000)
    before, after = load(original, device="cpu"), load(tmp_path / "new", device="cpu")
    assert (done.layout, done.source_layout, done.has_tokenizer) == (layout, "opengvlab", True)
    assert after.config == before.config
    prompts = [loaded.processor.encode(TALK).token_ids for loaded in (before, after)]
    assert prompts[0] == prompts[1]
    written = json.loads((tmp_path / "new" / "generation_config.json").read_text())
    assert written["eos_token_id"] == list(before.processor.stop_token_ids)
    assert after.processor.stop_token_ids == before.processor.stop_token_ids
    for name, tensor in after.model.state_dict().items():
        assert torch.equal(tensor, before.model.state_dict()[name])


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_written_chat_template_renders_our_prompt(case, layout, data, tmp_path):
    jinja2 = pytest.importorskip("jinja2")
    convert(data("official", case, "checkpoint"), tmp_path / "new", layout)
    processor = Processor.from_directory(tmp_path / "new", read_config(tmp_path / "new"))
    text = (tmp_path / "new" / "chat_template.jinja").read_text(encoding="utf-8")
    named = json.loads((tmp_path / "new" / "tokenizer_config.json").read_text())["chat_template"]
    messages = [{"role": "user", "content": "Count to three."}]
    rendered = jinja2.Template(text).render(messages=messages, add_generation_prompt=True)
    assert named == text
    ours = processor.encode(from_openai(messages)).token_ids
    assert processor.tokenizer.encode(rendered, allow_special=True) == ours


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_transformers_tokenizer_gives_our_prompt_from_hf_layout(case, data, tmp_path):
    from transformers import AutoTokenizer

    convert(data("official", case, "checkpoint"), tmp_path / "hf", "hf")
    messages = [
        {"role": "user", "content": "hello, wörld 你好"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "more"},
    ]
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    processor = Processor.from_directory(tmp_path / "hf", read_config(tmp_path / "hf"))
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == processor.encode(from_openai(messages)).token_ids


def test_converting_merges_adapters(data, tmp_path):
    original = data("official", "G_lora_internlm2", "checkpoint")
    convert(original, tmp_path / "merged", "opengvlab")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["use_llm_lora"] == 0
    merged, wanted = load_model(tmp_path / "merged"), load_model(original)
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(merged.state_dict()[name], tensor)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_dtype_can_be_changed(source, layout, dtype, tmp_path):
    convert(source, tmp_path / "new", layout, dtype)
    assert read_config(tmp_path / "new").dtype == dtype
    converted, wanted = load_model(tmp_path / "new"), load_model(source)
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(converted.state_dict()[name], tensor.to(getattr(torch, dtype)))


def test_mixed_dtypes_are_kept(data, tmp_path):
    original = data("paddlemix", "ckpt_internlm2_bf16_pdparams")
    convert(original, tmp_path / "new", "opengvlab")
    checkpoint = module.open_checkpoint(tmp_path / "new", read_config(tmp_path / "new"))
    types = {name: stored.dtype for name, stored in checkpoint.source.stored.items()}
    assert types["vision_model.embeddings.class_embedding"] is torch.float32
    assert types["language_model.output.weight"] is torch.bfloat16
    assert read_config(tmp_path / "new").dtype == "bfloat16"


def test_remote_code_of_an_official_release_is_kept(source, tmp_path):
    config = json.loads((source / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_internvl_chat.InternVLChatModel"}
    (source / "config.json").write_text(json.dumps(config))
    (source / "modeling_internvl_chat.py").write_text("raise RuntimeError('never run')\n")
    convert(source, tmp_path / "new", "opengvlab")
    assert (tmp_path / "new" / "modeling_internvl_chat.py").exists()
    written = json.loads((tmp_path / "new" / "config.json").read_text())
    assert written["auto_map"] == config["auto_map"]


def test_destination_that_is_not_empty_is_refused(source, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "precious").write_text("x")
    with pytest.raises(ValueError, match="is not empty; give a directory that does not exist"):
        convert(source, tmp_path / "new", "hf")
    assert os.listdir(tmp_path / "new") == ["precious"]


def test_destination_that_cannot_be_replaced_is_an_early_error(source, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    with pytest.raises(ValueError, match="link is a link; give a directory that does not exist"):
        convert(source, tmp_path / "link", "hf")
    with pytest.raises(ValueError, match="/proc is a mount point"):
        convert(source, "/proc", "hf")
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(ValueError, match="is the current directory"):
        convert(source, ".", "hf")


def test_what_a_layout_cannot_say_is_an_error_before_writing(tiny, tmp_path, monkeypatch):
    model = random_model(dataclasses.replace(tiny("internlm2"), ps_version="v1"))
    save(model, None, tmp_path / "source", "opengvlab")
    monkeypatch.setattr(module, "write_weights", None)
    with pytest.raises(ValueError, match="knows only ps_version v2"):
        convert(tmp_path / "source", tmp_path / "new", "hf")


def test_full_disk_is_an_early_error(source, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match=r"needs 0\.07 GB of disk; .* has 0\.00 GB free"):
        convert(source, tmp_path / "new", "hf")
    assert sorted(os.listdir(tmp_path)) == ["source"]


@pytest.mark.wrong_types
def test_unknown_layout_is_an_error(source, tmp_path):
    with pytest.raises(ValueError, match="unknown layout 'gguf'; known: opengvlab, hf, paddlemix"):
        convert(source, tmp_path / "new", "gguf")


def test_failed_conversion_leaves_nothing(source, tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_config", fail)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "new", "hf")
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_wrong_byte_on_disk_is_found(source, layout, tmp_path, monkeypatch):
    written = module.write_weights

    def spoil(writing, parameter, directory, max_shard_bytes):
        written(writing, parameter, directory, max_shard_bytes)
        path = next(directory.glob("model*"))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    monkeypatch.setattr(module, "write_weights", spoil)
    with pytest.raises(ValueError, match="reads back differently from the source"):
        convert(source, tmp_path / "new", layout)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_killed_conversion_leaves_no_directory_of_that_name(source, tmp_path):
    code = f"""
        import os, signal
        from internvl2.checkpoint import convert as module
        module._verify = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        module.convert({str(source)!r}, {str(tmp_path / "new")!r}, "hf")
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env={"PYTHONPATH": "src"})
    assert not (tmp_path / "new").exists()
    assert all(re.fullmatch(r"source|\.new\..*\.partial", name) for name in os.listdir(tmp_path))


@pytest.mark.slow
def test_sigterm_ends_a_conversion_without_leaving_anything_also_when_it_comes_twice(
    source, tmp_path
):
    code = f"""
        import os, shutil, signal, sys
        from internvl2.checkpoint import convert as module
        from internvl2.cli import main
        removed = shutil.rmtree
        def terminate(*_):
            print(os.listdir({str(tmp_path)!r}), flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
        def remove(*arguments, **options):
            terminate()
            removed(*arguments, **options)
        module._verify, shutil.rmtree = terminate, remove
        sys.exit(main(["convert", {str(source)!r}, {str(tmp_path / "new")!r}, "--layout", "hf"]))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    environment = os.environ | {"PYTHONPATH": "src"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 143, ended.stderr
    assert ended.stdout.count(".partial") == 2
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.slow
@pytest.mark.parametrize("start", ["opengvlab", "paddlemix"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_holds_one_shard_and_one_tensor_at_most(start, layout, tiny, tmp_path):
    from dataclasses import replace

    config = tiny("internlm2")
    decoder = replace(config.decoder, vocab_size=40_000, hidden_size=640, intermediate_size=4000)
    config = replace(config, decoder=replace(decoder, num_layers=8, head_dim=160))
    save(random_model(config), None, tmp_path / "source", start, 60_000_000)
    size = sum(path.stat().st_size for path in (tmp_path / "source").glob("model*"))
    code = f"""
        import threading, time
        from pathlib import Path
        import torch
        from internvl2.checkpoint.config_files import read_config
        from internvl2.checkpoint.convert import convert
        from internvl2.checkpoint.source import open_checkpoint

        def anonymous():
            with open("/proc/self/status") as file:
                return next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))

        peak, done = [0], threading.Event()
        def watch():
            while not done.is_set():
                peak[0] = max(peak[0], anonymous())
                time.sleep(0.001)

        torch.set_num_threads(1)
        source = Path({str(tmp_path / "source")!r})
        open_checkpoint(source, read_config(source))  # torch imports what it needs
        before = anonymous()
        thread = threading.Thread(target=watch)
        thread.start()
        convert({str(tmp_path / "source")!r}, {str(tmp_path / "new")!r}, {layout!r}, None, 60e6)
        done.set()
        thread.join()
        print((peak[0] - before) * 1024)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={"PYTHONPATH": "src", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    largest = 40_000 * 640 * 4
    assert size > 350_000_000
    assert int(run.stdout) < 60e6 + largest
