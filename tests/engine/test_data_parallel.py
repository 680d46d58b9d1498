"""Requests through several engines: answers as of one, and what becomes of those of a dead process.

Threads with pipes stand in for the processes, except in the slow tests.
"""

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing import Pipe
from pathlib import Path

import pytest
import torch

from internvl2.engine import data_parallel
from internvl2.engine.batch import Answered
from internvl2.engine.data_parallel import DataParallel, Replica, replica_devices
from internvl2.engine.engine import Engine
from internvl2.engine.engine_facts import EngineFacts
from internvl2.engine.replica import serve
from internvl2.engine.sequence import SamplingParams
from internvl2.processing.conversation import Message, Text

MODEL = Path(__file__).parents[1] / "data/official/A_internlm2/checkpoint"
PARAMS = SamplingParams(max_tokens=12)


@dataclass
class StandIn:
    """A thread in the place of a process."""

    thread: threading.Thread
    exitcode: int | None = -9
    ended_by: list[str] = field(default_factory=list)

    def join(self, timeout=None):
        self.thread.join(timeout)

    def is_alive(self):
        return self.thread.is_alive()

    def terminate(self):
        self.ended_by.append("terminate")

    def kill(self):
        self.ended_by.append("kill")


def stand_in(target, *arguments) -> Replica:
    ours, theirs = Pipe()

    def run() -> None:
        with theirs:
            target(theirs, *arguments)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    replica = Replica("cpu", StandIn(thread), ours)
    replica.await_loaded()
    return replica


def answering(connection, engine: Engine) -> None:
    serve(engine, connection, encoders=2)


def dying(connection, after: int) -> None:
    """Takes some requests and is gone."""
    connection.send(EngineFacts(1, "float32", None, "cpu", max_sequences=4))
    for _ in range(after):
        connection.recv()


def conversations(count: int) -> list[tuple[Message, ...]]:
    return [(Message.user(Text(f"What is {'x' * number}?")),) for number in range(count)]


def tokens_of(ended: Iterable[Answered]) -> list[tuple[int, ...]]:
    """The tokens of all answers, in the order of the requests."""
    by_index = {each.index: each.answer for each in ended}
    answers = [by_index[index] for index in range(len(by_index))]
    return [answer.token_ids for answer in answers if answer is not None]


def test_several_engines_answer_as_one_does(make_engine):
    asked = conversations(20)
    expected = [answer.token_ids for answer in make_engine().generate(asked, PARAMS)]
    with DataParallel([stand_in(answering, make_engine()) for _ in range(2)]) as engines:
        ended = tokens_of(engines.answers(asked, PARAMS))
        assert ended == expected
        again = list(engines.answers(asked[:3], PARAMS))
    assert sorted(each.index for each in again) == [0, 1, 2]


def test_engines_with_nothing_to_do_get_the_next_requests(make_engine):
    replicas = [stand_in(answering, make_engine()) for _ in range(2)]
    given = {id(replica): 0 for replica in replicas}

    def watched():
        for request in conversations(12):
            yield request
            for replica in replicas:
                given[id(replica)] = max(given[id(replica)], len(replica.work))

    with DataParallel(replicas) as engines:
        assert len(list(engines.answers(watched(), PARAMS))) == 12
    assert min(given.values()) >= 1


def test_a_request_that_cannot_be_read_is_reported_and_the_others_are_answered(make_engine):
    asked = [*conversations(3), (Message.user(Text("bad")),)]
    with DataParallel([stand_in(answering, make_engine())]) as engines:
        ended = {each.index: each for each in engines.answers(asked, PARAMS)}
    assert sorted(ended) == [0, 1, 2, 3]
    assert "cannot be read" in str(ended[3].error)
    assert isinstance(ended[3].error, ValueError)
    assert all(ended[index].answer is not None for index in range(3))


def test_the_requests_of_a_process_that_died_are_answered_by_another(make_engine, caplog):
    asked = conversations(9)
    expected = [answer.token_ids for answer in make_engine().generate(asked, PARAMS)]
    with DataParallel([stand_in(dying, 2), stand_in(answering, make_engine())]) as engines:
        ended = tokens_of(engines.answers(asked, PARAMS))
    assert ended == expected


def test_a_request_that_two_processes_died_with_is_reported(make_engine):
    dead = [stand_in(dying, 1), stand_in(dying, 1)]
    with DataParallel(dead) as engines:
        running = engines.answers(conversations(1), PARAMS)
        ended = next(running)
        with pytest.raises(ChildProcessError, match="no engine is left"):
            next(running)
    assert ended.index == 0
    assert "2 times" in str(ended.error)


def test_leaving_early_ends_the_processes(make_engine):
    replica = stand_in(answering, make_engine())
    engines = DataParallel([replica])
    running = engines.answers(conversations(8), PARAMS)
    next(running)
    running.close()
    assert replica.connection.closed
    with pytest.raises(ChildProcessError):
        list(engines.answers(conversations(1), PARAMS))


@pytest.mark.parametrize(
    ("count", "device", "complaint"),
    [
        (0, None, "0 engines"),
        (2, "cuda:1", "give 'cuda'"),
        (3, "cuda", "this machine has 2 of cuda"),
    ],
)
def test_devices_that_are_not_there_are_refused(monkeypatch, count, device, complaint):
    monkeypatch.setattr(data_parallel.devices, "pick", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=complaint):
        replica_devices(count, device)
    assert replica_devices(2, "cuda") == ("cuda:0", "cuda:1")


@pytest.mark.slow
def test_a_killed_process_loses_no_request():
    asked = conversations(24)
    params = SamplingParams(max_tokens=40, ignore_eos=True)
    with Engine.load(MODEL, device="cpu") as engine:
        expected = [answer.token_ids for answer in engine.generate(asked, params)]
    with DataParallel.load(MODEL, count=2, device="cpu") as engines:
        running = engines.answers(asked, params)
        first = next(running)
        engines._replicas[0].process.kill()
        assert tokens_of([first, *running]) == expected


@pytest.mark.slow
def test_what_keeps_an_engine_from_loading_is_raised():
    with pytest.raises(ValueError, match="fp8"):
        DataParallel.load(MODEL, count=2, device="cpu", quantize="fp8")


@pytest.mark.gpu
def test_engines_on_gpus_answer_as_one_does():
    asked = conversations(12)
    with Engine.load(MODEL, device="cuda", dtype="float32") as engine:
        expected = [answer.token_ids for answer in engine.generate(asked, PARAMS)]
    count = torch.cuda.device_count()
    with DataParallel.load(MODEL, count=count, device="cuda", dtype="float32") as engines:
        assert [facts.device for facts in engines.facts] == [f"cuda:{n}" for n in range(count)]
        assert tokens_of(engines.answers(asked, PARAMS)) == expected
