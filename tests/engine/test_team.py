"""The processes that divide a model start, fail and end together."""

import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from internvl2 import device as devices
from internvl2.engine import follower, tensor_parallel
from internvl2.engine.engine import Engine, EngineOptions
from internvl2.engine.sequence import SamplingParams
from internvl2.engine.tensor_parallel import choose_places
from internvl2.family import find
from internvl2.model.kernels import FusedKernels
from internvl2.model.tensor_parallel import DividedInternVL, Share
from internvl2.processing.conversation import Message

SOURCE = Path(__file__).parents[2] / "src"
ASKED = [Message.user("How many people are there?")]
SHORT = SamplingParams(max_tokens=4, ignore_eos=True)


PROGRAM = """
import os, sys, time
from internvl2.engine.engine import Engine
engine = Engine.load(sys.argv[1], device="cpu", tensor_parallel=2)
print(*(follower.process.pid for follower in engine._team._followers), flush=True)
if sys.argv[2] == "wait":
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def directory(recording) -> Path:
    return recording("B_qwen2").checkpoint


def load(directory: Path, size: int) -> Engine:
    options = EngineOptions(cache_tokens=1024, max_context=512)
    return Engine.load(directory, device="cpu", tensor_parallel=size, options=options)


def followers(engine: Engine) -> list[subprocess.Popen]:
    return [each.process for each in engine._team._followers]


@pytest.mark.slow
def test_a_process_that_dies_is_named_and_the_engine_ends(directory):
    with load(directory, 2) as engine:
        engine.answer(ASKED, SHORT)
        (other,) = followers(engine)
        other.kill()
        other.wait()
        for _ in range(2):
            with pytest.raises(ChildProcessError, match=r"process 1 of 2 \(cpu\) .*exit code -9"):
                engine.answer(ASKED, SHORT)


@pytest.mark.slow
def test_a_closed_engine_lets_go_of_what_it_recorded(directory):
    """A group of processes waits for the CUDA graphs that have its sums."""
    with load(directory, 2) as engine:
        engine.answer(ASKED, SHORT)
        computing = weakref.ref(engine.runner._own)
    assert computing() is None
    assert not dist.is_initialized()
    assert [process.returncode for process in followers(engine)] == [0]


@pytest.mark.wrong_types
def test_a_kernel_that_one_process_lacks_is_used_by_none():
    with torch.device("meta"):
        model = DividedInternVL(find("internvl2-1b").config, Share(0, 2))
    for everywhere, kernel in ((True, print), (False, None)):
        model.decoder.use(FusedKernels(gate=print, paged_decode=print))
        peers = SimpleNamespace(all_have=lambda here, there=everywhere: here and there)
        follower._agree_on_kernels(model, peers)
        assert model.decoder.kernels == FusedKernels(gate=print, paged_decode=kernel)


@pytest.mark.slow
def test_what_fails_in_another_process_reaches_the_caller(directory):
    with load(directory, 2) as engine:
        engine._team.tell("nothing that a follower knows")
        with pytest.raises(ChildProcessError, match=r"process 1 of 2 \(cpu\) failed: AttributeErr"):
            engine.answer(ASKED, SHORT)


@pytest.mark.slow
def test_an_error_of_the_first_process_ends_the_others(directory, monkeypatch):
    monkeypatch.setattr(tensor_parallel, "REPORT_SECONDS", 0.1)
    with load(directory, 2) as engine:
        (other,) = followers(engine)
        with monkeypatch.context() as broken:
            fault = ArithmeticError("no more numbers")
            broken.setattr(engine.model, "logits", lambda hidden: (_ for _ in ()).throw(fault))
            with pytest.raises(ArithmeticError, match="no more numbers"):
                engine.answer(ASKED, SHORT)
        assert other.wait(10) == -signal.SIGKILL
        with pytest.raises(ChildProcessError, match=r"first process failed: .*no more numbers"):
            engine.answer(ASKED, SHORT)


@pytest.mark.slow
def test_a_process_that_dies_while_it_starts_is_named(directory, monkeypatch):
    started = []
    start = tensor_parallel._start

    def start_dead(rank: int, size: int, device: torch.device):
        started.append(start(rank, size, device))
        started[-1].process.kill()
        return started[-1]

    monkeypatch.setattr(tensor_parallel, "_start", start_dead)
    with pytest.raises(ChildProcessError, match=r"process 1 of 2 .*exit code -9"):
        load(directory, 2)
    assert [each.process.poll() for each in started] == [-signal.SIGKILL]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["end", "kill"])
def test_no_process_outlives_the_first(directory, how):
    command = [sys.executable, "-c", PROGRAM, str(directory), "wait" if how == "kill" else "end"]
    own = {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | own) as first:
        assert first.stdout is not None
        pid = int(first.stdout.readline())
        assert is_alive(pid)
        if how == "kill":
            first.kill()
        first.wait(30)
    deadline = time.monotonic() + 20
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(pid)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended may still wait for whoever adopted it."""
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def gpus(monkeypatch):
    """`gpus(2)` is a machine with two GPUs; nothing is computed on them."""

    def make(count: int, kind: str = "cuda") -> None:
        def pick(name: str | None) -> torch.device:
            return torch.device(name or kind)

        monkeypatch.setattr(devices, "pick", pick)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return make


def test_the_first_gpus_are_taken(gpus):
    gpus(4)
    assert choose_places(2, None) == [torch.device("cuda:0"), torch.device("cuda:1")]
    assert choose_places(1, "cuda:3") == [torch.device("cuda:3")]


@pytest.mark.parametrize(
    ("size", "device", "message"),
    [
        (0, None, "tensor_parallel is 0; it must be at least 1"),
        (4, None, "tensor_parallel 4 needs 4 GPUs; this machine has cuda:0, cuda:1"),
        (2, "cuda:1", "device 'cuda:1' names one: give 'cuda'"),
        (2, "mps", "divided over NVIDIA GPUs .* not over devices of kind mps"),
    ],
)
def test_devices_that_cannot_divide_a_model_are_refused(gpus, size, device, message):
    gpus(2)
    with pytest.raises(ValueError, match=message):
        choose_places(size, device)


def test_a_model_that_cannot_be_divided_starts_no_process(directory, monkeypatch):
    monkeypatch.setattr(tensor_parallel, "_start", lambda *_: pytest.fail("was started"))
    with pytest.raises(ValueError, match=r"cannot be divided over 3 processes; .* can be 1, 2, 4"):
        load(directory, 3)
