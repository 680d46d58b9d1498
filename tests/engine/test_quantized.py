"""Decoders in few bits: loaded piece by piece, close to the plain one, refused early."""

from pathlib import Path

import pytest
import torch

from internvl2.checkpoint import store
from internvl2.checkpoint.store import load, load_model, save
from internvl2.engine.engine import Engine, EngineOptions
from internvl2.engine.memory import MemoryRequest, NotEnoughMemory, plan, weight_bytes
from internvl2.engine.sequence import SamplingParams
from internvl2.family import MEMBERS
from internvl2.model.attention import PackedAttention
from internvl2.model.low_bit import (
    FP8_CAPABILITY,
    LINEARS,
    quantization_of,
    quantize_for_answers,
    stored_bytes,
)
from internvl2.model.rotary import Positions
from internvl2.processing.conversation import Message

MODELS = Path(__file__).parents[1] / "data" / "official"
QUESTION = [Message.user("What is in the picture?")]
CPU = torch.device("cpu")


@pytest.fixture(params=["A_internlm2", "B_qwen2"])
def directory(request) -> Path:
    return MODELS / request.param / "checkpoint"


@torch.no_grad()
def log_probabilities(model) -> torch.Tensor:
    tokens = torch.randint(5, 900, (300,), generator=torch.Generator().manual_seed(0))
    lengths = [100, 200]
    hidden = model.decoder(
        model.embed(tokens), Positions.packed(lengths), PackedAttention.of(lengths)
    )
    return model.logits(hidden).log_softmax(dim=-1)


def divergence(wanted: torch.Tensor, found: torch.Tensor) -> float:
    """Mean over tokens, in nats."""
    return (wanted.exp() * (wanted - found)).sum(dim=-1).mean().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_predicted_stays_close_in_every_scheme(directory, dtype):
    plain = log_probabilities(load_model(directory, dtype=dtype))
    found = {}
    for name in LINEARS:
        model = load_model(directory, dtype=dtype)
        quantize_for_answers(model, name)
        found[name] = divergence(plain, log_probabilities(model))
    assert 0 < found["int8"] < 0.01
    assert found["int8"] < found["fp8"] < 0.2
    assert found["fp8"] < found["int4"] < 1.0


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_a_model_is_quantised_as_it_is_read(directory, name):
    read = load_model(directory, dtype=torch.bfloat16, quantize=name)
    afterwards = load_model(directory, dtype=torch.bfloat16)
    quantize_for_answers(afterwards, name)
    found, wanted = read.state_dict(), afterwards.state_dict()
    assert found.keys() == wanted.keys()
    # The decoder is quantised from the stored numbers here, from rounded ones there.
    for key in (key for key in wanted if "decoder.layers" not in key):
        assert torch.equal(found[key], wanted[key]), key
    assert stored_bytes(read) == stored_bytes(afterwards) < stored_bytes(load_model(directory))


def test_loading_never_holds_the_plain_decoder(directory, monkeypatch):
    waiting = []
    real = store.store_quantized

    def watched(weights, model):
        for name, tensor in real(weights, model):
            waiting.append(name)
            yield name, tensor

    monkeypatch.setattr(store, "store_quantized", watched)
    load_model(directory, quantize="int8")
    assert waiting
    assert not [name for name in waiting if "decoder.layers" in name and "norm" not in name
                and "bias" not in name]  # fmt: skip


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_greedy_answers_follow_the_plain_model_until_it_hesitates(directory, name):
    """A token may differ only where the plain model finds another nearly as good."""
    params = SamplingParams(max_tokens=12, ignore_eos=True, logprobs=2)
    with Engine.load(directory, device="cpu") as engine:
        plain = engine.answer(QUESTION, params)
    with Engine.load(directory, device="cpu", quantize=name) as engine:
        few = engine.answer(QUESTION, params)
    margin = {"int8": 0.4, "int4": 1.5}[name]
    for token, other, report in zip(plain.token_ids, few.token_ids, plain.logprobs, strict=True):
        first, second = report.top
        if token != other:
            assert first.logprob - second.logprob < margin
            break


@pytest.mark.gpu
@pytest.mark.parametrize("name", LINEARS)
def test_graphs_in_few_bits_follow_steps_call_by_call(directory, name, caplog):
    """Each engine has measured its own kernels, so that nearly equal tokens may change places."""
    if name == "fp8" and torch.cuda.get_device_capability() < FP8_CAPABILITY:
        pytest.skip("this GPU has no fp8")
    params, asked = SamplingParams(max_tokens=24, ignore_eos=True, logprobs=2), [QUESTION] * 3
    found = []
    for graphs in (False, True):
        options = EngineOptions(graphs=graphs)
        with Engine.load(
            directory, device="cuda", dtype="bfloat16", quantize=name, options=options
        ) as engine:
            found.append(engine.generate(asked, params))
    assert not [record for record in caplog.records if "is not used" in record.getMessage()]
    for one, other in zip(*found, strict=True):
        for token, again, report in zip(one.token_ids, other.token_ids, one.logprobs, strict=True):
            first, second = report.top
            if token != again:
                assert first.logprob - second.logprob < 0.2
                break


def test_rows_of_a_batch_answer_as_they_do_alone(directory):
    asked = [[Message.user(text)] for text in ("Who?", "What is this?", "Where are we now?")]
    params = SamplingParams(max_tokens=6, ignore_eos=True)
    with Engine.load(directory, device="cpu", quantize="int8") as engine:
        together = [answer.token_ids for answer in engine.generate(asked, params)]
        assert together == [engine.answer(one, params).token_ids for one in asked]


@pytest.mark.slow
def test_the_memory_plan_counts_few_bits():
    config = MEMBERS["internvl2-8b"].config
    plain, int8, int4 = (weight_bytes(config, torch.bfloat16, q) for q in (None, "int8", "int4"))
    assert int8 == pytest.approx(plain - 7.0e9, rel=0.01)
    assert int4 == pytest.approx(plain - 10.0e9, rel=0.02)
    request = MemoryRequest(max_sequences=1, max_batch_tokens=512, vision_tiles=1, max_context=4096)
    room = (plain + int8) // 2
    assert plan(config, torch.bfloat16, CPU, room, request, quantization="int8").num_blocks
    with pytest.raises(NotEnoughMemory):
        plan(config, torch.bfloat16, CPU, room, request)


def test_what_cannot_work_is_refused_before_weights_are_read(directory, monkeypatch):
    monkeypatch.setattr("internvl2.engine.opening.load_model", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(ValueError, match="unknown quantization 'int3'; known: fp8, int8, int4"):
        Engine.load(directory, device="cpu", quantize="int3")
    with pytest.raises(ValueError, match=r"cpu does not multiply fp8 numbers.*int8"):
        Engine.load(directory, device="cpu", quantize="fp8", options=EngineOptions())


def test_a_quantised_model_is_not_saved(directory, tmp_path):
    loaded = load(directory, device="cpu", quantize="int8")
    assert quantization_of(loaded.model) == "int8"
    with pytest.raises(ValueError, match=r"held in int8.*load it without quantize to save it"):
        save(loaded.model, loaded.processor, tmp_path / "out", "opengvlab")
    assert not (tmp_path / "out").exists()
