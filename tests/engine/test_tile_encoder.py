"""Runs of the tower that are recorded give what those that are not give, at every size."""

import copy
import logging

import numpy as np
import pytest
import torch

from internvl2.engine.graphs import CallAgain, CudaRecorder, Graphs
from internvl2.engine.sequence import SamplingParams
from internvl2.engine.tile_encoder import MOST_RECORDED, TileEncoder, TowerRun, recorded_sizes

SIDE = 56
CPU = torch.device("cpu")


class Counts(CallAgain):
    """How many tiles each recording has."""

    def __init__(self):
        self.recorded = []

    def record(self, work):
        self.recorded.append(work.args[0])
        return super().record(work)


class Refuses:
    """A device that records nothing."""

    def record(self, work):
        raise RuntimeError("this kernel cannot be captured")


def tiles_of(*counts):
    rng = np.random.default_rng(sum(counts))
    return [rng.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8) for count in counts]


def encoder_of(model, recorder=None, max_tiles=20, device=CPU):
    graphs = None if recorder is None else Graphs(recorder)
    return TileEncoder(model, device, max_tiles=max_tiles, graphs=graphs)


@torch.inference_mode()
def encoded(encoder, *counts):
    return torch.stack(encoder.encode(tiles_of(*counts)))


@pytest.fixture
def model(tiny_models):
    return tiny_models["plain"]


@pytest.mark.parametrize("count", range(1, MOST_RECORDED + 2))
def test_a_recorded_run_gives_what_a_plain_one_gives(model, count):
    plain = encoded(encoder_of(model), count)
    recorder = Counts()
    encoder = encoder_of(model, recorder)
    first, second, third = (encoded(encoder, count) for _ in range(3))
    assert torch.equal(first, plain)
    for again in (second, third):
        assert torch.allclose(again, plain, atol=1e-5)
    assert bool(recorder.recorded) == (count <= MOST_RECORDED)


def test_the_first_run_of_a_size_is_not_recorded_and_the_largest_is_recorded_first(model):
    recorder = Counts()
    encoder = encoder_of(model, recorder)
    encoded(encoder, 3)
    encoded(encoder, 13)
    assert recorder.recorded == []
    encoded(encoder, 3)
    encoded(encoder, 12)
    encoded(encoder, 3)
    assert recorder.recorded == [16, 3, 13]


def test_pictures_share_runs_and_long_ones_are_divided(model):
    runs = []
    encoder = encoder_of(model, max_tiles=4)
    encoder._model = type(
        "Model",
        (),
        {"encode_tiles": lambda self, x: (runs.append(len(x)), model.encode_tiles(x))[1]},
    )()
    together = encoded(encoder, 1, 6, 2)
    assert runs == [4, 4, 1]
    alone = [model.encode_tiles(torch.from_numpy(one)).detach() for one in tiles_of(1, 6, 2)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_what_a_later_run_encodes_leaves_earlier_results_as_they_are(model):
    encoder = encoder_of(model, CallAgain())
    encoded(encoder, 2)
    kept = encoded(encoder, 2)
    before = kept.clone()
    with torch.inference_mode():
        encoder.encode([np.full((2, SIDE, SIDE, 3), 200, np.uint8)])
    assert torch.equal(kept, before)


def test_a_run_that_cannot_be_recorded_is_computed_and_reported(model, caplog):
    plain = encoded(encoder_of(model), 2)
    encoder = encoder_of(model, Refuses(), max_tiles=2)
    with caplog.at_level(logging.WARNING):
        found = [encoded(encoder, 2) for _ in range(4)]
    assert all(torch.allclose(one, plain, atol=1e-5) for one in found)
    assert len(caplog.records) == 1
    assert "cannot be captured" in caplog.records[0].message
    assert "TowerRun(tiles=2)" in caplog.records[0].message


def test_no_recorded_run_has_more_tiles_than_a_run_may_have():
    assert recorded_sizes(1) == (1,)
    assert recorded_sizes(6) == (1, 2, 3, 4, 5, 6)
    assert recorded_sizes(32)[-1] == MOST_RECORDED


def test_nobody_waits_for_much_padding():
    sizes = recorded_sizes(32)
    for count in range(1, MOST_RECORDED + 1):
        padded = next(size for size in sizes if size >= count)
        assert padded - count <= max(0, count // 6 + 1)


def test_answers_with_recorded_runs_are_those_without(make_engine, make_prompt):
    params = SamplingParams(max_tokens=6, ignore_eos=True)
    prompts = [make_prompt([5 + n], [(n, 1 + n % 5)]) for n in range(12)]
    options = {"max_sequences": 4, "max_batch_tokens": 64, "vision_cache_bytes": 0}
    plain = make_engine(**options).generate(prompts, params)
    recorded = make_engine(**options, recorder=CallAgain()).generate(prompts, params)
    assert [one.token_ids for one in recorded] == [one.token_ids for one in plain]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recorded_runs_give_what_plain_ones_give_on_a_gpu(model, dtype):
    device = torch.device("cuda")
    model = copy.deepcopy(model).to(device, dtype)
    recorder = CudaRecorder(device)
    plain = encoder_of(model, device=device)
    encoder = encoder_of(model, recorder, device=device)
    for count in (1, 6, 13, 16, 20, 37, 13, 6, 1, 13):
        assert torch.allclose(
            encoded(encoder, count),
            encoded(plain, count),
            atol=1e-5 if dtype is torch.float32 else 0.1,
        )
    assert TowerRun(13) in encoder._recorded._graphs
