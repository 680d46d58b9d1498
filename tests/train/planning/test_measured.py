"""Predictions beside the peaks and speeds that were measured on H200s.

Of benchmarks/RESULTS.md: `benchmarks/training.py` (four packs of 8,192 tokens, 956 of them learned,
and up to 30 tiles), the command line's fine-tune of 8B, and two GPUs. 8B with everything recomputed
is from an earlier run of the benchmark.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import pytest
import torch

from internvl2.family import find
from internvl2.train.planning.activations import Execution
from internvl2.train.planning.machine import GIB
from internvl2.train.planning.memory import Pack, Step
from internvl2.train.planning.sizes import Sizes, count
from internvl2.train.planning.speed import REFERENCE, tokens_per_second
from internvl2.train.preparation import without_memory
from internvl2.train.recipe import Freeze, Recipe, Recompute


@dataclass(frozen=True)
class Case:
    """One measurement."""

    member: str
    trained: Literal["all", "frozen"]
    gib: float
    tokens_per_second: float | None
    recompute: float = 0.0
    packs: int = 4
    processes: int = 1
    shard: bool = False

    def __str__(self) -> str:
        return f"{self.member}-{self.trained}-{self.recompute:g}-{self.processes}-{self.shard}"

    @property
    def step(self) -> Step:
        """What is to predict them."""
        recipe = replace(
            Recipe.read(self.member),
            freeze=Freeze(vision=self.trained == "frozen"),
            recompute=Recompute(self.recompute, self.recompute),
            packs_per_step=self.packs,
            shard=self.shard,
        )
        sizes, config = sizes_of(self.member, self.trained), find(recipe.model).config
        compiled, pack = Execution(compiled=True), Pack(8192, 30, 956)
        return Step(recipe, config, sizes, compiled, pack, self.processes)


CASES = (
    Case("1b", "all", 45.5, 39_005),
    Case("1b", "frozen", 18.6, 70_171),
    Case("2b", "all", 68.8, 26_447),
    Case("2b", "frozen", 41.7, 38_686),
    Case("8b", "all", 121.3, 9_476),
    Case("8b", "frozen", 96.3, 11_017),
    Case("8b", "frozen", 65.2, 8_028, recompute=1.0, packs=2),
    Case("8b", "all", 67.8, 7_010, recompute=1.0),
    Case("2b", "frozen", 41.8, None, processes=2),
    Case("2b", "frozen", 31.9, 49_533, processes=2, shard=True),
)


def cases(*measured: Case) -> list[Any]:
    """Those of the smallest model always, the others with the slow tests."""
    slow = pytest.mark.slow
    return [
        pytest.param(case, id=str(case), marks=() if case.member == "1b" else slow)
        for case in measured
    ]


@cache
def sizes_of(member: str, trained: str) -> Sizes:
    """Of the packaged recipe with all trained, or all but the vision tower."""
    recipe = replace(Recipe.read(member), freeze=Freeze(vision=trained == "frozen"))
    model = without_memory(recipe, find(recipe.model).config, torch.bfloat16)
    return count(model, recipe.optimizer)[recipe.optimizer.moments]


@pytest.mark.parametrize("case", cases(*CASES))
def test_measured_peaks_are_predicted_within_5_percent(case: Case):
    assert case.step.peak.total / GIB == pytest.approx(case.gib, rel=0.05)


@pytest.mark.parametrize("case", cases(*(c for c in CASES if c.tokens_per_second)))
def test_measured_speeds_are_predicted_within_10_percent(case: Case):
    predicted = tokens_per_second(case.step, REFERENCE)
    assert predicted == pytest.approx(case.tokens_per_second, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "quantize", "peak_gb"), [("8b-lora", "nf4", 8.72), ("2b-lora", None, 10.88)]
)
def test_measured_peaks_of_adapters_are_predicted_within_10_percent(name, quantize, peak_gb):
    recipe = replace(Recipe.read(name), quantize=quantize, packs_per_step=1)
    config = find(recipe.model).config
    model = without_memory(recipe, config, torch.bfloat16)
    sizes = count(model, recipe.optimizer)[recipe.optimizer.moments]
    pack = Pack.fullest(recipe, config)
    step = Step(recipe, config, sizes, Execution(compiled=True), pack)
    assert step.peak.total / 1e9 == pytest.approx(peak_gb, rel=0.1)
