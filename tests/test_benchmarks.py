"""The training benchmark: both sides get the same samples, and compute the same loss."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from internvl2.engine.sequence import Logprobs, TokenLogprob
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


def test_joined_packs_hold_the_same_samples(work_of):
    work = work_of("2b", tiny=True, packs=4)
    joined = work.joined(2)
    assert (len(work.packs), len(joined.packs)) == (4, 2)
    assert (joined.samples, joined.limits.tokens) == (work.samples, 2 * work.limits.tokens)
    assert [len(batch.tokens) for batch in joined.batches()] == [joined.limits.tokens] * 2


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
    assert timing.setting == "packs of 512, 8bit moments, recompute 0.5/0.5"
    assert timing.tried == ("packs of 512, 8bit moments, recompute 0/0: out of memory",)


def test_a_setting_is_probed_by_its_second_step(sides, monkeypatch):
    clock = [0.0]
    cold_and_warm = iter((9.0, 2.0))
    monkeypatch.setattr(sides.time, "perf_counter", lambda: clock[0])

    def step():
        clock[0] += next(cold_and_warm)

    assert sides._probed(step, sides.Options(torch.device("cpu"), steps=1)) == 2.0


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
    assert speed.first_ms.median == pytest.approx(300)
    assert speed.tokens_per_s.median == pytest.approx(10)


@pytest.mark.parametrize(
    ("ours", "shift", "equal", "verdict"),
    [
        ([3, 1, 2], 0.0, 3, "equal"),
        ([3, 1, 2], 0.5, 3, "different"),
        ([3, 5, 0], 1e-5, 1, "equal but for rounding"),
        ([3, 0, 0], 1e-5, 1, "different"),
        ([0, 0, 0], 1e-5, 0, "equal but for rounding"),
        ([0, 0, 0], 0.5, 0, "different"),
    ],
)
def test_other_tokens_are_called_equal_only_where_logits_explain_them(
    monkeypatch, ours, shift, equal, verdict
):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("token_agreement")
    logprobs = torch.zeros(3, 6)
    logprobs[0, 3], logprobs[0, 0] = 2.0, 2.0 - 1e-5
    logprobs[1, 1], logprobs[1, 5] = 2.0, 2.0 - 1e-5
    logprobs[2, 2] = 2.0
    reports = [report_of(ours[place], logprobs[place] + shift) for place in range(3)]
    found = module.agreement(module.Written([3, 1, 2], logprobs), ours, reports, "float32")
    assert (found.equal_tokens, found.verdict) == (equal, verdict)
    assert found.difference == pytest.approx(shift, abs=1e-6)


def report_of(token, logprobs):
    top = tuple(TokenLogprob(i, value) for i, value in enumerate(logprobs.tolist()))
    return Logprobs(top[token], top)


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
    assert result["tokens"]["equal_tokens"] == result["answer_tokens"] == 3
    assert result["tokens"]["verdict"] == "equal"
    assert result["tokens"]["margin"] > 100 * result["tokens"]["difference"]
    assert result["repeats"]
    assert len(result["ours"]["first_ms"]["every"]) == 1
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


@pytest.fixture
def speed(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("speed")


def found_of(limit: float | None = None, **figures: float) -> dict:
    """What a process writes down of some figures; `_` stands for a blank."""
    named = {name.replace("_", " "): value for name, value in figures.items()}
    limits = {} if limit is None else dict.fromkeys(named, limit)
    return {
        "figures": {name: {"every": [value]} for name, value in named.items()},
        "limits": limits,
        "notes": [],
    }


def rows_of(speed, engines: dict[str, dict]) -> dict[str, list[str]]:
    found = {engine: speed.Found.of(raw) for engine, raw in engines.items()}
    lines = list(speed.table("2b", found, speed.texts_of(speed.Sizes())))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in cells}


def test_the_speed_table_has_aims_limits_and_ratios(speed):
    rows = rows_of(
        speed,
        {
            "ours": found_of(30.0, first_token_fast=60.0),
            "transformers": found_of(first_token_fast=90.0),
            "vllm": found_of(first_token_fast=240.0),
        },
    )
    assert rows["2b"] == [
        *("aim", "limit", "ours", "of the limit", "transformers", "ratio", "vllm", "ratio"),
    ]
    row = rows["first token, 1600x1200, fast, ms"]
    assert row == ["≤ 60", "30", "60", "50%", "90", "1.50", "240", "4.00"]


def test_the_faster_way_of_transformers_to_decode_counts(speed):
    theirs = found_of(decode=30.0, decode_compiled=200.0)
    rows = rows_of(speed, {"ours": found_of(decode=600.0), "transformers": theirs})
    assert rows["decode, batch 1, tokens/s"][-2:] == ["200", "3.00"]


def test_the_gain_of_fewer_bits_is_told_when_both_are_measured(speed):
    rows = rows_of(speed, {"ours": found_of(decode=600.0, decode_fp8=900.0)})
    assert rows["fp8 by bf16"][:3] == ["≥ 1.4", "", "1.5"]
    assert "int8 by bf16" not in rows


def test_runs_of_several_parts_become_one_table(speed):
    about = {"conditions": {"device": "cuda"}, "sizes": {}}
    first = about | {"models": {"1b": {"ours": found_of(decode=1.0)}}}
    second = about | {"models": {"1b": {"ours": found_of(video=2.0)}, "2b": {}}}
    whole = speed.joined([first, second])
    assert set(whole["models"]["1b"]["ours"]["figures"]) == {"decode", "video"}
    other = about | {"conditions": {"device": "cpu"}, "models": {}}
    with pytest.raises(SystemExit, match="different machines"):
        speed.joined([first, other])


def test_a_job_is_read_as_it_was_written(speed, tmp_path):
    job = speed.Job("ours", tmp_path, ("decode",), "cpu", "float32", speed.Sizes.tiny(), "int8")
    job.write(tmp_path / "job.json")
    assert speed.Job.read(tmp_path / "job.json") == job


STAND_IN = """
from types import SimpleNamespace

__version__ = "0"
SamplingParams = SimpleNamespace


class LLM:
    def __init__(self, *, model, trust_remote_code, **settings):
        assert not trust_remote_code

    def generate(self, requests, params, use_tqdm):
        for request in requests:
            assert request["prompt"].startswith("<|im_start|>system")
            assert ("<IMG_CONTEXT>" in request["prompt"]) == ("multi_modal_data" in request)
        output = SimpleNamespace(token_ids=[0] * params.max_tokens)
        return [SimpleNamespace(outputs=[output])] * len(requests)
"""


@pytest.mark.slow
def test_the_speed_benchmark_asks_every_engine_the_same(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text(STAND_IN)
    options = "--tiny --device cpu --dtype float32 --only first-token decode texts start"
    command = [sys.executable, str(BENCHMARKS / "speed.py"), *options.split()]
    report = tmp_path / "report.json"
    more = ["--vllm-path", str(tmp_path), "--json", str(report)]
    done = subprocess.run([*command, *more], check=True, capture_output=True, text=True)
    assert "failed" not in done.stdout
    engines = json.loads(report.read_text())["models"]["nano"]
    figures = {engine: set(found["figures"]) for engine, found in engines.items()}
    shared = {"first token fast", "first token exact", "decode", "texts"}
    assert figures["transformers"] == shared | {"start s"}
    assert figures["vllm"] == shared | {"ready s"}
    starts = {"first answer s", "ready s"}
    starts |= {f"{name}, nothing compiled" for name in starts}
    assert figures["ours"] == shared | starts | {"start s", "weights GB/s"}


def test_an_engine_that_is_not_installed_is_named(speed, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["speed.py", "--vllm-path", str(tmp_path)])
    job = speed.Job("vllm", tmp_path, ("decode",), "cpu", "float32", speed.Sizes.tiny())
    assert speed.run(job, speed.parse(), tmp_path).notes == ["vllm is not installed"]


@pytest.mark.slow
def test_an_engine_that_fails_is_named_with_its_last_words(speed, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["speed.py", "--device", "cpu", "--tiny"])
    work, missing = speed.parse(), tmp_path / "missing"
    job = speed.Job("ours", missing, ("decode",), "cpu", "float32", speed.Sizes.tiny())
    (note,) = speed.run(job, work, tmp_path).notes
    assert note.startswith("ours failed: ")
    assert "missing" in note


def test_the_speed_benchmark_writes_down_what_it_has_and_ends_in_time(speed, tmp_path, monkeypatch):
    report = tmp_path / "report.json"
    command = f"speed.py --device cpu --tiny --engines ours --budget 0 --json {report}"
    monkeypatch.setattr(sys, "argv", command.split())
    speed.main()
    (engines,) = json.loads(report.read_text())["models"].values()
    assert engines["ours"]["figures"] == {}
    assert all(note.endswith("no time was left") for note in engines["ours"]["notes"])
    assert len(engines["ours"]["notes"]) == 4  # nothing compiled, one, many, int8


@pytest.mark.slow
def test_a_process_that_takes_too_long_is_ended_and_named(speed, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["speed.py", "--limit", "3"])
    told = "import sys, time; print('begun', file=sys.stderr, flush=True); time.sleep(60)"
    found = speed.call([sys.executable, "-c", told], {}, speed.parse())
    assert found == "it took longer than 3 s; its last words: begun"
