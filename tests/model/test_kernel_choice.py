"""A fused kernel is used where it runs, agrees and, if asked, is faster; else a warning says so."""

import logging
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from internvl2.model.kernel_choice import GraphClock, KernelChoice, Trial


def double(x: Tensor) -> Tensor:
    return x * 2


def trial(fused: Callable[..., Tensor], x: Tensor | None = None) -> Trial:
    return Trial("doubling", fused, double, (torch.arange(1.0, 9.0) if x is None else x,))


def fails(x: Tensor) -> Tensor:
    raise RuntimeError("no registers left")


def lacks_a_package(x: Tensor) -> Tensor:
    import a_package_that_is_nowhere  # pyright: ignore[reportMissingImports]

    return a_package_that_is_nowhere.double(x)


def test_a_kernel_that_agrees_is_used(caplog):
    assert KernelChoice().prepare(trial(lambda x: x + x))
    assert caplog.records == []


@pytest.mark.parametrize(
    ("fused", "reason"),
    [
        (fails, "no registers left"),
        (lacks_a_package, "No module named 'a_package_that_is_nowhere'"),
        (lambda x: x * 2.1, "differs by 0.8"),
        (lambda x: x * torch.nan, "differs by nan"),
        (lambda x: (x * 2)[:4], "(4,)"),
        (lambda x: (x * 2).half(), "float16"),
    ],
)
def test_any_other_is_passed_over_with_a_warning_that_says_why(fused, reason, caplog):
    assert not KernelChoice().prepare(trial(fused))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "doubling" in record.message
    assert reason in record.message


def test_a_kernel_is_tried_once_for_a_type_and_a_case():
    calls = []

    def counted(x: Tensor) -> Tensor:
        calls.append(x.dtype)
        return x + x

    choice, single = KernelChoice(), trial(counted)
    for _ in range(3):
        assert choice.prepare(single)
    assert choice.prepare(trial(counted, torch.ones(3, dtype=torch.float16)))
    assert choice.prepare(replace(single, case="wide"))
    assert calls == [torch.float32, torch.float16, torch.float32]


def test_a_reason_that_several_kernels_share_is_told_once(caplog):
    choice = KernelChoice()
    for name in ("one", "two"):
        assert not choice.prepare(replace(trial(lacks_a_package), name=name))
    assert len(caplog.records) == 1


def test_differences_within_rounding_are_none():
    choice, x = KernelChoice(), torch.ones(4)
    assert choice.prepare(trial(lambda x: x * 2 + 1e-6, x))
    assert choice.prepare(trial(lambda x: x * 2 + 2**-6, x.bfloat16()))
    assert not choice.prepare(replace(trial(lambda x: x * 2 + 2**-4, x.bfloat16()), case="far"))
    assert choice.prepare(replace(trial(lambda x: x * 2.2, x), case="loose", tolerance=0.2))


def test_several_results_are_compared_one_by_one(caplog):
    both = replace(trial(lambda x: (x, x + 1)), plain=lambda x: (x, x + 2))
    assert not KernelChoice().prepare(both)
    assert "result 2 of 2" in caplog.records[0].message


@pytest.mark.parametrize(
    ("fused_takes", "taken"), [(1e-6, True), (1.9e-6, True), (1.98e-6, False), (3e-6, False)]
)
def test_a_clearly_faster_one_is_taken_where_that_is_asked(fused_takes: float, taken: bool, caplog):
    times = iter([fused_takes, 2e-6])
    choice = KernelChoice(seconds=lambda run: next(times))
    assert choice.prepare(replace(trial(lambda x: x + x), must_be_faster=True)) is taken
    assert caplog.records == []


def test_a_plain_path_that_fails_is_an_error():
    with pytest.raises(RuntimeError, match="no registers left"):
        KernelChoice().prepare(Trial("doubling", double, fails, (torch.ones(2),)))


@pytest.mark.wrong_types
def test_no_kernel_is_tried_on_gpus_that_triton_does_not_know(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))

    class Input:
        device, dtype = torch.device("cuda"), torch.float16

    old = Trial("doubling", fails, fails, (Input(),))  # pyright: ignore[reportArgumentType]
    assert not KernelChoice().prepare(old)
    assert "8.0 or later, not 7.0" in caplog.records[0].message


@pytest.mark.gpu
def test_a_product_of_larger_matrices_takes_longer():
    small, large = (torch.randn(n, n, device="cuda") for n in (256, 4096))
    clock = GraphClock()
    assert clock.seconds(lambda: small @ small) < clock.seconds(lambda: large @ large)


@pytest.mark.gpu
def test_a_run_that_cannot_be_recorded_leaves_the_stream_and_the_next_one_is_timed(caplog):
    x = torch.ones(1024, device="cuda")
    before = torch.cuda.current_stream()

    def waits(x: Tensor) -> Tensor:
        return x * (2.0 if float(x[0]) else 1.0)

    choice = KernelChoice()
    assert not choice.prepare(replace(trial(waits, x), must_be_faster=True))
    assert torch.cuda.current_stream() == before
    assert GraphClock().seconds(lambda: double(x)) > 0
    assert choice.prepare(replace(trial(lambda x: x + x, x), case="another"))
    assert len(caplog.records) == 1
