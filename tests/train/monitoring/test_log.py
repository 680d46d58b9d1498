"""Records of a run are written once each, and drawn."""

import io
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from internvl2.train.monitoring import log as log_module
from internvl2.train.monitoring.log import (
    RunLog,
    StepRecord,
    ValidationRecord,
    draw,
    read_records,
    smoothed,
)


def record(step: int) -> StepRecord:
    return StepRecord(
        step=step,
        loss=5.0 / step,
        learning_rate=1e-3,
        grad_norm={"total": 1.0, "decoder": 1.0},
        tokens=10,
        tiles=1,
        samples=2,
        seconds=0.5,
        tokens_per_second=20.0,
        tiles_per_second=2.0,
        data_wait=0.0,
        memory_gib=0.1,
        tflops_vision=0.1,
        tflops_decoder=0.2,
    )


def write(folder: Path, done: int, *steps: int) -> None:
    with RunLog(folder, done, 10) as log:
        for step in steps:
            log.step(record(step))
        log.validation(ValidationRecord(steps[-1], {"loss": 1.0}))


def test_steps_that_are_done_again_have_one_record(tmp_path):
    write(tmp_path, 0, 1, 2, 3)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    write(tmp_path, 2, 3, 4)
    steps, validations = read_records(tmp_path / "metrics.jsonl")
    assert [r.step for r in steps] == [1, 2, 3, 4]
    assert [r.step for r in validations] == [4]


def test_the_losses_are_drawn(tmp_path):
    write(tmp_path, 0, 1, 2, 3)
    picture = draw(tmp_path)
    assert picture == tmp_path / "loss.png"
    with Image.open(picture) as image:
        assert image.size == (800, 550)


def test_scores_of_answers_are_drawn_below_the_losses(tmp_path):
    with RunLog(tmp_path, 0, 10) as log:
        log.step(record(1))
        log.validation(ValidationRecord(1, {"loss": 1.0, "exact_match": 0.5}))
    with Image.open(tmp_path / "loss.png") as image:
        assert image.size == (800, 800)


def test_a_run_that_ends_by_an_error_has_its_curves_and_tells_its_trackers(tmp_path):
    ends = []
    tracker = SimpleNamespace(
        step=ends.append, validation=ends.append, close=lambda *, failed: ends.append(failed)
    )

    def fail() -> None:
        with RunLog(tmp_path, 0, 10, [tracker]) as log:
            log.step(record(1))
            raise ValueError("the loss is no number")

    with pytest.raises(ValueError, match="no number"):
        fail()
    assert ends == [record(1), True]
    assert (tmp_path / "loss.png").exists()


def test_a_run_that_ends_before_its_first_step_has_no_curves(tmp_path):
    with RunLog(tmp_path, 0, 10):
        pass
    assert not (tmp_path / "loss.png").exists()


def test_a_line_says_how_long_the_other_steps_take(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(log_module.logger, "info", lambda form, *words: lines.append(form % words))
    clock = count(step=1300)
    monkeypatch.setattr(log_module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with RunLog(tmp_path, 90, 100) as log:
        log.step(record(91))
        log.step(record(92))
    assert [line.split("  ")[-1] for line in lines] == ["3:15:00 left", "2:53:20 left"]


def test_a_resumed_bar_counts_the_steps_before_it_as_done_but_not_as_fast(tmp_path, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    with RunLog(tmp_path, 900, 1000) as log:
        bar = log._bar.format_dict
        assert (bar["n"], bar["initial"], bar["total"]) == (900, 900, 1000)
        log.step(replace(record(901), mfu=0.414))
    last = terminal.getvalue().split("\r")[-1]
    assert "90%" in last
    assert "901/1000 [" in last
    assert "loss 0.0055, gradient 1, 20 tokens/s, mfu 41%" in last


def test_the_line_of_a_step_splits_mfu():
    line = replace(record(5), mfu=0.4, mfu_vision=0.1, mfu_decoder=0.3).line(10, 75.0)
    assert "tiles/s  mfu 40.0% (vision 10.0%, decoder 30.0%)  0.1 GiB" in line
    assert line.endswith("waited 0.00 s  01:15 left")


def test_the_line_of_a_step_says_what_people_look_for():
    line = record(5).line(10)
    assert line.startswith("step 5/10  loss 1.0000  rate 0.001  gradient 1 (decoder 1)")
    assert "20 tokens/s  2.0 tiles/s  0.1 GiB  waited 0.00 s" in line


@pytest.mark.parametrize("steps", [40, 4000])
def test_the_smoothed_loss_follows_short_runs_as_closely_as_long_ones(steps: int):
    falling = [1 - step / steps for step in range(steps)]
    assert smoothed(falling)[-1] - falling[-1] < 0.06
    jagged = [step % 2 for step in range(steps)]
    assert abs(smoothed(jagged)[-1] - 0.5) < 0.25


def test_a_smoothed_loss_begins_with_the_first_and_stays_with_a_constant_one():
    assert smoothed([3.0] * 30) == pytest.approx([3.0] * 30)
    assert smoothed([]) == []
