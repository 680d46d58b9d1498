"""Lines and progress bars share a terminal."""

import io
import logging
import sys
import time

import pytest

from internvl2 import console


def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Standard error for the rest of the test, with the package's lines on it."""
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", stream)
    logger = logging.getLogger("internvl2")
    for name in ("propagate", "level"):
        monkeypatch.setattr(logger, name, getattr(logger, name))
    monkeypatch.setattr(logger, "handlers", [])
    console.set_up_logging()
    return stream


def test_a_line_is_written_above_the_bar(monkeypatch):
    stream = terminal(monkeypatch)
    with console.progress(10, "training", unit="step") as bar:
        bar.update(1)
        logging.getLogger("internvl2.train").info("saved")
    above, below = stream.getvalue().strip().split("\n")
    assert above.endswith("\rinfo: saved")
    assert "training:  10%" in below


def test_what_was_done_before_a_bar_does_not_make_it_fast(monkeypatch):
    terminal(monkeypatch)
    with console.progress(100, "training", unit="step", initial=90) as bar:
        time.sleep(0.11)
        bar.update(1)
        assert "91/100" in str(bar)
        assert bar.format_dict["rate"] < 10
