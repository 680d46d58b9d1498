"""What chat and training ask of an Ascend device is implemented by torch_npu, operator by operator.

Commands run on the fake device, which writes down every operator that needs a kernel of the device:
below autograd, after PyTorch has replaced composite operators by their parts and views by none.
Each must be in the list that is read out of torch_npu's wheel.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import pytest
import torch
from PIL import Image

from internvl2.train.recipe import (
    DataSource,
    Freeze,
    Guard,
    Lora,
    Optimizer,
    Packing,
    Recipe,
    Recompute,
    Schedule,
    Validation,
)

sys.path.append(str(Path(__file__).parent))
from read_operators import OperatorList

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OFFICIAL = ROOT / "tests" / "data" / "official"
INTERNLM2, QWEN2 = (OFFICIAL / name / "checkpoint" for name in ("A_internlm2", "B_qwen2"))
PICTURE = OFFICIAL / "preprocessing" / "pictures" / "gray.jpg"
OPERATORS = OperatorList.read(HERE / "operators-2.13.0.txt")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
COUNTED = ("aten::", "npu::")
"""Collectives are the process group's; other operators of PyTorch run Python over these."""
NEEDS_COPIES = {"aten::_copy_from"}
"""Has no kernel in torch_npu, whose `copy_` does without it."""

LIST_KERNELS = """
import torch, torch_npu
for name in torch._C._dispatch_get_all_op_names():
    if torch._C._dispatch_has_kernel_for_dispatch_key(name, "PrivateUse1"):
        print(name)
"""


@dataclass(frozen=True)
class Fake:
    """Runs programs that find the fake device, and keeps the names of what ran on it."""

    folder: Path

    @property
    def names(self) -> Path:
        """Where the device writes what ran, a name a line."""
        return self.folder / "operators.txt"

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Python with these arguments."""
        paths = os.pathsep.join(str(path) for path in (HERE / "fake", ROOT / "src"))
        settings = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "FAKE_NPU_COUNT": "2"}
        return subprocess.Popen(
            [sys.executable, *arguments],
            env=os.environ | settings | {"FAKE_NPU_OPS": str(self.names)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> str:
        """What the program prints; one that fails fails the test with its message."""
        with self.start(*arguments) as process:
            out, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        return out

    def missing(self) -> list[str]:
        """Operators that have run and that torch_npu has no kernel for."""
        ran = set(self.names.read_text().split())
        assert ran, "nothing ran on the device"
        return sorted(name for name in ran if name.startswith(COUNTED) and not is_implemented(name))


@pytest.fixture
def fake(tmp_path) -> Fake:
    return Fake(tmp_path)


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    records = [{"conversations": turns(f"Say {n}", str(n))} for n in range(4)]
    for n in range(12):
        Image.new("RGB", (112, 112), (20 * n, 0, 128)).save(tmp_path / f"{n}.png")
        asked = turns("<image>\nWhat colour?", f"{20 * n}")
        records.append({"image": f"{n}.png", "conversations": asked})
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    return Recipe(
        model=str(INTERNLM2),
        output=str(tmp_path / "run"),
        data=(DataSource(str(data)),),
        freeze=Freeze(vision=False),
        optimizer=Optimizer(learning_rate=1e-3),
        schedule=Schedule(max_steps=2),
        packing=Packing(tokens=256, tiles=8, window=8),
        packs_per_step=2,
        max_tiles=1,
        drop_path=0.2,
        workers=0,
        dtype="bfloat16",
        device="npu",
    )


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def is_implemented(name: str) -> bool:
    """Whether torch_npu has a kernel for what led to this operator.

    PyTorch computes many operators by the variant that writes into a given result. torch_npu may
    have kernels for each of the others instead, and then the given variant is never reached. The
    gradients of its own operators are called `_grad` or `_backward`; the fake calls all `_grad`.
    """
    if name in OPERATORS.names:
        return True
    if name.startswith("npu::"):
        return f"{name.removesuffix('_grad')}_backward" in OPERATORS.names
    others = ways_to(name)
    return bool(others) and all(other in OPERATORS.names for other in others)


def ways_to(name: str) -> list[str]:
    """Variants, into a new result or in place, of an operator that writes into a given one."""
    packet, _, overload = name.partition(".")
    schema = torch._C._get_schema(packet, overload)
    if not any(argument.is_out for argument in schema.arguments):
        return []
    candidates = chain(*map(torch._C._jit_get_schemas_for_operator, (packet, f"{packet}_")))
    return [
        f"{other.name}.{other.overload_name}".removesuffix(".")
        for other in candidates
        if not any(x.is_out for x in other.arguments) and inputs(other) == inputs(schema)
    ]


def inputs(schema: torch._C.FunctionSchema) -> list[tuple[str, str]]:
    return [(x.name, x.type.str()) for x in schema.arguments if not x.is_out]


def train(fake: Fake, recipe: Recipe, *launcher: str) -> subprocess.Popen[str]:
    file = fake.folder / "recipe.toml"
    recipe.write(file)
    return fake.start(*launcher, "-m", "internvl2", "train", str(file))


def finish(process: subprocess.Popen[str]) -> None:
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 0, errors


def test_an_operator_is_implemented_by_name_or_by_every_way_that_leads_to_it():
    assert is_implemented("aten::mm.out")
    assert is_implemented("npu::npu_fusion_attention")
    assert is_implemented("aten::index.Tensor_out")
    assert "aten::index.Tensor_out" not in OPERATORS.names
    assert not is_implemented("aten::_fused_rms_norm")
    assert not is_implemented("aten::_foreach_mul_.Tensor")
    assert is_implemented("aten::gelu_backward.grad_input")
    assert is_implemented("npu::npu_rms_norm_grad")
    assert not is_implemented("npu::npu_kernel_of_the_future")


def test_the_list_of_operators_says_how_many_it_has():
    assert len(OPERATORS.names) == 1500
    assert sum(name.startswith("npu::") for name in OPERATORS.names) == 419
    assert OPERATORS.version == "2.13.0"


@pytest.mark.slow
def test_the_fake_device_has_kernels_of_its_own_only_where_torch_npu_has(fake):
    kernels = fake.run("-c", LIST_KERNELS).split()
    own = {name for name in kernels if name.startswith(COUNTED)} - NEEDS_COPIES
    assert "aten::copy_" in own
    assert sorted(name for name in own if not is_implemented(name)) == []


@pytest.mark.slow
@pytest.mark.parametrize("model", [INTERNLM2, QWEN2], ids=["internlm2", "qwen2"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_answering_about_a_picture_asks_for_nothing_missing(fake, model, dtype):
    options = ("--device", "npu", "--dtype", dtype, "--max-tokens", "6", "--image", str(PICTURE))
    fake.run("-m", "internvl2", "chat", "--model", str(model), *options, "What is it?")
    assert fake.missing() == []


@pytest.mark.slow
def test_drawing_and_penalising_tokens_of_many_requests_asks_for_nothing_missing(fake):
    wishes = [
        {},
        {"temperature": 0.8, "seed": 1},
        {"temperature": 0.8, "top_p": 0.9, "top_k": 20, "min_p": 0.05, "seed": 1},
        {"repetition_penalty": 1.1, "presence_penalty": 0.1, "frequency_penalty": 0.1},
        {"no_repeat_ngram_size": 2, "min_tokens": 3},
        {"logprobs": 3},
    ]
    program = f"""
from internvl2 import Engine, Message, Picture, SamplingParams
picture = Picture({str(PICTURE)!r})
conversations = [[Message.user(picture, "What is it?")], [Message.user("A long text. " * 60)]]
params = [SamplingParams(max_tokens=6, **wishes) for wishes in {wishes!r}]
with Engine.load({str(QWEN2)!r}, device="npu") as engine:
    for wishes in params:
        engine.generate(conversations, wishes)
    engine.generate([conversations[n % 2] for n in range(len(params))], params)
"""
    fake.run("-c", program)
    assert fake.missing() == []


KINDS = {
    "all weights in fp32": {"dtype": "float32"},
    "all weights in bf16": {},
    "without computing again": {"recompute": Recompute(0, 0), "deterministic": True},
    "qwen2": {"model": str(QWEN2)},
    "8-bit moments": {"optimizer": Optimizer(moments="8bit")},
    "muon": {"optimizer": Optimizer(name="muon")},
    "muon and 8-bit moments": {"optimizer": Optimizer(name="muon", moments="8bit")},
    "adapters": {
        "freeze": Freeze(),
        "lora": Lora(decoder_rank=4, vision_rank=4, dropout=0.1),
        "drop_path": 0.0,
    },
    "adapters on 4 bits": {
        "freeze": Freeze(),
        "lora": Lora(decoder_rank=4),
        "quantize": "nf4",
        "drop_path": 0.0,
    },
    "from scratch": {"from_scratch": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_training_asks_for_nothing_missing(fake, recipe, kind):
    finish(train(fake, replace(recipe, **KINDS[kind])))
    assert fake.missing() == []


@pytest.mark.slow
def test_measuring_beside_a_run_asks_for_nothing_missing(fake, recipe):
    recipe = replace(
        recipe,
        freeze=Freeze(),
        drop_path=0.0,
        guard=Guard(data=recipe.data, every=1, top_k=4),
        validation=Validation(data=recipe.data, every=1),
        feature_cache=str(fake.folder / "features"),
    )
    finish(train(fake, recipe))
    assert fake.missing() == []


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_divided_processes_that_end_and_go_on_ask_for_nothing_missing(fake, recipe, optimizer):
    recipe = replace(
        recipe,
        shard=True,
        packs_per_step=4,
        optimizer=Optimizer(name=optimizer, moments="8bit"),
        schedule=Schedule(max_steps=16),
        save_every=1,
    )
    process = train(fake, recipe, *TORCHRUN)
    wait_for(fake.folder / "run" / "checkpoints" / "step-00000001", process)
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=300)[1]
    assert "stopped after step" in errors
    finish(train(fake, recipe, *TORCHRUN))
    assert fake.missing() == []


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.01)
