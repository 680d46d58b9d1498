"""A model divided over GPUs writes what one GPU writes, with CUDA graphs and without."""

import numpy as np
import pytest
import torch
from PIL import Image

from internvl2.engine.engine import Engine, EngineOptions
from internvl2.engine.sequence import SamplingParams
from internvl2.processing.conversation import Message, Picture

pytestmark = pytest.mark.gpu

GREEDY = SamplingParams(max_tokens=24, ignore_eos=True)


def conversations() -> list[list[Message]]:
    pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    picture = Picture(Image.fromarray(pixels))
    return [
        [Message.user("How many people are there?")],
        [Message.user(picture, "Describe the picture.")],
        [Message.user(picture, "And the colours?")],
    ]


def load(directory, size: int, dtype: str, *, graphs: bool) -> Engine:
    options = EngineOptions(max_context=1024, cache_tokens=8192, max_sequences=8, graphs=graphs)
    made = {"device": "cuda", "dtype": dtype, "options": options}
    return Engine.load(directory, tensor_parallel=size, **made)


@pytest.fixture(autouse=True)
def _two_gpus():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")


@pytest.mark.parametrize("graphs", [False, True], ids=["plain", "graphs"])
@pytest.mark.parametrize("case", ["A_internlm2", "B_qwen2"])
def test_two_gpus_write_the_tokens_of_one(recording, case, graphs):
    directory = recording(case).checkpoint
    with load(directory, 1, "float32", graphs=False) as engine:
        expected = [answer.token_ids for answer in engine.generate(conversations(), GREEDY)]
    with load(directory, 2, "float32", graphs=graphs) as engine:
        assert [a.token_ids for a in engine.generate(conversations(), GREEDY)] == expected
        alone = [engine.answer(one, GREEDY).token_ids for one in conversations()]
    assert alone == expected


def test_first_probabilities_in_bf16_are_those_of_one_gpu(recording):
    params = SamplingParams(max_tokens=1, logprobs=0)
    found = []
    for size in (1, 2):
        with load(recording("B_qwen2").checkpoint, size, "bfloat16", graphs=True) as engine:
            answers = engine.generate(conversations(), params)
            found.append([answer.logprobs[0].chosen.logprob for answer in answers])
    assert found[1] == pytest.approx(found[0], abs=0.1)


def test_a_process_that_dies_does_not_hang_the_first_one(recording):
    with load(recording("B_qwen2").checkpoint, 2, "bfloat16", graphs=True) as engine:
        asked = conversations()[0]
        for output in engine.stream(asked, SamplingParams(max_tokens=200, ignore_eos=True)):
            assert output.finish_reason is None
            break
        engine._team._followers[0].process.kill()
        with pytest.raises(ChildProcessError, match="process 1 of 2"):
            engine.answer(asked, GREEDY)
