"""What an engine is asked for and cannot do is refused, and what it holds is counted."""

import dataclasses

import pytest
import torch

from internvl2.engine.activations import StepSizes, step_bytes


def test_graphs_are_refused_on_a_cpu(make_engine):
    with pytest.raises(ValueError, match="graphs need a CUDA device; this engine is on cpu"):
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
