"""What somebody who waits for an answer may count on, whoever else is asking."""

import random

import pytest

from internvl2.engine.sequence import SamplingParams, Status

PREFILL_BUDGET = 8


def params_of(max_tokens):
    return SamplingParams(max_tokens=max_tokens, ignore_eos=True)


def outputs_of(outputs, number):
    return [token for o in outputs if o.sequence_id == number for token in o.token_ids]


def sequence_of(engine, number):
    scheduler = engine.scheduler
    return next(s for s in [*scheduler.running, *scheduler.waiting] if s.id == number)


def test_every_stream_gets_a_token_each_step_while_a_long_prompt_is_read(make_engine, make_prompt):
    engine = make_engine(max_sequences=3, max_batch_tokens=PREFILL_BUDGET)
    streams = [engine.add(make_prompt([n, n + 1]), params_of(60)) for n in (5, 9)]
    engine.step()
    newcomer = engine.add(make_prompt(list(range(60)), [(1, 3)]), params_of(3))
    steps = 0
    while True:
        outputs = engine.step()
        assert all(len(outputs_of(outputs, stream)) == 1 for stream in streams)
        steps += 1
        if outputs_of(outputs, newcomer):
            break
    length = 60 + 1 + 3 * 4
    assert steps == -(-length // (PREFILL_BUDGET - len(streams)))


@pytest.mark.parametrize("steps", [0, 1, 3, 12])
def test_a_request_that_is_cancelled_leaves_nothing_behind(make_engine, make_prompt, steps):
    """In the queue, while its pictures are read, behind them, and while it writes."""
    engine = make_engine(max_batch_tokens=PREFILL_BUDGET, max_sequences=2, vision_cache_bytes=0)
    number = engine.add(make_prompt(list(range(20)), [(1, 3), (2, 4)]), params_of(50))
    for _ in range(steps):
        engine.step()
    engine.abort(number)
    assert not engine.scheduler.has_work
    assert engine.scheduler.cache.pool.num_free == engine.plan.num_blocks
    assert engine.runner.vision.num_held == 0
    assert engine.step()[-1].finish_reason == "abort"


def test_a_preempted_request_lets_go_of_its_pictures_too(make_engine, make_prompt):
    """They are encoded again when it is computed again: same tokens, no memory meanwhile."""
    long = make_prompt(list(range(30)), [(1, 9)])
    alone = make_engine(max_context=96).answer(long, params_of(8)).token_ids
    engine = make_engine(
        cache_tokens=96,
        max_context=96,
        block_size=4,
        max_batch_tokens=4,
        max_sequences=2,
        vision_cache_bytes=0,
        prefix_reuse=False,
    )
    engine.add(make_prompt([5, 6, 8, 9]), params_of(80))
    second = engine.add(long, params_of(8))
    written = []
    while not sequence_of(engine, second).num_preemptions:
        written += outputs_of(engine.step(), second)
    assert sequence_of(engine, second).status is Status.WAITING
    assert engine.runner.vision.num_held == 0
    while engine.has_work:
        written += outputs_of(engine.step(), second)
    assert tuple(written) == alone


def random_request(rng):
    """A prompt, how much is written, and after how many steps nobody wants it any more."""
    ids = list(range(rng.randint(1, 30)))
    pictures = [(rng.randint(1, 3), rng.randint(1, 3)) for _ in range(rng.randint(0, 2))]
    return ids, pictures, rng.randint(15, 30), rng.choice([None, None, None, rng.randint(0, 20)])


@pytest.mark.parametrize("seed", range(8))
def test_in_any_mix_an_answer_is_the_one_given_alone(mixing, make_prompt, seed):
    """Arrivals spread over steps, some cancelled, in a cache that is too small for all."""
    alone, crowded = mixing
    rng = random.Random(seed)
    engine = crowded(
        max_batch_tokens=rng.choice([4, 9, 64]),
        block_size=rng.choice([2, 4, 16]),
        prefix_reuse=rng.random() < 0.5,
    )
    pending = [random_request(rng) for _ in range(6)]
    expected, written, cancelled, sequences = {}, {}, {}, {}
    steps = 0
    while engine.has_work or pending:
        if pending and steps % 2 == 0:
            ids, pictures, most, end = pending.pop(0)
            prompt = make_prompt(ids, pictures)
            number = engine.add(prompt, params_of(most))
            expected[number], written[number] = alone(prompt, most), []
            sequences[number] = sequence_of(engine, number)
            cancelled[number] = None if end is None else steps + end
        for output in engine.step():
            written[output.sequence_id] += output.token_ids
        for number in [n for n, when in cancelled.items() if when == steps]:
            engine.abort(number)
        steps += 1
    assert sum(sequence.num_preemptions for sequence in sequences.values())
    for number, tokens in written.items():
        full = expected[number]
        assert tuple(tokens) == full[: len(tokens)]
        assert cancelled[number] is not None or len(tokens) == len(full)


@pytest.fixture
def mixing(make_engine):
    """The answer of an engine of one's own, and an engine with little room."""
    single = make_engine(prefix_reuse=False, max_sequences=1)
    known = {}

    def alone(prompt, most):
        key = (tuple(prompt.token_ids), tuple(s.digest for s in prompt.media))
        if key not in known or len(known[key]) < most:
            known[key] = single.answer(prompt, params_of(most)).token_ids
        return known[key][:most]

    def crowded(**options):
        return make_engine(
            cache_tokens=96, max_context=96, max_sequences=4, vision_cache_bytes=900, **options
        )

    return alone, crowded
