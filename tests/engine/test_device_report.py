"""What is said of devices that are not here: they are given as facts."""

from dataclasses import replace

import pytest
import torch

from internvl2 import device as devices
from internvl2.config import DTypeName
from internvl2.cores import Cores
from internvl2.engine.device_report import DeviceFacts, DeviceReport, read_facts, report

VOLTA = DeviceFacts("cuda", "Tesla V100", multiplies_bf16=False, capability=(7, 0))
TURING = replace(VOLTA, name="Tesla T4", capability=(7, 5))
AMPERE = DeviceFacts("cuda", "NVIDIA A100", index=1, count=8, capability=(8, 0), has_compiler=True)
HOPPER = replace(AMPERE, name="NVIDIA H200", capability=(9, 0), free_memory=139 * 2**30)
ATLAS_A2 = DeviceFacts("npu", "Ascend910B3", count=8)
ATLAS_OLD = DeviceFacts("npu", "Ascend910A", multiplies_bf16=False)
APPLE = DeviceFacts("mps", "Apple GPU")
NEW_CPU = DeviceFacts("cpu", "AMD EPYC", packs=True, has_compiler=True)
OLD_CPU = DeviceFacts("cpu", "Core i7", multiplies_bf16=False)


def chosen(found: DeviceReport) -> dict[str, str]:
    return {choice.what: choice.chosen for choice in found.choices}


def reason(found: DeviceReport, what: str) -> str:
    return next(choice.why for choice in found.choices if choice.what == what)


@pytest.mark.parametrize(
    ("facts", "stored", "wanted", "expected"),
    [
        (VOLTA, "bfloat16", None, "float16"),
        (TURING, "bfloat16", None, "float16"),
        (VOLTA, "float32", None, "float32"),
        (AMPERE, "bfloat16", None, "bfloat16"),
        (HOPPER, "float16", "bf16", "bfloat16"),
        (ATLAS_A2, "bfloat16", None, "bfloat16"),
        (ATLAS_OLD, "bfloat16", None, "float16"),
        (APPLE, "bfloat16", None, "bfloat16"),
        (NEW_CPU, "bfloat16", None, "bfloat16"),
        (NEW_CPU, "float16", None, "float32"),
        (OLD_CPU, "bfloat16", None, "float32"),
        (OLD_CPU, "bfloat16", "fp16", "float16"),
    ],
)
def test_the_number_format_is_one_that_the_device_is_good_at(
    facts: DeviceFacts, stored: DTypeName, wanted: str | None, expected: str
):
    assert chosen(report(facts, stored, wanted, 128))["number format"] == expected


@pytest.mark.parametrize("facts", [VOLTA, TURING, ATLAS_OLD])
@pytest.mark.parametrize("name", ["bf16", "bfloat16"])
def test_bf16_is_refused_where_an_accelerator_has_none(facts: DeviceFacts, name: str):
    with pytest.raises(ValueError, match=f"dtype {name}: this {facts.kind} device.*use float16"):
        report(facts, "bfloat16", name, 128)


def test_a_format_that_nothing_computes_in_is_refused_with_those_that_are_known():
    with pytest.raises(ValueError, match="unknown dtype 'float64'; known: bfloat16, float16"):
        report(HOPPER, "bfloat16", "float64", 128)


@pytest.mark.parametrize(
    ("facts", "kernel"),
    [
        (HOPPER, "a kernel in Triton that reads the cache in place"),
        (
            replace(HOPPER, has_compiler=False),
            "scaled_dot_product_attention over gathered blocks",
        ),
        (
            replace(TURING, has_compiler=True),
            "scaled_dot_product_attention over gathered blocks",
        ),
    ],
)
def test_written_tokens_have_a_kernel_where_triton_can_make_one(facts: DeviceFacts, kernel: str):
    assert chosen(report(facts, "float16", None, 64))["attention, decode"] == kernel


@pytest.mark.parametrize(("facts", "is_slow"), [(OLD_CPU, True), (NEW_CPU, False)])
def test_bf16_on_a_cpu_without_its_products_works_and_is_called_slow(
    facts: DeviceFacts, is_slow: bool
):
    why = reason(report(facts, "bfloat16", "bf16", 64), "number format")
    assert ("slow, but it works" in why) == is_slow


@pytest.mark.parametrize(
    ("facts", "head_dim", "prefill"),
    [
        (VOLTA, 128, "scaled_dot_product_attention, memory-efficient kernel"),
        (TURING, 128, "scaled_dot_product_attention, memory-efficient kernel"),
        (AMPERE, 128, "variable-length flash attention"),
        (
            HOPPER,
            64,
            "variable-length flash attention, or a kernel in Triton where that is faster",
        ),
        (replace(HOPPER, has_compiler=False), 64, "variable-length flash attention"),
        (HOPPER, 512, "scaled_dot_product_attention"),
        (ATLAS_A2, 128, "npu_fusion_attention"),
        (ATLAS_OLD, 128, "scaled_dot_product_attention"),
        (APPLE, 128, "scaled_dot_product_attention"),
        (NEW_CPU, 128, "scaled_dot_product_attention"),
    ],
)
def test_the_kernel_of_prefill_follows_from_the_generation(
    facts: DeviceFacts, head_dim: int, prefill: str
):
    assert chosen(report(facts, "bfloat16", None, head_dim))["attention, prefill"] == prefill


def test_flash_attention_is_for_half_precision():
    found = report(HOPPER, "float32", None, 128)
    assert "flash" not in chosen(found)["attention, prefill"]
    assert "float32" in reason(found, "attention, prefill")
    assert chosen(found)["attention, vision"].endswith("memory-efficient kernel")


def test_ascend_decodes_through_block_tables_from_atlas_a2_on():
    wanted = "npu_fused_infer_attention_score"
    assert chosen(report(ATLAS_A2, "bfloat16", None, 128))["attention, decode"] == wanted
    assert wanted not in str(report(ATLAS_OLD, "bfloat16", None, 128))


def test_a_cpu_with_bf16_products_packs_and_attends_head_by_head_in_bf16_alone():
    found = chosen(report(NEW_CPU, "bfloat16", None, 64))
    assert found["linear maps"] == "packed for oneDNN"
    assert found["attention, vision"] == "products of bf16, head by head"
    found = chosen(report(NEW_CPU, "bfloat16", "float32", 64))
    assert found["linear maps"] == "PyTorch's order of weights"


@pytest.mark.parametrize(
    ("facts", "group"),
    [
        (HOPPER, "cpu:gloo,cuda:nccl"),
        (ATLAS_A2, "cpu:gloo,npu:hccl"),
        (NEW_CPU, "gloo"),
        (APPLE, "none"),
    ],
)
def test_processes_talk_through_what_the_device_has(facts: DeviceFacts, group: str):
    assert chosen(report(facts, "bfloat16", None, 128))["process group"] == group


def test_threads_say_where_they_come_from_and_what_would_be_sensible():
    limited = replace(NEW_CPU, cores=Cores(16, 8, quota=2.0), threads=2)
    why = reason(report(limited, "bfloat16", None, 64), "threads")
    assert "gives time for 2 of 8 cores" in why
    why = reason(report(replace(limited, threads=8), "bfloat16", None, 64), "threads")
    assert "2 would be sensible" in why


def test_a_gpu_without_triton_is_told_how_to_get_it():
    found = report(VOLTA, "float16", None, 128)
    assert "pip install triton" in reason(found, "compilation")
    assert "Triton" in chosen(report(HOPPER, "bfloat16", None, 128))["compilation"]


def test_the_report_names_one_of_several_devices_and_its_memory():
    found = report(HOPPER, "bfloat16", None, 128)
    assert found.device == "cuda:1"
    assert chosen(found)["memory"] == "139.0 GiB free"
    assert found.lines().startswith("cuda:1 (NVIDIA H200)\n  number format")


def test_the_facts_of_this_machine_agree_with_what_the_engine_chooses():
    facts = read_facts(torch.device("cpu"))
    dtype = devices.choose_dtype(torch.device("cpu"), "bfloat16")
    found = chosen(report(facts, "bfloat16", None, 64))
    assert found["number format"] == str(dtype).removeprefix("torch.")
    assert found["threads"] == str(torch.get_num_threads())
    assert facts.free_memory > 0
    assert facts.name
