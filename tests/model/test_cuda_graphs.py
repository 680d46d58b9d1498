"""Graphs are recorded of work that has run on their stream; one that fails leaves no traces."""

from contextlib import contextmanager

import pytest
import torch

from internvl2.model.cuda_graphs import WARM_UPS, GraphStream


class FakeCuda:
    """Notes what is asked of a CUDA device, in order."""

    def __init__(self, monkeypatch):
        self.events, self.pools = [], 0
        for name in ("Stream", "CUDAGraph"):
            monkeypatch.setattr(torch.cuda, name, lambda *args: self)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", self.next_pool)
        for name in ("device", "stream"):
            monkeypatch.setattr(torch.cuda, name, lambda _, name=name: self.during(name))
        monkeypatch.setattr(torch.cuda, "graph", self.graph)
        for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
            note = lambda device, pool, name=name: self.events.append((name, pool))  # noqa: E731
            monkeypatch.setattr(torch._C, name, note, raising=False)

    def next_pool(self):
        self.pools += 1
        return (0, self.pools)

    def reset(self):
        self.events.append("reset")

    def wait_stream(self, other):
        self.events.append("wait")

    def graph(self, graph, *, pool=None, stream, capture_error_mode):
        assert (graph, stream, capture_error_mode) == (self, self, "thread_local")
        return self.during(("recording", pool))

    @contextmanager
    def during(self, what):
        self.events.append(what)
        yield
        self.events.append(("end", what))


@pytest.fixture
def cuda(monkeypatch):
    return FakeCuda(monkeypatch)


@pytest.mark.wrong_types
def test_work_runs_on_the_stream_before_it_is_recorded_there(cuda):
    stream = GraphStream(torch.device("cpu"), shares_memory=True)
    stream.record(lambda: cuda.events.append("work"))
    recording = ("recording", (0, 1))
    warm = ["device", "wait", "stream", *["work"] * WARM_UPS]
    ended = [("end", "stream"), "wait", ("end", "device")]
    assert cuda.events == [*warm, recording, "work", ("end", recording), *ended]


@pytest.mark.wrong_types
@pytest.mark.parametrize(("shares_memory", "pools"), [(True, [1, 1]), (False, [1, 2])])
def test_graphs_share_their_memory_or_have_their_own(cuda, shares_memory, pools):
    stream = GraphStream(torch.device("cpu"), shares_memory=shares_memory)
    for _ in range(2):
        stream.record(lambda: None)
    recorded = [event[1] for event in cuda.events if event[0] == "recording"]
    assert recorded == [(0, number) for number in pools]


@pytest.mark.wrong_types
def test_a_recording_that_fails_is_ended_and_its_memory_not_recorded_into_again(cuda):
    stream = GraphStream(torch.device("cpu"), shares_memory=True)
    runs = []

    def fails():
        runs.append(None)
        if len(runs) > WARM_UPS:
            raise RuntimeError("not permitted")

    with pytest.raises(RuntimeError, match="not permitted"):
        stream.record(fails)
    after = cuda.events[cuda.events.index(("_cuda_endAllocateToPool", (0, 1))) + 1 :]
    # What succeeds after it makes random numbers usable again.
    assert after == [
        ("_cuda_releasePool", (0, 1)),
        ("recording", None),
        ("end", ("recording", None)),
    ]
    stream.record(lambda: None)
    assert ("recording", (0, 2)) in cuda.events


@pytest.mark.gpu
def test_a_product_may_be_the_first_thing_that_is_recorded():
    x = torch.ones(64, 64, device="cuda", dtype=torch.bfloat16)
    graph = GraphStream(x.device, shares_memory=False).record(lambda: x @ x)
    graph.replay()
    torch.cuda.synchronize()


@pytest.mark.gpu
def test_a_recording_that_fails_leaves_random_numbers_and_memory_usable():
    x, other = torch.ones(1024, device="cuda"), torch.cuda.Stream()
    stream = GraphStream(x.device, shares_memory=True)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            stream.record(lambda: float(x.sum()))
    assert torch.rand(4, device="cuda").shape == (4,)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["active_bytes.all.current"]
    for _ in range(3):
        shared = torch.ones(2**20, device="cuda")
        shared.record_stream(other)
        del shared
        torch.cuda.synchronize()
        _ = torch.ones(2**20, device="cuda")  # when memory is asked for, freed blocks are seen
        del _
    assert torch.cuda.memory_stats()["active_bytes.all.current"] <= before + 2**22
    assert stream.record(lambda: x * 2) is not None


@pytest.mark.gpu
def test_a_failure_of_the_work_itself_ends_its_recording_once():
    x = torch.ones(16, device="cuda")
    stream, runs = GraphStream(x.device, shares_memory=True), []

    def fails():
        runs.append(x * 2)
        if len(runs) > WARM_UPS:
            raise RuntimeError("not this time")

    with pytest.raises(RuntimeError, match="not this time"):
        stream.record(fails)
    stream.record(lambda: x * 2).replay()
    assert torch.rand(4, device="cuda").shape == (4,)
