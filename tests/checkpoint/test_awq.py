"""Four-bit checkpoints: read as an independent packer wrote them, held as they are, or refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from internvl2.checkpoint.config_files import read_config
from internvl2.checkpoint.convert import convert
from internvl2.checkpoint.source import open_checkpoint
from internvl2.checkpoint.store import load, load_model, load_share, save
from internvl2.cli.info import describe
from internvl2.engine.engine import Engine
from internvl2.engine.sequence import SamplingParams
from internvl2.model.int4 import Int4Linear
from internvl2.model.low_bit import quantization_of, stored_bytes
from internvl2.model.quantize import linear_maps
from internvl2.model.tensor_parallel import Share
from internvl2.processing.conversation import Message

MODELS = Path(__file__).parents[1] / "data" / "official"
GROUP = 32
DESCRIBED = {
    "quant_method": "awq",
    "version": "gemm",
    "bits": 4,
    "group_size": GROUP,
    "zero_point": True,
}


def pack(codes: np.ndarray) -> torch.Tensor:
    """As AutoAWQ does: of eight columns, 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits on."""
    words = np.zeros((codes.shape[0], codes.shape[1] // 8), np.uint32)
    for word in range(words.shape[1]):
        for place, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
            words[:, word] |= codes[:, 8 * word + column].astype(np.uint32) << (4 * place)
    return torch.from_numpy(words.view(np.int32))


def quantized(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A matrix [outputs, inputs] as the files have it, and what it stands for."""
    rows = weight.float().T.numpy()
    grouped = rows.reshape(-1, GROUP, rows.shape[1])
    low, high = grouped.min(1), grouped.max(1)
    scales = ((high - low) / 15).astype(np.float16)
    zeros = np.clip(np.round(-low / scales.astype(np.float32)), 0, 15)
    wide, middle = (np.repeat(x.astype(np.float32), GROUP, 0) for x in (scales, zeros))
    codes = np.clip(np.round(rows / wide) + middle, 0, 15)
    stored = {
        "qweight": pack(codes.astype(np.int64)),
        "qzeros": pack(zeros.astype(np.int64)),
        "scales": torch.from_numpy(scales).contiguous(),
    }
    return stored, torch.from_numpy((codes - middle) * wide).T.contiguous()


def is_packed(name: str, tensor: torch.Tensor) -> bool:
    return name.startswith("language_model.model.layers.") and tensor.dim() == 2


@pytest.fixture(scope="module", params=["A_internlm2", "B_qwen2"])
def pair(request, tmp_path_factory) -> tuple[Path, Path]:
    """A four-bit checkpoint, and a plain one of the numbers that it stands for."""
    source = MODELS / request.param / "checkpoint"
    tensors = {}
    for file in source.glob("*.safetensors"):
        tensors |= load_file(file)
    four_bit, plain = {}, {}
    for name, tensor in tensors.items():
        plain[name] = tensor.clone()
        four_bit[name] = plain[name]
        if is_packed(name, tensor):
            parts, plain[name] = quantized(four_bit.pop(name))
            four_bit |= {f"{name.removesuffix('weight')}{part}": x for part, x in parts.items()}
    made = tmp_path_factory.mktemp(request.param)
    config = json.loads((source / "config.json").read_text())
    for name, weights in (("four_bit", four_bit), ("plain", plain)):
        ignored = shutil.ignore_patterns("*.safetensors*", "config.json")
        shutil.copytree(source, made / name, ignore=ignored)
        save_file(weights, made / name / "model.safetensors")
        (made / name / "config.json").write_text(json.dumps(config))
    config["llm_config"]["quantization_config"] = DESCRIBED
    (made / "four_bit" / "config.json").write_text(json.dumps(config))
    return made / "four_bit", made / "plain"


@pytest.fixture
def four_bit(pair) -> Path:
    return pair[0]


def test_every_four_bit_weight_is_read_as_it_was_packed(pair):
    few, plain = (load_model(directory, dtype=torch.float32) for directory in pair)
    wanted = dict(plain.named_modules())
    maps = [m for m in few.named_modules() if isinstance(m[1], Int4Linear)]
    assert len(maps) == len(linear_maps(few.decoder.layers)) > 0
    for name, module in maps:
        torch.testing.assert_close(module.weight, wanted[name].weight, rtol=1e-6, atol=1e-6)
    found = {name: p for name, p in few.named_parameters() if "bias" in name or "norm" in name}
    assert all(torch.equal(p, plain.get_parameter(name)) for name, p in found.items())


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_reads_its_share_of_four_bit_weights(four_bit, rank):
    whole = load_model(four_bit, dtype=torch.float32)
    own = load_share(four_bit, Share(rank, 2), device="cpu", dtype=torch.float32)
    modules, config = dict(whole.named_modules()), whole.config.decoder
    maps = [m for m in own.named_modules() if isinstance(m[1], Int4Linear)]
    assert len(maps) == len(linear_maps(own.decoder.layers)) > 0
    for name, module in maps:
        cut = own.share.cut(f"{name}.weight", config)
        assert cut is not None
        assert torch.equal(module.weight, cut.of(modules[name].weight)), name


def test_four_bit_weights_are_held_in_four_bits(pair):
    few, plain = (load_model(directory, dtype=torch.float32) for directory in pair)
    numbers = sum(p.numel() for p in plain.decoder.layers.parameters() if p.dim() == 2)
    assert quantization_of(few) == "int4"
    # Four bits instead of 32, and two numbers of 32 for each group.
    assert stored_bytes(plain) - stored_bytes(few) == numbers * (32 - 4 - 2 * 32 / GROUP) / 8


def test_a_four_bit_checkpoint_answers_as_the_plain_one_that_it_stands_for(pair):
    question = [[Message.user("What is this?")]]
    params = SamplingParams(max_tokens=8, ignore_eos=True, logprobs=1)
    answers = []
    for directory in pair:
        with Engine.load(directory, device="cpu", dtype="float32") as engine:
            answers.append(engine.generate(question, params)[0].token_ids)
    assert answers[0] == answers[1]


def test_a_four_bit_checkpoint_converts_into_a_plain_one(pair, tmp_path):
    convert(pair[0], tmp_path / "out", "opengvlab", dtype="float32")
    found, wanted = (load_model(d, dtype=torch.float32) for d in (tmp_path / "out", pair[1]))
    assert quantization_of(found) is None
    for name, parameter in wanted.named_parameters():
        # Scales are fp16, and so are weights that are dequantised for a file.
        torch.testing.assert_close(found.get_parameter(name), parameter, rtol=1e-3, atol=1e-6)


def test_info_says_that_a_checkpoint_has_four_bit_weights(pair):
    four_bit, plain = (describe(str(directory)) for directory in pair)
    assert four_bit.quantization == "int4"
    assert f"int4, groups of {GROUP}" in four_bit.lines()
    assert four_bit.memory.weights < plain.memory.weights
    assert plain.quantization is None


def test_a_four_bit_checkpoint_is_not_quantised_again(four_bit):
    with pytest.raises(ValueError, match=r"four-bit weights already \(AWQ\): leave out quantize"):
        Engine.load(four_bit, device="cpu", quantize="int8")


def test_a_four_bit_model_is_converted_rather_than_saved(four_bit, tmp_path):
    loaded = load(four_bit, device="cpu")
    with pytest.raises(ValueError, match=r"held in int4.*convert"):
        save(loaded.model, loaded.processor, tmp_path / "out", "opengvlab")


def altered(directory: Path, target: Path, change) -> Path:
    """A copy whose tensors `change` has changed."""
    shutil.copytree(directory, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors")
    return target


def opened(directory: Path):
    return open_checkpoint(directory, read_config(directory))


def test_packed_tensors_that_do_not_fit_together_are_named(four_bit, tmp_path):
    name = next(n for n in load_file(four_bit / "model.safetensors") if n.endswith(".qzeros"))
    short = altered(four_bit, tmp_path / "a", lambda t: t.update({name: t[name][:-1].clone()}))
    with pytest.raises(ValueError, match=rf"{name} is int32 \[.*instead of int32 \["):
        opened(short)
    missing = altered(four_bit, tmp_path / "b", lambda t: t.pop(name))
    with pytest.raises(ValueError, match=f"no {name} is here"):
        opened(missing)


def test_packed_weights_need_their_description(four_bit, tmp_path):
    copy = shutil.copytree(four_bit, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    described = config["llm_config"]["quantization_config"]
    for key, value in (("quant_method", "gptq"), ("version", "gemv"), ("bits", 3)):
        config["llm_config"]["quantization_config"] = described | {key: value}
        (copy / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=f"{key} '?{value}'? is not supported"):
            opened(copy)
    del config["llm_config"]["quantization_config"]
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"has type int32.*where config.json has a quantization"):
        opened(copy)
