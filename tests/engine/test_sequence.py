"""SamplingParams refuses nonsense with one clear line; a Sequence knows when it is complete."""

import math

import numpy as np
import pytest

from internvl2.engine.sequence import SamplingParams, Sequence, Timings
from internvl2.processing.prompt import Prompt


def make_sequence(length: int = 5, limit: int = 100, **params) -> Sequence:
    tiles = np.zeros((0, 4, 4, 3), np.uint8)
    prompt = Prompt(list(range(length)), [False] * length, tiles)
    sequence = Sequence(1, prompt, SamplingParams(**params), frozenset({7}), seed=0)
    sequence.limit = limit
    return sequence


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("min_tokens", -1),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.nan),
        ("presence_penalty", math.inf),
        ("no_repeat_ngram_size", True),
        ("logprobs", -1),
        ("stop", ("",)),
        ("stop_token_ids", (-3,)),
    ],
)
def test_a_nonsensical_value_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        SamplingParams(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_tokens", 2.5), ("frequency_penalty", "1"), ("seed", 1.5), ("stop", "end")],
)
def test_a_value_of_another_type_is_refused_by_name(name, value):
    """With run-time type checks switched on, the checker refuses it before we do."""
    with pytest.raises((ValueError, TypeError), match=name):
        SamplingParams(**{name: value})


def test_min_tokens_above_max_tokens_is_refused():
    with pytest.raises(ValueError, match="min_tokens 5 is above max_tokens 3"):
        SamplingParams(min_tokens=5, max_tokens=3)


def test_a_stop_token_ends_the_sequence():
    sequence = make_sequence()
    assert sequence.append(3) is None
    assert sequence.append(7) == "stop"
    assert sequence.generated_ids == [3, 7]


def test_a_stop_token_is_a_token_like_others_with_ignore_eos():
    assert make_sequence(ignore_eos=True).append(7) is None


def test_max_tokens_and_the_limit_end_the_sequence_by_length():
    assert make_sequence(max_tokens=1).append(3) == "length"
    assert make_sequence(limit=6).append(3) == "length"


def test_prompt_tokens_are_rotated_by_the_prompts_length_and_written_ones_by_their_own():
    sequence = make_sequence(length=4)
    sequence.token_ids += [1, 2]
    assert [sequence.rotary_length(i) for i in range(6)] == [4, 4, 4, 4, 5, 6]


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="prompt is empty"):
        make_sequence(length=0)


def test_speed_leaves_out_the_wait_for_the_first_token():
    assert Timings(first_token_s=1.0, total_s=3.0).tokens_per_s(11) == 5.0
    assert Timings(first_token_s=1.0, total_s=1.0).tokens_per_s(1) == 0.0
