"""Packs: planned evenly, by sizes and order alone; labels and weights of their streams."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl2.config import DecoderConfig, InternVLConfig, RotaryConfig, VisionConfig
from internvl2.processing.prompt import MediaSpan, Prompt
from internvl2.train.data.filling import Costs, Limits, Planner, Waiting, plan_packs
from internvl2.train.data.packing import (
    IGNORED,
    Sample,
    TrainBatch,
    loss_weight,
    pack_samples,
    tile_buckets,
    with_tile_bucket,
)

LIMITS = Limits(tokens=100, tiles=6, window=8)
COSTS = Costs(token=1.0, square=0.01, tile=20.0)
SIZES = st.lists(st.tuples(st.integers(2, 100), st.integers(0, 6)), max_size=60)


def waiting(sizes: list[tuple[int, int]]) -> list[Waiting]:
    return [Waiting(number, tokens, tiles) for number, (tokens, tiles) in enumerate(sizes)]


def sample(ids: list[int], targets: str, tiles: int = 0) -> Sample:
    media = (MediaSpan(0, 1, 0, tiles, 1, tiles, False, b""),) if tiles else ()
    pixels = np.full((tiles, 4, 4, 3), ids[0], np.uint8)
    return Sample(Prompt(ids, [t == "x" for t in targets], pixels, media), f"set:{ids[0]}")


@given(SIZES)
def test_every_sample_is_in_exactly_one_pack_that_holds_it(sizes):
    packs = plan_packs(waiting(sizes), LIMITS, COSTS)
    assert sorted(s for pack in packs for s in pack.samples) == list(range(len(sizes)))
    for pack in packs:
        assert pack.tokens == sum(sizes[s][0] for s in pack.samples) <= LIMITS.tokens
        assert pack.tiles == sum(sizes[s][1] for s in pack.samples) <= LIMITS.tiles


@given(SIZES)
def test_a_pack_begins_with_the_sample_that_waits_longest(sizes):
    left = set(range(len(sizes)))
    for pack in plan_packs(waiting(sizes), LIMITS, COSTS):
        assert min(left) == pack.samples[0]
        left -= set(pack.samples)


@given(SIZES, st.integers(0, 20))
def test_a_planner_goes_on_from_what_waited(sizes, taken):
    def packs(planner, rest):
        found = []
        for one in rest:
            planner.add(one)
            while planner.has_choice:
                found.append(planner.next_pack())
        return found

    whole = Planner(LIMITS, COSTS)
    before = packs(whole, waiting(sizes)[:taken])
    again = Planner(LIMITS, COSTS, whole.waiting)
    rest = waiting(sizes)[taken:]
    assert packs(again, rest) == packs(whole, rest)
    assert all(max(pack.samples) < taken for pack in before)


def test_packs_are_full_and_alike_in_cost():
    random = np.random.default_rng(0)
    tiles = random.choice([0, 1, 3, 5, 7], 2000)
    tokens = tiles * 258 + random.lognormal(5, 0.8, 2000).astype(int) + 2
    sizes = waiting([(int(a), int(b)) for a, b in zip(tokens, tiles, strict=True)])
    costs = Costs(token=1.9e9, square=49152.0, tile=3.5e11)
    packs = plan_packs(sizes, Limits(8192, 30, 64), costs)[:-2]
    work = [sum(costs(sizes[s].tokens, sizes[s].tiles) for s in pack.samples) for pack in packs]
    assert np.mean([pack.tokens for pack in packs]) > 0.97 * 8192
    assert np.std(work) < 0.1 * np.mean(work)


def test_kinds_of_samples_of_almost_one_size_stay_mixed_in_all_packs():
    sizes = [(25, 1), (24, 1)] * 40
    packs = plan_packs(waiting(sizes), LIMITS, COSTS)
    assert {sum(number % 2 for number in pack.samples) for pack in packs} == {2}


def test_a_sample_that_no_pack_holds_is_refused():
    with pytest.raises(ValueError, match="101 tokens and 0 tiles is too large"):
        Planner(LIMITS, COSTS).add(Waiting(0, 101, 0))
    with pytest.raises(ValueError, match="10 tokens and 7 tiles is too large"):
        Planner(LIMITS, COSTS).add(Waiting(0, 10, 7))


def test_costs_are_the_multiplications_of_a_forward_pass():
    vision = VisionConfig(8, 2, 2, 16, image_size=56)
    decoder = DecoderConfig("qwen2", 100, 16, 3, 2, 1, 8, 32, 64, RotaryConfig(1e4))
    costs = Costs.of(InternVLConfig(vision, decoder, "internvl2_5", tile_size=56))
    assert costs.token == 3 * (16 * 16 + 2 * 16 * 8 + 16 * 16 + 3 * 16 * 32)
    assert costs.square == 3 * 2 * 8
    assert costs.tile == 2 * (17 * (4 * 8 * 8 + 2 * 8 * 16) + 2 * 17 * 17 * 8)


def test_positions_learn_the_next_token_of_their_own_sample():
    pack = pack_samples([sample([5, 6, 7], "..x"), sample([8, 9, 4, 3], "x.xx")], 10)
    assert pack.tokens.tolist() == [5, 6, 7, 8, 9, 4, 3, 0, 0, 0]
    none = IGNORED
    assert pack.labels.tolist() == [none, 7, none, none, 4, 3, none, none, none, none]
    assert pack.weights.tolist() == [0, 1, 0, 0, 1, 1, 0, 0, 0, 0]
    assert pack.lengths == (3, 4, 3)


@pytest.mark.parametrize(
    ("weighting", "of_four"), [("token", 1), ("sample", 0.25), ("square", 0.5)]
)
def test_weights_depend_on_how_much_a_sample_learns(weighting, of_four):
    assert loss_weight(weighting, 4) == of_four
    pack = pack_samples([sample([1] * 5, ".xxxx"), sample([2] * 3, "...")], 8, weighting)
    assert pack.weights.tolist() == [of_four] * 4 + [0] * 4


def test_a_full_pack_has_no_padding_and_a_fuller_one_is_refused():
    assert pack_samples([sample([1, 2], ".x")], 2).lengths == (2,)
    with pytest.raises(ValueError, match="3 tokens do not fit into a pack of 2"):
        pack_samples([sample([1, 2, 3], ".xx")], 2)


def test_an_empty_pack_is_all_padding():
    pack = pack_samples([], 4)
    assert (pack.lengths, pack.num_tiles, pack.where) == ((4,), 0, ())
    assert not pack.weights.any()


def test_tiles_are_padded_to_few_sizes():
    assert tile_buckets(30) == (0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30)
    assert tile_buckets(0) == (0,)
    pack = pack_samples([sample([5, 1], ".x", tiles=2), sample([6, 1], ".x", tiles=1)], 8)
    padded = with_tile_bucket(pack, 4, 5)
    assert (padded.num_tiles, len(padded.tiles)) == (3, 5)
    assert [int(tile.max()) for tile in padded.tiles] == [5, 5, 6, 0, 0]
    with pytest.raises(ValueError, match="3 tiles does not fit into 2"):
        with_tile_bucket(pack, 4, 2)


def test_a_batch_restarts_positions_and_keeps_samples_apart():
    pack = pack_samples([sample([5, 6, 7], ".xx", tiles=1), sample([8, 9], ".x")], 8)
    batch = TrainBatch.of(with_tile_bucket(pack, 4, 2)).to("cpu")
    assert batch.positions.index.tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    assert batch.attention().boundaries.tolist() == [0, 3, 5, 8]
    assert (batch.num_samples, batch.num_tokens, batch.num_tiles) == (2, 5, 1)
    assert batch.weight_sum == 3
    assert batch.where == ("set:5", "set:8")
