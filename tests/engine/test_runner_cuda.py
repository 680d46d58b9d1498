"""A step of written tokens waits for the device only where its tokens are read."""

import warnings

import pytest
import torch

from internvl2.engine.sequence import SamplingParams

pytestmark = pytest.mark.gpu

GREEDY = SamplingParams(max_tokens=40, ignore_eos=True)
DRAWN = SamplingParams(
    max_tokens=40,
    temperature=0.8,
    top_k=20,
    top_p=0.9,
    min_p=0.01,
    seed=1,
    repetition_penalty=1.1,
    no_repeat_ngram_size=3,
    min_tokens=30,
)


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("params", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_a_decode_step_waits_for_its_tokens_alone(make_engine, make_prompt, params, graphs):
    engine = make_engine(device="cuda", graphs=graphs)
    for number in range(3):
        engine.add(make_prompt([number, 5, 6]), params)
    for _ in range(3):
        engine.step()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            engine.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in caught if "called a synchronizing" in str(w.message)]
    # The event behind the copy of the tokens is not among them.
    assert not waits, [f"{w.filename}:{w.lineno}" for w in waits]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixed_steps_equal_single_runs_on_the_gpu(make_engine, make_prompt, dtype):
    prompts = [
        make_prompt([5, 6, 8]),
        make_prompt([9, 10, 11], [(1, 3)]),
        make_prompt(list(range(20, 70)), [(2, 1), (1, 3)]),
    ]
    params = SamplingParams(max_tokens=24, ignore_eos=True, logprobs=0)
    engine = make_engine(device="cuda", dtype=dtype, max_batch_tokens=16, max_sequences=3)
    together = engine.generate(prompts, params)
    for prompt, answer in zip(prompts, together, strict=True):
        alone = make_engine(device="cuda", dtype=dtype, prefix_reuse=False).answer(prompt, params)
        first = [token.chosen.logprob for token in answer.logprobs][:4]
        second = [token.chosen.logprob for token in alone.logprobs][:4]
        assert first == pytest.approx(second, abs=1e-3 if dtype is torch.float32 else 0.1)
        if dtype is torch.float32:
            assert answer.token_ids == alone.token_ids
