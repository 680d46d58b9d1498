"""Each wish changes its own row, as in Hugging Face; noise depends on the seed alone."""

import numpy as np
import pytest
import torch

from internvl2.engine.sampler import SamplingBatch, sample
from internvl2.engine.sequence import SamplingParams, Sequence
from internvl2.processing.prompt import Prompt

CPU = torch.device("cpu")


def row(written=(), seed: int = 0, leading=(), **params) -> Sequence:
    prompt = Prompt([1, 2], [False] * 2, np.zeros((0, 4, 4, 3), np.uint8))
    sequence = Sequence(
        0, prompt, SamplingParams(**params), frozenset({0}), seed=seed, leading_ids=tuple(leading)
    )
    sequence.token_ids += written
    return sequence


def choose(logits, *rows) -> list[int]:
    logits = torch.tensor([logits] * len(rows)) if isinstance(logits[0], float) else logits
    return sample(logits, SamplingBatch.of(rows, CPU)).ids.tolist()


def test_greedy_takes_the_most_probable_token_and_needs_no_extra_work():
    batch = SamplingBatch.of([row(), row()], CPU)
    assert (batch.penalties, batch.bans, batch.randomness, batch.logprobs) == (None,) * 4
    assert choose([0.0, 3.0, 1.0], row(), row()) == [1, 1]


def test_the_repetition_penalty_sees_written_and_leading_tokens_but_not_the_prompt():
    logits = [0.0, 2.0, 1.9]
    wishes = {"repetition_penalty": 1.5}
    rows = [row(**wishes), row([1], **wishes), row(leading=[1], **wishes)]
    assert choose(logits, *rows) == [1, 2, 2]


def test_the_repetition_penalty_makes_negative_logits_more_negative():
    assert choose([-1.0, -1.4], row([0], repetition_penalty=1.5)) == [1]


def test_frequency_counts_and_presence_does_not():
    logits = [0.0, 3.0, 1.9]
    twice = row([1, 1], frequency_penalty=0.6)
    once = row([1], frequency_penalty=0.6)
    presence = row([1, 1], presence_penalty=0.6)
    leading = row(leading=[1], presence_penalty=5.0)
    assert choose(logits, twice, once, presence, leading) == [2, 1, 1, 1]


@pytest.mark.parametrize(
    ("size", "written", "banned"),
    [(1, [1, 2], {1, 2}), (2, [1, 2, 1], {2}), (3, [1, 2, 3, 1, 2], {3}), (3, [1, 2], set())],
)
def test_no_run_of_tokens_is_written_twice(size, written, banned):
    sequence = row(written, no_repeat_ngram_size=size)
    for token in range(4):
        logits = [1.0 if t == token else 0.0 for t in range(4)]
        assert (choose(logits, sequence) == [token]) is (token not in banned)


def test_rows_with_different_sizes_of_runs_do_not_touch_each_other():
    rows = [row([1, 2, 1], no_repeat_ngram_size=2), row([1], no_repeat_ngram_size=3), row()]
    assert choose([0.0, 1.0, 5.0], *rows) == [1, 2, 2]


def test_stop_tokens_are_banned_before_min_tokens():
    rows = [row(min_tokens=1), row([1], min_tokens=1), row(min_tokens=1, ignore_eos=True)]
    assert choose([5.0, 1.0], *rows) == [1, 0, 0]


def draws(logits, count=4000, **params) -> torch.Tensor:
    rows = [row(seed=seed, **params) for seed in range(count)]
    ids = choose(torch.tensor([logits] * count), *rows)
    return torch.bincount(torch.tensor(ids), minlength=len(logits)) / count


def test_tokens_are_drawn_with_their_probabilities():
    logits = [0.0, 1.0, 2.0, -1.0]
    wanted = (torch.tensor(logits) / 0.7).softmax(-1)
    torch.testing.assert_close(draws(logits, temperature=0.7), wanted, atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("wish", "possible"),
    [
        ({"top_k": 1}, {2}),
        ({"top_k": 2}, {1, 2}),
        ({"top_p": 0.01}, {2}),
        ({"top_p": 0.85}, {1, 2}),
        ({"min_p": 0.3}, {1, 2}),
        ({"top_k": 3, "top_p": 0.99, "min_p": 0.1}, {0, 1, 2}),
    ],
)
def test_truncation_leaves_the_most_probable_tokens(wish, possible):
    shares = draws([0.0, 1.0, 2.0, -1.0], temperature=1.0, **wish)
    assert set(shares.nonzero().flatten().tolist()) == possible


def test_a_row_draws_the_same_beside_any_mates_and_differs_from_token_to_token():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    wishes = {"temperature": 1.0, "top_p": 0.9}
    alone = choose(logits[1:2], row(seed=5, **wishes))
    mates = [row([4, 4], seed=1, temperature=2.0), row(seed=5, **wishes), row()]
    assert choose(logits, *mates)[1:2] == alone
    flat = torch.zeros(20, 50)
    numbers = [row([1] * n, seed=5, temperature=1.0) for n in range(20)]
    assert len(set(choose(flat, *numbers))) > 5


def test_reported_probabilities_are_those_of_the_model_itself():
    logits = torch.tensor([[0.0, 3.0, 1.0]] * 2)
    rows = [row(), row([1], repetition_penalty=9.0, temperature=0.5, top_k=1, logprobs=2)]
    sampled = sample(logits, SamplingBatch.of(rows, CPU))
    wanted = logits[1].log_softmax(-1)
    assert sampled.ids.tolist() == [1, 2]
    torch.testing.assert_close(sampled.logprobs.chosen, wanted[2:3])
    assert sampled.logprobs.top_ids.tolist() == [[1, 2]]
    torch.testing.assert_close(sampled.logprobs.top_values[0], wanted[[1, 2]])


def test_the_logits_themselves_are_not_changed():
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    before = logits.clone()
    choose(logits, row([1], repetition_penalty=2.0, min_tokens=5))
    assert torch.equal(logits, before)


@pytest.mark.parametrize("temperature", [1e-5, 1e-38, 1e-40, 5e-324])
def test_a_temperature_near_zero_takes_the_most_probable_token(temperature):
    logits = torch.tensor([[1.0, 3.0, 9.0, -2.0, 6.0]])
    assert choose(logits, row(temperature=temperature, seed=1)) == [2]


def test_enormous_wishes_mean_no_limit():
    wishes = {"top_k": 2**80, "no_repeat_ngram_size": 2**80, "temperature": 1.0, "seed": 1}
    logits = torch.randn(1, 50)
    assert choose(logits, row(**wishes)) == choose(logits, row(temperature=1.0, seed=1))
