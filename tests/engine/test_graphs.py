"""Recorded work is repeated on the same tensors; what cannot be recorded runs as it is."""

import logging
import threading

import pytest
import torch

from internvl2.engine.graphs import CallAgain, CudaRecorder, Graphs


class Refuses:
    """A recorder of a device that cannot."""

    def record(self, work):
        raise RuntimeError("operation not permitted when stream is capturing")


class Counts(CallAgain):
    """Counts what is recorded."""

    def __init__(self):
        self.count = 0

    def record(self, work):
        self.count += 1
        return super().record(work)


def doubling(device="cpu"):
    """Two buffers, and work that writes twice the first into the second."""
    source, target = torch.zeros(4, device=device), torch.zeros(4, device=device)

    def work():
        target.copy_(source * 2)

    return source, target, work


def test_replayed_work_reads_what_its_buffers_hold_now():
    source, target, work = doubling()
    replay = Graphs(CallAgain()).ready("double", work)
    for number in (3.0, 5.0):
        source.fill_(number)
        replay()
        assert target.tolist() == [2 * number] * 4


def test_a_key_is_recorded_once():
    recorder = Counts()
    graphs = Graphs(recorder)
    _, _, work = doubling()
    assert "double" not in graphs
    first = graphs.ready("double", work)
    assert graphs.ready("double", work) is first
    graphs.ready(("double", 8), work)
    assert recorder.count == 2
    assert "double" in graphs


def test_work_that_cannot_be_recorded_runs_as_it_is_with_one_warning(caplog):
    source, target, work = doubling()
    graphs = Graphs(Refuses())
    with caplog.at_level(logging.WARNING):
        for number in (1.0, 4.0):
            source.fill_(number)
            graphs.ready(("decode", 8), work)()
            assert target.tolist() == [2 * number] * 4
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert "('decode', 8)" in message
    assert "not permitted" in message


def test_an_error_of_the_work_itself_is_not_swallowed():
    def work():
        raise ValueError("no such token")

    with pytest.raises(ValueError, match="no such token"):
        Graphs(CallAgain()).ready("bad", work)


@pytest.mark.gpu
def test_a_graph_repeats_work_on_new_numbers():
    source, target, work = doubling("cuda")
    graphs = Graphs(CudaRecorder(torch.device("cuda")))
    replay = graphs.ready("double", work)
    for number in (3.0, 5.0):
        source.fill_(number)
        replay()
        assert target.tolist() == [2 * number] * 4


@pytest.mark.gpu
def test_work_that_waits_for_the_device_runs_without_a_graph_and_others_are_recorded(caplog):
    source, target, work = doubling("cuda")
    waiting = torch.zeros((), device="cuda")

    def waits():
        waiting.fill_(float(source.sum()))

    graphs = Graphs(CudaRecorder(torch.device("cuda")))
    source.fill_(2.0)
    graphs.ready("waits", waits)()
    assert waiting.item() == 8.0
    assert "waits runs without a CUDA graph" in caplog.text
    replay = graphs.ready("double", work)
    source.fill_(7.0)
    replay()
    assert target.tolist() == [14.0] * 4
    assert len(caplog.records) == 1


@pytest.mark.gpu
def test_another_thread_may_use_the_device_while_work_is_recorded(caplog):
    stop = threading.Event()

    def busy():
        held = []
        while not stop.is_set():
            held.append(torch.rand(1000, 1000).pin_memory().to("cuda", non_blocking=True))
            float(held[-1].sum())
            held = held[-3:]

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        graphs = Graphs(CudaRecorder(torch.device("cuda")))
        pairs = [doubling("cuda") for _ in range(20)]
        replays = [graphs.ready(number, pair[2]) for number, pair in enumerate(pairs)]
    finally:
        stop.set()
        thread.join()
    for (source, target, _), replay in zip(pairs, replays, strict=True):
        source.fill_(1.0)
        replay()
        assert target.tolist() == [2.0] * 4
    assert not caplog.records
