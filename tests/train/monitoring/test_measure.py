"""What a step's record says of its speed is what was done in its time."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from internvl2 import family
from internvl2.train.data.loader import Position, Step
from internvl2.train.data.packing import IGNORED, Pack, TrainBatch
from internvl2.train.monitoring import measure
from internvl2.train.monitoring.flops import pack_flops
from internvl2.train.monitoring.log import StepRecord
from internvl2.train.monitoring.measure import Meter
from internvl2.train.optimization import Moved
from internvl2.train.parallel import World
from internvl2.train.recipe import Freeze

CONFIG = family.find("internvl2-1b").config
CPU = World(0, 1, torch.device("cpu"))


def pack() -> TrainBatch:
    """A stream of 100 places: two samples with three tiles, one more tile, and padding."""
    labels = np.full(100, IGNORED, np.int64)
    labels[[5, 6, 7, 40, 41, 42, 43]] = 1
    return TrainBatch.of(
        Pack(
            tokens=np.zeros(100, np.int64),
            labels=labels,
            weights=(labels != IGNORED).astype(np.float32),
            visual_rows=np.arange(12),
            lengths=(30, 50, 20),
            tiles=np.zeros((4, 28, 28, 3), np.uint8),
            num_tiles=3,
            where=("a:1", "a:2"),
        )
    )


def record(meter: Meter) -> StepRecord:
    packs = Step((pack(), pack()), Position())
    return meter.record(1, 1.0, Moved(1e-3, {"total": 1.0}), packs, seconds=0.5, waited=0.1)


def test_padding_counts_neither_as_tokens_nor_as_arithmetic():
    told = record(Meter(CONFIG, Freeze(), CPU))
    flops = pack_flops(CONFIG, Freeze(), [30, 50], tiles=3, labelled=7)
    assert (told.tokens, told.tiles, told.samples) == (160, 6, 4)
    assert (told.tokens_per_second, told.tiles_per_second) == (320, 12)
    assert told.tflops_vision == pytest.approx(2 * flops.vision / 0.5 / 1e12)
    assert told.tflops_decoder == pytest.approx(2 * flops.decoder / 0.5 / 1e12)


def test_a_cpu_has_no_mfu():
    told = record(Meter(CONFIG, Freeze(), CPU))
    assert (told.mfu, told.mfu_vision, told.mfu_decoder) == (None, None, None)


def test_the_parts_of_mfu_add_up(monkeypatch):
    cuda = World(0, 1, torch.device("cuda"))
    monkeypatch.setattr(measure, "_matmul_speed", lambda device: 1e15)
    monkeypatch.setattr(measure, "_memory", lambda device: 2**30)
    told = record(Meter(CONFIG, Freeze(), cuda))
    assert told.mfu_vision == pytest.approx(told.tflops_vision / 1000)
    assert told.mfu_decoder == pytest.approx(told.tflops_decoder / 1000)
    assert told.mfu == pytest.approx(told.mfu_vision + told.mfu_decoder)


@pytest.mark.parametrize(("platform", "taken"), [("linux", 5000 * 1024), ("darwin", 5000)])
def test_macos_counts_a_process_s_memory_in_bytes(monkeypatch, platform, taken):
    usage = SimpleNamespace(ru_maxrss=5000)
    own = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: usage)
    monkeypatch.setattr(measure, "resource", own)
    monkeypatch.setattr(measure, "sys", SimpleNamespace(platform=platform))
    assert measure._memory(torch.device("cpu")) == taken
