"""On the (fake) NPU models write what they write on a CPU, and the host does not wait meanwhile."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from internvl2.checkpoint.config_files import read_config
from internvl2.checkpoint.hub import EMBEDDED, locate
from internvl2.checkpoint.store import save
from internvl2.model.internvl import random_model
from internvl2.processing.processor import Processor

pytestmark = pytest.mark.slow

CASES = ("A_internlm2", "B_qwen2")


@pytest.fixture(scope="module")
def told(run_on_npu, recording):
    return run_on_npu("chat.py", *(recording(case).checkpoint for case in CASES))


def assert_same(on_cpu: list, on_npu: list) -> None:
    """The same tokens, and nearly the same probabilities."""
    assert [tokens for tokens, _ in on_npu] == [tokens for tokens, _ in on_cpu]
    for (_, theirs), (_, ours) in zip(on_cpu, on_npu, strict=True):
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=0, atol=1e-4)


def test_an_npu_is_picked_where_it_is_the_only_accelerator(told):
    assert told["picked"] == "npu"


@pytest.mark.parametrize("kind", ["internlm2", "llama", "qwen2", "qwen3", "phi3"])
def test_every_decoder_writes_on_an_npu_what_it_writes_on_a_cpu(told, kind):
    assert_same(told["decoders"]["cpu"][kind], told["decoders"]["npu"][kind])


@pytest.mark.parametrize("case", CASES)
def test_checkpoints_answer_on_an_npu_as_on_a_cpu(told, recording, case):
    directory = str(recording(case).checkpoint)
    assert_same(told["checkpoints"]["cpu"][directory], told["checkpoints"]["npu"][directory])


@pytest.mark.parametrize("dtype", ["torch.float32", "torch.bfloat16"])
def test_a_step_of_written_tokens_waits_once_for_the_chosen_ones(told, dtype):
    steps = told["waits"][dtype]["steps"]
    assert len(steps) > 10
    assert steps == [{"device_to_host": 1}] * len(steps)


@pytest.mark.parametrize("dtype", ["torch.float32", "torch.bfloat16"])
def test_no_layer_waits_for_the_device(told, dtype):
    assert told["waits"][dtype]["layers"] == 0


@pytest.fixture(scope="module")
def nano(tmp_path_factory) -> Path:
    """A checkpoint in the shape of nano, with random weights."""
    shape, folder = locate(EMBEDDED).directory, tmp_path_factory.mktemp("nano") / "model"
    processor = Processor.from_directory(shape, read_config(shape))
    save(random_model(processor.config), processor, folder, "opengvlab")
    return folder


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    Image.linear_gradient("L").convert("RGB").resize((300, 200)).save(path)
    return path


def test_chat_with_nano_answers_on_an_npu_as_on_a_cpu(nano, picture, start_on_npu):
    command = ("-m", "internvl2", "chat", "What?", "--model", nano, "--image", picture, "--json")
    limits = ("--dtype", "float32", "--max-tokens", "24", "--device")
    processes = [start_on_npu(*command, *limits, device) for device in ("cpu", "npu")]
    printed = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    on_cpu, on_npu = (json.loads(output) for output, _ in printed)
    assert on_npu["token_ids"] == on_cpu["token_ids"]
    assert len(on_cpu["token_ids"]) > 4


def test_an_npu_without_bf16_answers_in_fp16(nano, start_on_npu):
    process = start_on_npu(
        *("-m", "internvl2", "chat", "What?", "--model", nano, "--max-tokens", "4", "--json"),
        environment={"FAKE_NPU_BF16": "0"},
    )
    output, messages = process.communicate(timeout=300)
    assert process.returncode == 0, messages
    assert len(json.loads(output)["token_ids"]) == 4


@pytest.mark.parametrize("room", [30 * 2**20, 2**20])
def test_too_little_memory_is_said_in_one_line(nano, picture, room, start_on_npu):
    process = start_on_npu(
        *("-m", "internvl2", "chat", "What?", "--model", nano, "--image", picture),
        environment={"FAKE_NPU_BYTES": str(room)},
    )
    output, messages = process.communicate(timeout=300)
    assert process.returncode == 2
    assert not output
    (line,) = messages.splitlines()
    assert line.startswith("internvl2: error: not enough memory on npu")
