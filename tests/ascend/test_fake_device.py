"""The fake Ascend device is right: it computes as the CPU does and refuses what a card refuses."""

import json
import re
from pathlib import Path

import pytest

CHECKS = Path(__file__).parent / "fake" / "checks"
OWN_SETTINGS = ("-n", "0", "-m", "", "-p", "no:cacheprovider", "-q")

pytestmark = pytest.mark.slow


def output_of(process) -> str:
    output, messages = process.communicate(timeout=600)
    assert process.returncode == 0, output + messages
    return output


@pytest.mark.parametrize("checks", sorted(CHECKS.glob("check_*.py")), ids=lambda path: path.stem)
def test_in_a_process_of_its_own(checks: Path, start_on_npu) -> None:
    output = output_of(start_on_npu("-m", "pytest", *OWN_SETTINGS, checks))
    assert re.search(r"^\d+ passed", output, re.MULTILINE)
    assert "skipped" not in output


def test_two_processes_share_a_model_over_hccl(start_on_npu, tmp_path: Path) -> None:
    process = start_on_npu(CHECKS / "sharded.py", tmp_path, environment={"FAKE_NPU_COUNT": "2"})
    for rank, found in enumerate(json.loads(output_of(process))):
        assert found["together"] == pytest.approx(found["alone"], abs=1e-6)
        assert found["gathered"] == [0, 10, 1, 11]
        assert found["reduced"] == [[1], [21]][rank]
        assert found["on_host"] == [2.0]
        assert found["objects"] == [{"rank": 0}, {"rank": 1}]
        assert found["broadcast"] == [1, 11]
        assert "no ReduceOp.AVG" in found["average"]
        assert found["devices"] == 2


MEMORY = "import torch, torch_npu; print(torch.npu.mem_get_info()[1]); torch.zeros(1 << 20).npu()"


def test_the_environment_limits_the_memory(start_on_npu) -> None:
    process = start_on_npu("-c", MEMORY, environment={"FAKE_NPU_BYTES": "1000000"})
    output, messages = process.communicate(timeout=60)
    assert output == "1000000\n"
    assert "OutOfMemoryError: NPU out of memory" in messages


OLDER = """
import torch, torch_npu
assert not torch.npu.is_bf16_supported()
torch.zeros(1, device="npu", dtype=torch.float16)
torch.zeros(1, device="npu", dtype=torch.bfloat16)
"""


def test_an_older_card_has_no_bf16(start_on_npu) -> None:
    process = start_on_npu("-c", OLDER, environment={"FAKE_NPU_BF16": "0"})
    assert "this NPU has no bf16" in process.communicate(timeout=60)[1]


LENIENT = "import torch, torch_npu; torch.zeros(1, device='npu', dtype=torch.float64).sum().item()"


def test_what_is_refused_can_be_allowed(start_on_npu) -> None:
    output_of(start_on_npu("-c", LENIENT, environment={"FAKE_NPU_STRICT": "0"}))


RECORDED = "import torch, torch_npu; (torch.ones(2, device='npu') * 2).cpu()"


def test_operators_are_written_to_a_file_by_every_process(start_on_npu, tmp_path: Path) -> None:
    file = tmp_path / "operators"
    for _ in range(2):
        output_of(start_on_npu("-c", RECORDED, environment={"FAKE_NPU_OPS": str(file)}))
    names = file.read_text().split()
    assert set(names) == {"aten::fill_.Scalar", "aten::mul.out", "aten::copy_"}
    assert len(names) == 6


COMPILER = """#!/bin/sh
echo run >> {log}
while [ "$1" != -o ]; do shift; done
case "$2" in *.so) sleep 1; cp {built} "$2";; *) : > "$2";; esac
"""
WHERE = "import torch_npu; print(torch_npu._device.__file__)"


def test_processes_that_start_together_build_once(start_on_npu, tmp_path: Path) -> None:
    built = output_of(start_on_npu("-c", WHERE)).strip()
    compiler, log, cache = (tmp_path / name for name in ("compiler", "log", "cache"))
    compiler.write_text(COMPILER.format(log=log, built=built))
    compiler.chmod(0o755)
    environment = {"FAKE_NPU_CACHE": str(cache), "CXX": str(compiler)}
    started = [start_on_npu("-c", RECORDED, environment=environment) for _ in range(3)]
    for process in started:
        output_of(process)
    sources = list((CHECKS.parent / "torch_npu" / "csrc").glob("*.cpp"))
    assert log.read_text().count("run") == len(sources) + 1
    assert sorted(path.suffix for path in cache.iterdir()) == [".lock", ".so"]
