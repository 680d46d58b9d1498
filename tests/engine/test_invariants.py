"""However a request is computed (chunks, mates, cache, preemption), its answer is the same."""

import pytest
import torch

from internvl2.engine.graphs import CallAgain
from internvl2.engine.sequence import SamplingParams
from internvl2.model.attention import PackedAttention
from internvl2.model.rotary import Positions

LONG = SamplingParams(max_tokens=24, ignore_eos=True, logprobs=0)
KINDS = ["plain", "dynamic"]


@pytest.fixture
def prompts(make_prompt):
    """Text only, one picture, several pictures with one of them twice, a long text."""
    return [
        make_prompt([5, 6, 8]),
        make_prompt([9, 10, 11, 12], [(1, 3)]),
        make_prompt([13, 14], [(2, 1), (1, 3), (2, 1), (3, 2)]),
        make_prompt(list(range(20, 70))),
        make_prompt([9, 10, 11, 12, 13], [(1, 3)]),
    ]


def results(engine, prompts, params=LONG):
    answers = engine.generate(prompts, params)
    assert all(answer.finish_reason == "length" for answer in answers)
    return answers


def assert_same(ours, others):
    assert [a.token_ids for a in ours] == [b.token_ids for b in others]
    for a, b in zip(ours, others, strict=True):
        first, second = ([t.chosen.logprob for t in x.logprobs] for x in (a, b))
        assert first == pytest.approx(second, abs=1e-4)


def single(make_engine, prompts, kind, params=LONG):
    """Each on an engine of its own, its prompt in one piece, with no reuse."""
    return [
        results(make_engine(kind, prefix_reuse=False), [prompt], params)[0] for prompt in prompts
    ]


@pytest.fixture(scope="module")
def known():
    """What `alone` has computed."""
    return {}


@pytest.fixture
def alone(make_engine, prompts, known):
    """The answer to each prompt by itself, by kind of model; computed once."""

    def answers(kind):
        if kind not in known:
            known[kind] = single(make_engine, prompts, kind)
        return known[kind]

    return answers


@torch.no_grad()
def test_cached_generation_equals_the_packed_forward(alone, tiny_models, prompts):
    model = tiny_models["plain"]
    for prompt, answer in zip(prompts, alone("plain"), strict=True):
        ids = [*prompt.token_ids, *answer.token_ids]
        length = len(prompt.token_ids)
        x = model.embed(torch.tensor(ids))
        for span in prompt.media:
            tiles = prompt.tiles[span.first_tile : span.first_tile + span.num_tiles]
            visual = model.encode_tiles(torch.from_numpy(tiles))
            x[span.start : span.stop] = visual.flatten(0, 1)
        positions, attend = Positions.packed([len(ids)]), PackedAttention.of([len(ids)])
        hidden = model.decoder(x, positions, attend)
        logprobs = model.logits(hidden[length - 1 : -1]).log_softmax(-1)
        assert logprobs.argmax(-1).tolist() == list(answer.token_ids)
        ours = torch.tensor([token.chosen.logprob for token in answer.logprobs])
        torch.testing.assert_close(ours, logprobs.max(-1).values, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", [3, 16])
def test_chunked_prefill_equals_whole(make_engine, alone, prompts, kind, budget):
    engine = make_engine(kind, max_batch_tokens=budget, max_sequences=3)
    assert_same(results(engine, prompts), alone(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_batched_equals_single(make_engine, alone, prompts, kind):
    engine = make_engine(kind, max_sequences=8)
    assert_same(results(engine, prompts), alone(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_prefix_reuse_changes_nothing(make_engine, alone, make_prompt, prompts, kind):
    engine = make_engine(kind, block_size=4)
    first = results(engine, prompts)
    turns = [
        make_prompt([*prompt.token_ids, *answer.token_ids[:9], 50])
        for prompt, answer in zip(prompts, first, strict=True)
        if not prompt.media
    ]
    again = results(engine, [*prompts, *turns])
    assert any(answer.usage.cached_tokens for answer in again)
    assert_same(again, [*alone(kind), *single(make_engine, turns, kind)])


@pytest.mark.parametrize("kind", KINDS)
def test_preempted_equals_unpreempted(make_engine, alone, prompts, kind):
    engine = make_engine(kind, cache_tokens=96, block_size=4, max_context=90, max_sequences=4)
    preempted = []
    original = engine.scheduler._preempt
    engine.scheduler._preempt = lambda s: (preempted.append(s.id), original(s))
    answers = results(engine, prompts)
    assert preempted
    assert_same(answers, alone(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_steps_that_run_ahead_equal_single_ones(make_engine, alone, prompts, kind):
    engine = make_engine(kind, recorder=CallAgain(), max_sequences=5)
    assert_same(results(engine, prompts), alone(kind))


def test_every_picture_is_encoded_once(make_engine, prompts):
    engine = make_engine(max_batch_tokens=8, max_sequences=2)
    results(engine, prompts)
    assert engine.runner.vision.num_encoded == 3 + 1 + 2


def test_pictures_without_room_in_the_cache_are_kept_while_they_are_read(
    make_engine, alone, prompts
):
    engine = make_engine(vision_cache_bytes=0, max_batch_tokens=5, max_sequences=2, vision_tiles=2)
    assert_same(results(engine, prompts), alone("plain"))


def test_a_written_image_token_is_a_token_like_others(make_engine, make_prompt, tiny_models):
    prompt = make_prompt([97, 5, 97, 6], [(1, 2)])
    answer = single(make_engine, [prompt], "plain")[0]
    assert len(answer.token_ids) == 24


@pytest.mark.parametrize("budget", [4, 64])
def test_a_seeded_request_does_not_depend_on_its_mates(make_engine, prompts, budget):
    seeded = SamplingParams(
        max_tokens=12, temperature=1.5, top_k=40, top_p=0.95, seed=3, ignore_eos=True, logprobs=0
    )
    mates = [SamplingParams(max_tokens=n + 3, temperature=1.0, seed=n) for n in range(4)]
    alone = single(make_engine, prompts[:1], "plain", seeded)
    engine = make_engine(max_batch_tokens=budget, max_sequences=4)
    answers = engine.generate(
        [prompts[1], prompts[0], *prompts[2:]], [mates[0], seeded, *mates[1:]]
    )
    assert_same(answers[1:2], alone)


def test_an_unseeded_request_varies(make_engine, prompts):
    engine = make_engine()
    params = SamplingParams(max_tokens=12, temperature=2.0, ignore_eos=True)
    answers = engine.generate([prompts[0]] * 4, params)
    assert len({answer.token_ids for answer in answers}) > 1


@pytest.mark.parametrize(("budget", "recorder"), [(3, CallAgain()), (64, None)])
def test_numbers_that_overflowed_in_a_freed_block_reach_nobody(
    make_engine, alone, prompts, recorder, budget
):
    engine = make_engine(max_sequences=3, max_batch_tokens=budget, recorder=recorder)
    for cached in (engine.runner.cache.keys, engine.runner.cache.values):
        cached[:, : engine.plan.num_blocks] = torch.nan
    assert_same(results(engine, prompts), alone("plain"))
