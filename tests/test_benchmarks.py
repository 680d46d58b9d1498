"""The training benchmark: both sides get the same samples, and compute the same loss."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from internvl2.train.recipe import Recipe

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def sides(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("training_sides")


@pytest.fixture
def work_of(sides):
    module = importlib.import_module("training_work")
    return lambda member, tiny, packs: module.Work.make(module.shape(member, tiny), packs)


def test_padded_batches_and_packs_teach_the_same_tokens(sides, work_of):
    work = work_of("1b", tiny=True, packs=2)
    batches = sides.padded_batches(work.samples, work.limits.tokens // 2)
    padded = [sides.PaddedBatch.of(batch, torch.device("cpu")) for batch in batches]
    assert sum(batch.learned for batch in padded) == work.learned
    assert sum(int(batch.weight_sum) for batch in work.batches()) == work.learned
    assert sum(len(batch.arguments["pixel_values"]) for batch in padded) == work.tiles
    assert sum(batch.num_tiles for batch in work.batches()) == work.tiles


def test_the_packs_of_the_training_benchmark_are_nearly_full(work_of):
    work = work_of("8b", tiny=False, packs=4)
    for pack in work.packs:
        assert 0.95 * 8192 <= sum(len(sample.prompt.token_ids) for sample in pack) <= 8192
    assert 26 <= work.tiles / 4 <= 30
    assert 0.1 <= work.learned / work.tokens <= 0.15


@pytest.mark.slow
def test_our_side_recomputes_where_memory_does_not_suffice(sides, work_of, monkeypatch):
    real, wanted = sides.timed, iter((False, True))

    def timed(step, setting, options):
        if next(wanted):
            return real(step, setting, options)
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(sides, "timed", timed)
    options = sides.Options(torch.device("cpu"), steps=1, warm_up=0, compile_ours=False)
    timing = sides.time_ours(work_of("8b", tiny=True, packs=1), Recipe.read("8b"), options)
    assert timing.setting == "8bit moments, recompute 0.5/0.5"
    assert timing.tried == ("8bit moments, recompute 0/0: out of memory",)


@pytest.mark.slow
def test_a_setting_that_needs_too_much_memory_is_tried_with_checkpointing(
    sides, work_of, monkeypatch
):
    pytest.importorskip("transformers")
    real = sides._probed

    def probed(step, options):
        if not side.model.is_gradient_checkpointing:
            raise torch.OutOfMemoryError("no room")
        return real(step, options)

    monkeypatch.setattr(sides, "_probed", probed)
    options = sides.Options(torch.device("cpu"), steps=1)
    side = sides._Theirs(work_of("2b", tiny=True, packs=1), Recipe.read("2b"), options)
    timing = side.best()
    assert timing.setting.endswith(", checkpointing")
    assert sum(line.endswith("out of memory") for line in timing.tried) == 3


@pytest.mark.slow
def test_the_training_benchmark_measures_both_sides_of_the_same_loss(tmp_path):
    pytest.importorskip("transformers")
    options = "--tiny --device cpu --members 2b --train frozen --steps 1 --packs 1"
    command = [sys.executable, str(BENCHMARKS / "training.py"), *options.split()]
    environment = os.environ | {"PYTHONPATH": str(BENCHMARKS.parent / "src")}
    report = tmp_path / "report.json"
    subprocess.run([*command, "--json", str(report)], env=environment, check=True)
    found = json.loads(report.read_text())
    assert [r["case"]["side"] for r in found["results"]] == ["transformers", "ours"]
    assert all(result["tokens_per_s"] > 0 for result in found["results"])
    agreed = found["agreement"]
    assert agreed["ours"] == pytest.approx(agreed["theirs"], abs=1e-3)
    assert agreed["per_sample"] < 1e-3 < 0.1 < min(agreed["spread"], agreed["black"])


@pytest.mark.slow
def test_both_sides_of_the_benchmark_of_adapters_train_as_many_numbers(sides, work_of):
    pytest.importorskip("peft")
    recipe, work = Recipe.read("2b-lora"), work_of("2b", tiny=True, packs=1)
    theirs = sides._Theirs(work, recipe, sides.Options(torch.device("cpu"), steps=1))
    ours = sides._our_model(work.config, recipe, torch.device("cpu"))
    trained = [parameter for parameter in ours.parameters() if parameter.requires_grad]
    assert sum(p.numel() for p in theirs.trained) == sum(p.numel() for p in trained) > 0


@pytest.mark.slow
def test_the_benchmark_of_adapters_measures_both_sides_and_memory(tmp_path):
    pytest.importorskip("peft")
    options = "--tiny --device cpu --members 2b --steps 1 --packs 1 --memory-steps 3"
    command = [sys.executable, str(BENCHMARKS / "lora.py"), *options.split()]
    environment = os.environ | {"PYTHONPATH": str(BENCHMARKS.parent / "src")}
    report = tmp_path / "report.json"
    subprocess.run([*command, "--json", str(report)], env=environment, check=True)
    found = json.loads(report.read_text())
    assert [r["case"]["side"] for r in found["results"]] == ["transformers", "ours"]
    assert [r["fit"]["method"] for r in found["memory"]] == ["QLoRA", "LoRA", "full"]
    assert all(r["tokens_per_s"] > 0 for r in (*found["results"], *found["memory"]))


@pytest.fixture
def latency(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("latency")


def test_the_speed_of_an_answer_counts_the_tokens_behind_the_first(latency):
    answers = [
        latency.Arrivals(1.0, [1.5, 1.6, 1.7], [1, 2, 3]),
        latency.Arrivals(2.0, [2.1, 2.2, 2.3], [1, 2, 3]),
        latency.Arrivals(3.0, [3.3, 3.8, 4.3], [1, 2, 3]),
    ]
    speed = latency.Speed.of(answers)
    assert speed.first_ms == pytest.approx(300)
    assert speed.tokens_per_s == pytest.approx(10)


@pytest.mark.slow
def test_the_latency_benchmark_compares_both_sides_on_one_prompt(tmp_path):
    pytest.importorskip("transformers")
    options = "--models nano --tiles 1 --rounds 1 --tokens 3 --dtype float32"
    command = [sys.executable, str(BENCHMARKS / "latency.py"), *options.split()]
    report = tmp_path / "report.json"
    subprocess.run([*command, "--json", str(report)], check=True)
    found = json.loads(report.read_text())
    (result,) = found["results"]
    assert found["machine"]["threads"] >= 1
    assert result["equal_tokens"] == result["answer_tokens"] == 3
    assert len(result["ours"]["every_first_ms"]) == 1
    assert result["prefill_ratio"] > 0
    assert result["decode_ratio"] > 0


@pytest.mark.slow
def test_the_benchmark_of_few_bits_compares_every_scheme_with_the_plain_decoder(tmp_path):
    model = BENCHMARKS.parent / "tests" / "data" / "official" / "B_qwen2" / "checkpoint"
    prompts, report = tmp_path / "prompts.txt", tmp_path / "report.json"
    prompts.write_text("What is this?\nWho are you?\n")
    command = [sys.executable, str(BENCHMARKS / "quantization.py"), "--device", "cpu"]
    command += ["--model", str(model), "--prompts", str(prompts), "--json", str(report)]
    command += ["--products", "internvl2-1b", "--rounds", "1"]
    subprocess.run(command, check=True)
    found = json.loads(report.read_text())
    plain, fp8, int8, int4 = found["decoders"]
    assert plain["divergence"] == 0 < int8["divergence"] < fp8["divergence"] < int4["divergence"]
    assert int4["mib"] < int8["mib"] < plain["mib"]
    assert fp8["token_ms"] == 0 < int8["token_ms"]
    products = found["products"]
    assert len(products) == 4 * 3 * 3  # matrices, numbers of tokens, and numbers that a CPU has
    assert {product["scheme"] for product in products[3:]} >= {"int8", "int4"}
    assert all(product["us"] > 0 and product["share"] > 0 for product in products)
    assert [product["ratio"] for product in products[:3]] == [1, 1, 1]
