"""Blocks are never leaked, freed twice or handed out twice; a prefix is shared only when equal."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from internvl2.config import RotaryConfig
from internvl2.engine.kv_cache import KVCache
from internvl2.engine.sequence import SamplingParams, Sequence
from internvl2.processing.prompt import MediaSpan, Prompt

PLAIN = RotaryConfig(theta=10000.0)
DYNAMIC = RotaryConfig(theta=10000.0, kind="dynamic", limit=10, factor=2.0)


def make_sequence(ids, digest: bytes | None = None, start: int = 2, stop: int = 6) -> Sequence:
    media = () if digest is None else (MediaSpan(start, stop, 0, 1, 1, 1, False, digest),)
    tiles = np.zeros((len(media), 4, 4, 3), np.uint8)
    prompt = Prompt(list(ids), [False] * len(ids), tiles, media)
    return Sequence(0, prompt, SamplingParams(), frozenset(), seed=0)


def compute(cache: KVCache, sequence: Sequence) -> None:
    sequence.num_computed = len(sequence.token_ids)
    cache.commit(sequence)


def cached_tokens(cache: KVCache, first: Sequence, second: Sequence) -> int:
    assert cache.admit(first)
    compute(cache, first)
    cache.free(first)
    assert cache.admit(second)
    return second.num_computed


def test_an_equal_prefix_of_full_blocks_is_found():
    cache = KVCache(8, 4, PLAIN)
    first, second = make_sequence(range(11)), make_sequence([*range(9), 99, 98, 97])
    assert cached_tokens(cache, first, second) == 8


def test_at_least_the_last_token_is_computed_again():
    cache = KVCache(8, 4, PLAIN)
    assert cached_tokens(cache, make_sequence(range(8)), make_sequence(range(8))) == 4


def test_nothing_is_found_when_reuse_is_off():
    cache = KVCache(8, 4, PLAIN, reuse=False)
    assert cached_tokens(cache, make_sequence(range(8)), make_sequence(range(8))) == 0


@pytest.mark.parametrize(("digest", "found"), [(b"a", 8), (b"b", 0), (None, 0)])
def test_equal_tokens_of_another_picture_are_not_shared(digest, found):
    cache = KVCache(8, 4, PLAIN)
    assert (
        cached_tokens(cache, make_sequence(range(9), b"a"), make_sequence(range(9), digest))
        == found
    )


def test_the_same_picture_at_another_place_is_not_shared():
    cache = KVCache(8, 4, PLAIN)
    first, second = make_sequence([5] * 9, b"a", 1, 5), make_sequence([5] * 9, b"a", 2, 6)
    assert cached_tokens(cache, first, second) == 0


def test_prompts_beyond_the_rotary_limit_share_only_with_equal_lengths():
    equal = cached_tokens(
        KVCache(8, 4, DYNAMIC), make_sequence(range(13)), make_sequence(range(13))
    )
    longer = cached_tokens(
        KVCache(8, 4, DYNAMIC), make_sequence(range(13)), make_sequence(range(14))
    )
    within = cached_tokens(
        KVCache(8, 4, DYNAMIC), make_sequence(range(9)), make_sequence(range(10))
    )
    assert (equal, longer, within) == (12, 0, 8)


def test_written_tokens_beyond_the_limit_are_not_shared_with_a_prompt_of_the_same_ids():
    cache = KVCache(8, 4, DYNAMIC)
    first = make_sequence(range(6))
    first.token_ids += range(6, 17)
    assert cached_tokens(cache, first, make_sequence(range(18))) == 0


def test_an_admission_that_does_not_fit_changes_nothing():
    cache = KVCache(3, 4, PLAIN)
    assert cache.admit(make_sequence(range(8)))
    waiting = make_sequence(range(100, 108))
    assert not cache.admit(waiting)
    assert (cache.pool.num_free, waiting.blocks) == (1, [])


def test_the_beginning_of_a_conversation_is_evicted_last():
    cache = KVCache(4, 4, PLAIN)
    first = make_sequence(range(16))
    assert cache.admit(first)
    compute(cache, first)
    cache.free(first)
    other = make_sequence(range(50, 57))
    assert cache.admit(other)
    cache.free(other)
    assert cache.admit(again := make_sequence(range(16)))
    assert again.num_computed == 8


class CacheMachine(RuleBasedStateMachine):
    """Sequences come, grow and go in any order over a small cache."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = KVCache(6, 2, DYNAMIC)
        self.live: list[Sequence] = []

    @rule(ids=st.lists(st.integers(0, 1), min_size=1, max_size=12), picture=st.sampled_from("ab"))
    def admit(self, ids, picture) -> None:
        digest = picture.encode() if len(ids) >= 6 else None
        sequence = make_sequence(ids, digest)
        before = self.cache.pool.num_free
        if self.cache.admit(sequence):
            self.live.append(sequence)
        else:
            assert self.cache.pool.num_free == before

    @precondition(lambda self: self.live)
    @rule(data=st.data(), token=st.integers(0, 1))
    def write(self, data, token) -> None:
        sequence = data.draw(st.sampled_from(self.live))
        compute(self.cache, sequence)
        sequence.token_ids.append(token)
        if not self.cache.extend(sequence):
            sequence.token_ids.pop()

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def free(self, data) -> None:
        sequence = data.draw(st.sampled_from(self.live))
        self.live.remove(sequence)
        self.cache.free(sequence)

    @invariant()
    def every_block_is_counted_once_per_user(self) -> None:
        used = [block for sequence in self.live for block in sequence.blocks]
        pool = self.cache.pool
        assert all(pool.references(b) == used.count(b) for b in range(pool.num_blocks))
        assert pool.num_free == pool.num_blocks - len(set(used))

    @invariant()
    def unfinished_blocks_have_one_owner(self) -> None:
        for sequence in self.live:
            for block in sequence.blocks[len(sequence.token_ids) // 2 :]:
                assert self.cache.pool.references(block) == 1

    def teardown(self) -> None:
        for sequence in self.live:
            self.cache.free(sequence)
        assert self.cache.pool.num_free == self.cache.pool.num_blocks


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
