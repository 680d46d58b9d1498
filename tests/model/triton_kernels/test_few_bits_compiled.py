"""Kernels for few bits compile for Hopper GPUs, with wide loads and numbers in registers alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("few_bit_resources.py")


@pytest.mark.slow
def test_kernels_for_few_bits_compile_for_hopper_and_spill_nothing(monkeypatch):
    triton = pytest.importorskip("triton")
    if not (Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas").exists():
        pytest.skip("this build of Triton has no ptxas")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    run = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(found) == 3 * 2 * 3 + 3 * 5 + 1
    for kernel in found:
        assert kernel["stack"] == 0, kernel
        assert kernel["registers"] <= 255, kernel
        assert kernel["shared"] <= 227 * 1024, kernel
        assert kernel["wide"] > 0 or kernel["name"] == "parts", kernel
