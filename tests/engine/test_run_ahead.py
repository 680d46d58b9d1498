"""Recorded steps, launched before the tokens of the one before are read, change no answer."""

import random
from dataclasses import replace

import pytest
import torch

from internvl2.engine.batch_sizes import padded, sizes_up_to
from internvl2.engine.decoding import Decoding
from internvl2.engine.engine import Engine, EngineOptions
from internvl2.engine.graphs import CallAgain, Graphs
from internvl2.engine.sequence import SamplingParams
from internvl2.model.kernels import FusedKernels

GREEDY = SamplingParams(max_tokens=20, ignore_eos=True)
WISHES = {
    "greedy": GREEDY,
    "drawn": replace(GREEDY, temperature=1.3, seed=4),
    "truncated": replace(GREEDY, temperature=0.9, top_k=12, top_p=0.8, min_p=0.02, seed=5),
    "penalised": replace(GREEDY, repetition_penalty=1.4, frequency_penalty=0.3),
    "without repeats": replace(GREEDY, no_repeat_ngram_size=2),
    "reported": replace(GREEDY, logprobs=3),
    "drawn and reported": replace(GREEDY, temperature=1.0, seed=6, logprobs=1),
    "at least": SamplingParams(max_tokens=20, min_tokens=9, stop_token_ids=tuple(range(50))),
}


MORE = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 9)]


class Watched:
    """A runner that checks what the loop may ask of one that runs ahead."""

    def __init__(self, runner, pool):
        self.runner, self.pool = runner, pool
        self.unread = []
        self.num_ahead = 0

    def __getattr__(self, name):
        return getattr(self.runner, name)

    def begin(self, step):
        assert len(self.unread) == step.follows, "a step is begun too early"
        self.num_ahead += step.follows
        flight = Flight(self, step, self.runner.begin(step))
        self.unread.append(flight)
        return flight


class Flight:
    """A step whose blocks must stay its own until its tokens are read."""

    def __init__(self, watched, step, launched):
        self.watched, self.launched = watched, launched
        self.blocks = [block for chunk in step.chunks for block in chunk.sequence.blocks]

    def tokens(self):
        assert self.watched.unread.pop(0) is self
        for block in self.blocks:
            assert self.watched.pool.references(block) > 0, "released while it is written to"
        return self.launched.tokens()


@pytest.fixture
def watched(make_engine):
    """An engine that runs ahead, with a runner that checks it."""

    def make(*args, **options):
        engine = make_engine(*args, recorder=CallAgain(), **options)
        engine._loop.runner = Watched(engine.runner, engine.scheduler.cache.pool)
        return engine

    return make


def tokens_of(answers):
    return [(answer.token_ids, answer.text, answer.finish_reason) for answer in answers]


@pytest.mark.parametrize("wish", WISHES)
def test_every_way_to_choose_tokens_gives_the_same_alone_and_in_a_mix(
    make_engine, watched, make_prompt, wish
):
    prompts = [make_prompt([n, 5, 6 + n]) for n in range(len(WISHES))]
    mates = [WISHES[wish], *(params for name, params in WISHES.items() if name != wish)]
    plain = make_engine().answer(prompts[0], WISHES[wish])
    alone = watched()
    for answer in (
        alone.answer(prompts[0], WISHES[wish]),
        watched().generate(prompts, mates)[0],
    ):
        assert tokens_of([answer]) == tokens_of([plain])
        found = [[t.logprob for t in report.top] for report in answer.logprobs]
        expected = [[t.logprob for t in report.top] for report in plain.logprobs]
        assert found == [pytest.approx(numbers, abs=1e-4) for numbers in expected]
    looks_back = WISHES[wish].uses_history
    assert (alone._loop.runner.num_ahead > 0) is not looks_back


def mixed_params(rng, free_text):
    params = rng.choice(list(WISHES.values()))
    count = rng.choice([1, 2, 7, 30])
    stops = (free_text[rng.randrange(5) :][:2],) if rng.random() < 0.3 else ()
    return replace(params, max_tokens=count, min_tokens=min(params.min_tokens, count), stop=stops)


@pytest.mark.parametrize("seed", [*range(3), *MORE])
def test_any_mix_that_runs_ahead_equals_one_that_does_not(make_engine, watched, make_prompt, seed):
    rng = random.Random(seed)
    options = {
        "max_sequences": rng.randint(1, 9),
        "block_size": rng.choice([1, 2, 4, 16]),
        "cache_tokens": rng.choice([96, 400]),
        "max_context": 90,
        "max_batch_tokens": rng.choice([9, 64]),
    }
    kind = rng.choice(["plain", "dynamic"])
    prompts = [
        make_prompt([rng.randrange(90)] * rng.randint(1, 20), [(1, 1)] * rng.randint(0, 2))
        for _ in range(12)
    ]
    plain = make_engine(kind, **options)
    free = plain.answer(prompts[0], replace(GREEDY, max_tokens=7)).text
    params = [mixed_params(rng, free) for _ in prompts]
    expected = tokens_of(plain.generate(prompts, params))
    assert tokens_of(watched(kind, **options).generate(prompts, params)) == expected


@pytest.mark.parametrize("seed", [*range(3), *MORE])
def test_aborted_answers_end_where_they_are_and_leave_no_block(watched, make_prompt, seed):
    rng = random.Random(seed)
    engine = watched(cache_tokens=96, block_size=2, max_context=64, max_sequences=4)
    whole = engine.answer(make_prompt([3, 4]), replace(GREEDY, max_tokens=40)).token_ids
    ids = [engine.add(make_prompt([3, 4]), replace(GREEDY, max_tokens=40)) for _ in range(7)]
    written = {number: [] for number in ids}
    while engine.has_work:
        for output in engine.step():
            written[output.sequence_id] += output.token_ids
        if rng.random() < 0.15:
            engine.abort(rng.choice(ids))
    assert all(tuple(tokens) == whole[: len(tokens)] for tokens in written.values())
    pool = engine.scheduler.cache.pool
    assert pool.num_free == pool.num_blocks


def test_the_next_step_is_launched_before_the_tokens_of_this_one_are_read(watched, make_prompt):
    engine = watched()
    engine.add(make_prompt([1, 2]), GREEDY)
    engine.step()
    engine.step()
    assert len(engine._loop.runner.unread) == 1


def test_nothing_runs_ahead_of_an_answer_that_is_known_to_end(watched, make_prompt):
    engine = watched()
    first = engine.add(make_prompt([1, 2]), replace(GREEDY, max_tokens=3))
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    assert [output.sequence_id for output in outputs] == [first] * 3
    assert engine._loop.runner.num_ahead == 2


def test_an_answer_that_stops_drops_the_token_on_its_way_and_others_go_on(watched, make_prompt):
    engine = watched()
    prompts = [make_prompt([4, 5, 6]), make_prompt([7, 8])]
    free, other = engine.generate(prompts, GREEDY)
    end = free.token_ids[4]
    first = free.token_ids.index(end)
    stopping = SamplingParams(max_tokens=20, stop_token_ids=(end,))
    stopped, same = engine.generate(prompts, [stopping, GREEDY])
    assert stopped.token_ids == free.token_ids[: first + 1]
    assert stopped.usage.completion_tokens == first + 1
    assert same.token_ids == other.token_ids


def test_a_new_request_waits_for_one_step_only(watched, make_prompt):
    engine = watched()
    engine.add(make_prompt([1, 2]), GREEDY)
    for _ in range(4):
        engine.step()
    late = engine.add(make_prompt([3]), GREEDY)
    ids = [{output.sequence_id for output in engine.step()} for _ in range(3)]
    assert late in ids[1] | ids[2]


def test_a_prompt_that_arrives_is_read_behind_a_step_on_its_way(watched, make_prompt):
    engine = watched(max_batch_tokens=8)
    begun, begin = [], engine.runner.begin
    engine.runner.begin = lambda step: (begun.append(step), begin(step))[1]
    first = engine.add(make_prompt([1, 2]), GREEDY)
    for _ in range(3):
        engine.step()
    engine.add(make_prompt([3] * 20), GREEDY)
    while engine.has_work:
        engine.step()
    mixed = [step for step in begun if step.prefills and step.decodes]
    assert len(mixed) == 3
    assert all(step.follows for step in mixed)
    assert {step.decodes[0].sequence.id for step in mixed} == {first}


def test_an_error_behind_the_host_ends_the_requests_of_both_steps(watched, make_prompt):
    engine = watched()
    runner = engine._loop.runner
    engine.add(make_prompt([1, 2]), GREEDY)
    engine.step()
    engine.step()
    lost = runner.unread[0]
    lost.launched = Broken()
    with pytest.raises(RuntimeError, match="device-side"):
        engine.step()
    assert not engine.has_work
    assert not runner.unread
    pool = engine.scheduler.cache.pool
    assert pool.num_free == pool.num_blocks
    assert len(engine.answer(make_prompt([1, 2]), GREEDY).token_ids) == 20


class Broken:
    """A launched step that the device could not do."""

    def tokens(self):
        raise RuntimeError("device-side assert triggered")


def test_a_step_that_cannot_be_launched_ahead_leaves_the_tokens_before_it(
    watched, make_prompt, monkeypatch
):
    engine = watched()
    prompt = make_prompt([1, 2])
    expected = engine.answer(prompt, GREEDY).token_ids
    begin = engine.runner.begin
    steps = []

    def fail(step):
        steps.append(step)
        if len(steps) == 5:
            raise RuntimeError("out of memory")
        return begin(step)

    engine.add(prompt, GREEDY)
    with monkeypatch.context() as broken:
        broken.setattr(engine.runner, "begin", fail)
        outputs = [output for _ in range(4) for output in engine.step()]
        with pytest.raises(RuntimeError, match="out of memory"):
            engine.step()
    assert tuple(t for output in outputs for t in output.token_ids) == expected[:4]
    assert engine.answer(prompt, GREEDY).token_ids == expected


def test_an_interrupted_wait_can_be_taken_up_again(watched, make_prompt, monkeypatch):
    engine = watched()
    prompt = make_prompt([1, 2])
    expected = engine.answer(prompt, GREEDY).token_ids
    engine.add(prompt, GREEDY)
    outputs = engine.step() + engine.step()
    launched = engine._loop.runner.unread[0].launched
    waiting = engine._loop._flights[0]
    waiting.launched, flight = Interrupted(), waiting.launched
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    waiting.launched = flight
    while engine.has_work:
        outputs += engine.step()
    assert launched is flight.launched
    assert tuple(t for output in outputs for t in output.token_ids) == expected


class Interrupted:
    """A wait that the user cuts short."""

    def tokens(self):
        raise KeyboardInterrupt


def test_a_batch_is_recorded_once_for_each_size_and_width(make_engine, make_prompt, monkeypatch):
    recorded = []
    ready = Graphs._record
    monkeypatch.setattr(
        Graphs, "_record", lambda self, key, work: (recorded.append(key), ready(self, key, work))[1]
    )
    engine = make_engine(recorder=CallAgain(), block_size=16, max_sequences=5)
    for _ in range(2):
        for number in range(5):
            engine.add(make_prompt([number]), GREEDY)
        while engine.has_work:
            engine.step()
    assert [(key.rows, key.width) for key in recorded] == [(8, 1), (8, 2)]


def test_sizes_pad_little_and_are_few():
    sizes = [padded(rows) for rows in range(1, 257)]
    assert all(size >= rows for rows, size in enumerate(sizes, 1))
    assert all(padded(size) == size for size in sizes)
    assert all(size - rows < 16 for rows, size in enumerate(sizes, 1))
    assert sizes_up_to(64) == [64, 48, 32, 24, 16, 8, 4, 2, 1]


def test_what_padding_leaves_in_the_cache_reaches_nobody(make_engine, make_prompt):
    engine = make_engine(recorder=CallAgain(), max_sequences=7)
    prompts = [make_prompt([n, 9]) for n in range(5)]
    expected = tokens_of(engine.generate(prompts, GREEDY))
    for cached in (engine.runner.cache.keys, engine.runner.cache.values):
        cached[:] = torch.nan
    assert tokens_of(engine.generate(prompts, GREEDY)) == expected


def test_numbers_are_placed_anew_only_where_the_batch_changes(
    make_engine, make_prompt, monkeypatch
):
    placed, place = [], Decoding._place

    def note(self, *arguments):
        placed.append(arguments)
        place(self, *arguments)

    monkeypatch.setattr(Decoding, "_place", note)
    engine = make_engine(recorder=CallAgain(), block_size=4, max_sequences=2)
    looking_back = replace(WISHES["penalised"], max_tokens=40)
    for params in (GREEDY, looking_back):
        placed.clear()
        engine.add(make_prompt([1, 2]), params)
        while engine.has_work:
            engine.step()
        widths = {1, 2, 4, 8, 16}
        assert 0 < len(placed) <= 1 + len(widths)


def attend_by_length(q, keys, values, tables, lengths):
    """Attention that reads no more of a table than its sequence has, as a kernel does."""
    rows = []
    for x, table, length in zip(q, tables, lengths.tolist(), strict=True):
        k, v = (cached[table].flatten(0, 1)[:length] for cached in (keys, values))
        group = q.shape[1] // k.shape[1]
        k, v = (part.repeat_interleave(group, dim=1) for part in (k, v))
        shares = (torch.einsum("hd,thd->ht", x, k) / q.shape[-1] ** 0.5).softmax(-1)
        rows.append(torch.einsum("ht,thd->hd", shares, v))
    return torch.stack(rows)


@pytest.mark.parametrize("kind", ["plain", "dynamic"])
def test_with_a_kernel_that_reads_lengths_tables_have_one_width(make_engine, make_prompt, kind):
    prompts = [make_prompt([n, 9] * (1 + 7 * n), [(n, 1)]) for n in range(5)]
    expected = tokens_of(make_engine(kind).generate(prompts, GREEDY))
    model = make_engine(kind).model
    model.decoder.use(FusedKernels(paged_decode=attend_by_length))
    processor = make_engine(kind).processor
    options = EngineOptions(cache_tokens=1024, max_context=400, block_size=4)
    with Engine(model, processor, options, CallAgain()) as engine:
        for cached in (engine.runner.cache.keys, engine.runner.cache.values):
            cached[:] = torch.nan
        assert tokens_of(engine.generate(prompts, GREEDY)) == expected
        assert tokens_of(engine.generate(prompts, GREEDY)) == expected
