"""Steps keep to the budget, everyone finishes, and every block comes back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internvl2.config import RotaryConfig
from internvl2.engine.kv_cache import KVCache
from internvl2.engine.scheduler import Scheduler, Step
from internvl2.engine.sequence import SamplingParams, Sequence, Status
from internvl2.processing.prompt import Prompt


def make_sequence(number: int, length: int, max_tokens: int = 4, token: int = 0) -> Sequence:
    tiles = np.zeros((0, 4, 4, 3), np.uint8)
    prompt = Prompt([token] * length, [False] * length, tiles)
    return Sequence(number, prompt, SamplingParams(max_tokens=max_tokens), frozenset(), seed=0)


def make_scheduler(blocks: int = 16, context: int = 1000, sequences: int = 4, budget: int = 8):
    cache = KVCache(blocks, 4, RotaryConfig(theta=10000.0))
    return Scheduler(cache, max_context=context, max_sequences=sequences, max_batch_tokens=budget)


def play(scheduler: Scheduler) -> Step:
    """One step with a model that always writes its sequence's number."""
    step = scheduler.schedule()
    scheduler.launch(step)
    read(scheduler, step)
    return step


def read(scheduler: Scheduler, step: Step) -> None:
    """Ends a launched step as `play` does; what ended meanwhile drops its token."""
    for chunk in step.chunks:
        samples = chunk.samples
        scheduler.complete(chunk)
        if samples and chunk.sequence.status is not Status.FINISHED:
            reason = chunk.sequence.append(chunk.sequence.id)
            if reason is not None:
                scheduler.finish(chunk.sequence, reason)


def test_a_long_prompt_is_cut_into_chunks_of_the_budget():
    scheduler = make_scheduler()
    scheduler.add(make_sequence(1, 19, max_tokens=1))
    spans = []
    while scheduler.has_work:
        spans += [(chunk.start, chunk.stop) for chunk in play(scheduler).chunks]
    assert spans == [(0, 8), (8, 16), (16, 19)]


def test_a_writing_sequence_gets_its_token_while_a_prompt_is_read():
    scheduler = make_scheduler()
    scheduler.add(make_sequence(1, 3))
    play(scheduler)
    scheduler.add(make_sequence(2, 12, token=9))
    step = play(scheduler)
    assert [c.sequence.id for c in step.decodes] == [1]
    assert [(c.sequence.id, c.stop - c.start) for c in step.prefills] == [(2, 7)]


def test_requests_are_admitted_in_the_order_of_arrival_even_when_a_later_one_would_fit():
    scheduler = make_scheduler(blocks=4, budget=16)
    for number, length in ((1, 8), (2, 12), (3, 3)):
        scheduler.add(make_sequence(number, length, token=number))
    play(scheduler)
    assert [sequence.id for sequence in scheduler.running] == [1]


def test_a_prompt_that_can_never_fit_is_refused_with_the_numbers():
    with pytest.raises(
        ValueError,
        match=r"has 64 tokens .* 65 tokens in 17 blocks, .* \(context 1000, cache 64 in 16 blocks",
    ):
        make_scheduler().add(make_sequence(1, 64))
    with pytest.raises(ValueError, match="context 10"):
        make_scheduler(context=10).add(make_sequence(1, 10))


def test_a_budget_below_the_number_of_sequences_is_refused():
    with pytest.raises(ValueError, match="max_batch_tokens 2 is below max_sequences 4"):
        make_scheduler(budget=2)


def test_the_youngest_is_preempted_when_the_cache_is_full_and_finishes_all_the_same():
    scheduler = make_scheduler(blocks=6, budget=32)
    old, young = make_sequence(1, 10, 12), make_sequence(2, 7, 12, token=5)
    scheduler.add(old)
    scheduler.add(young)
    while scheduler.has_work:
        assert play(scheduler).chunks
    assert (old.num_preemptions, young.num_preemptions) == (0, 1)
    assert old.generated_ids == [1] * 12
    assert young.generated_ids == [2] * 12


def test_a_step_names_those_that_gave_their_blocks_back_for_it():
    scheduler = make_scheduler(blocks=6, budget=32)
    scheduler.add(make_sequence(1, 10, 12))
    scheduler.add(make_sequence(2, 7, 12, token=5))
    named = []
    while scheduler.has_work:
        named += [sequence.id for sequence in play(scheduler).preempted]
    assert named == [2]


def test_a_long_prompt_is_not_starved_by_short_ones_that_keep_arriving():
    scheduler = make_scheduler(blocks=16, sequences=3)
    long = make_sequence(3, 50, max_tokens=2)
    for number in (1, 2):
        scheduler.add(make_sequence(number, 6, max_tokens=8, token=number))
    scheduler.add(long)
    steps = 0
    while long.status is not Status.FINISHED:
        scheduler.add(make_sequence(4 + steps, 6, max_tokens=8, token=7))
        play(scheduler)
        steps += 1
    assert steps < 25


def test_an_aborted_sequence_gives_its_blocks_back_once():
    scheduler = make_scheduler()
    sequence = make_sequence(1, 9)
    scheduler.add(sequence)
    play(scheduler)
    scheduler.finish(sequence, "abort")
    scheduler.finish(sequence, "abort")
    assert scheduler.cache.pool.num_free == 16
    assert sequence.status is Status.FINISHED


request = st.tuples(st.integers(1, 30), st.integers(1, 12), st.integers(0, 1))


@settings(max_examples=120, deadline=None)
@given(
    requests=st.lists(request, min_size=1, max_size=12),
    aborts=st.lists(st.tuples(st.integers(0, 25), st.integers(0, 11)), max_size=6),
    budget=st.integers(3, 20),
)
def test_every_request_ends_in_bounded_steps_and_every_block_comes_back(requests, aborts, budget):
    scheduler = make_scheduler(blocks=10, sequences=3, budget=budget)
    sequences = [make_sequence(n, length, m, t) for n, (length, m, t) in enumerate(requests)]
    pending, steps = list(sequences), 0
    while scheduler.has_work or pending:
        if pending and steps % 2 == 0:
            scheduler.add(pending.pop(0))
        for when, which in aborts:
            if when == steps and which < len(sequences) - len(pending):
                scheduler.finish(sequences[which], "abort")
        if scheduler.has_work:
            step = play(scheduler)
            assert 0 < step.num_tokens <= budget
            assert len({c.sequence.id for c in step.chunks}) == len(step.chunks)
            order = [sequence.id for sequence in [*scheduler.running, *scheduler.waiting]]
            assert order == sorted(order), "a younger request is ahead of an older one"
        steps += 1
        assert steps < 2000
    assert scheduler.cache.pool.num_free == 10
    for sequence in sequences:
        assert sequence.finish_reason in ("length", "abort")
        assert set(sequence.generated_ids) <= {sequence.id}


@settings(max_examples=120, deadline=None)
@given(
    requests=st.lists(request, min_size=1, max_size=12),
    aborts=st.lists(st.tuples(st.integers(0, 25), st.integers(0, 11)), max_size=6),
    budget=st.integers(3, 20),
    blocks=st.integers(10, 40),
)
def test_steps_that_follow_unread_ones_keep_the_rules_too(requests, aborts, budget, blocks):
    scheduler = make_scheduler(blocks=blocks, sequences=3, budget=budget)
    sequences = [make_sequence(n, length, m, t) for n, (length, m, t) in enumerate(requests)]
    pending, flight, steps = list(sequences), None, 0
    while scheduler.has_work or pending or flight:
        if pending and steps % 2 == 0:
            scheduler.add(pending.pop(0))
        for when, which in aborts:
            if when == steps and which < len(sequences) - len(pending):
                scheduler.finish(sequences[which], "abort")
        if flight is None:
            flight = scheduler.schedule()
            scheduler.launch(flight)
        following = scheduler.follow(flight)
        if following is not None:
            assert following.follows
            assert 0 < following.num_tokens <= budget
            for chunk in following.chunks:
                assert len(chunk.sequence.blocks) * 4 >= chunk.stop
                assert chunk.stop <= chunk.sequence.limit
            scheduler.launch(following)
        read(scheduler, flight)
        flight = following
        steps += 1
        assert steps < 2000
    assert scheduler.cache.pool.num_free == blocks
    for sequence in sequences:
        assert sequence.finish_reason in ("length", "abort")
        assert sequence.num_in_flight == 0
        assert set(sequence.generated_ids) <= {sequence.id}
        if sequence.finish_reason == "length":
            assert len(sequence.token_ids) == sequence.limit
