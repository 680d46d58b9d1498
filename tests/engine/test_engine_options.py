"""What an engine is asked for and cannot do is refused, and what it holds is counted."""

import dataclasses

import pytest
import torch

from internvl2.engine.activations import StepSizes, step_bytes
from internvl2.engine.decoding import DecodeShape
from internvl2.engine.graphs import CallAgain, Graphs
from internvl2.engine.sequence import SamplingParams
from internvl2.engine.tile_encoder import TowerRun
from internvl2.processing.conversation import Message


def test_graphs_are_refused_on_a_cpu(make_engine):
    with pytest.raises(
        ValueError, match="the option graphs needs a CUDA device; this engine is on cpu"
    ):
        make_engine(graphs=True)


def test_recorded_steps_are_counted_in_the_plan(tiny_models):
    config, cuda = tiny_models["plain"].config, torch.device("cuda")
    sizes = StepSizes(batch_tokens=512, sequences=64, vision_tiles=4, context=400)
    counted = [
        step_bytes(config, torch.bfloat16, cuda, dataclasses.replace(sizes, recordings=number))
        for number in (0, 1, 18)
    ]
    assert counted[1] - counted[0] > 64 * 2**20
    assert counted[2] - counted[1] == 17 * 8 * 2**20


def test_copies_of_keys_and_values_are_counted_where_no_kernel_saves_them(tiny_models):
    config, cuda = tiny_models["plain"].config, torch.device("cuda")
    sizes = StepSizes(512, 64, 4, 400, recordings=1)
    few, many = (
        step_bytes(config, torch.bfloat16, cuda, dataclasses.replace(sizes, gathers=gathers))
        for gathers in (False, True)
    )
    layer = 2 * config.decoder.num_kv_heads * config.decoder.head_dim * 2
    assert many - few >= 64 * 400 * layer


def test_warming_up_records_every_batch_size_the_largest_first(make_engine, monkeypatch):
    recorded = []
    record = Graphs._record
    monkeypatch.setattr(
        Graphs,
        "_record",
        lambda self, key, work: (recorded.append(key), record(self, key, work))[1],
    )
    engine = make_engine(recorder=CallAgain(), max_sequences=20, vision_tiles=5)
    engine.warm_up()
    steps = [key.rows for key in recorded if isinstance(key, DecodeShape)]
    assert steps == [24, 16, 8, 4, 2, 1]
    assert [key.tiles for key in recorded if isinstance(key, TowerRun)] == [5, 4, 3, 2, 1]
    recorded.clear()
    engine.warm_up(SamplingParams(temperature=0.7, top_p=0.9))
    assert [key.rows for key in recorded] == [24, 16, 8, 4, 2, 1]


def test_pictures_that_do_not_fit_are_not_warmed_up_for(make_engine):
    engine = make_engine(recorder=CallAgain(), max_sequences=1, max_context=16)
    engine.warm_up()
    assert engine.runner.vision.num_encoded == 2 * (1 + 2 + 3)


def test_an_engine_that_records_nothing_has_nothing_to_warm_up(make_engine):
    engine = make_engine()
    engine.warm_up()
    assert engine.submit(engine_prompt(engine), SamplingParams(), None).id == 0


def engine_prompt(engine):
    """Two letters."""
    return engine.encode([Message.user("ab")])


def test_recorded_runs_of_the_tower_and_uploads_are_counted_in_the_plan(tiny_models):
    config, cuda = tiny_models["plain"].config, torch.device("cuda")
    sizes = StepSizes(512, sequences=64, vision_tiles=32, context=400, recordings=1)

    def counted(device=cuda, **changes):
        return step_bytes(config, torch.bfloat16, device, dataclasses.replace(sizes, **changes))

    pixels = 3 * config.tile_size**2
    tower = 16 * config.peak_values_per_tile * torch.bfloat16.itemsize
    assert counted(recorded_tiles=16) - counted() > tower + 16 * pixels
    assert counted(vision_tiles=1) <= counted() - 2 * 31 * pixels
