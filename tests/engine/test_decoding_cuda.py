"""CUDA graphs that run ahead of the host give the tokens of steps computed call by call."""

import random
import threading
from dataclasses import replace

import pytest
import torch

from internvl2.engine.activations import StepSizes, step_bytes
from internvl2.engine.batch_sizes import sizes_up_to
from internvl2.engine.engine import Engine, EngineOptions
from internvl2.engine.prepared import prepare
from internvl2.engine.sequence import SamplingParams

pytestmark = pytest.mark.gpu

GREEDY = SamplingParams(max_tokens=24, ignore_eos=True)
WISHES = [
    GREEDY,
    replace(GREEDY, temperature=1.3, seed=4),
    replace(GREEDY, temperature=0.9, top_k=12, top_p=0.8, min_p=0.02, seed=5),
    replace(GREEDY, repetition_penalty=1.4, no_repeat_ngram_size=3),
    replace(GREEDY, logprobs=3),
    SamplingParams(max_tokens=24, min_tokens=9, stop_token_ids=tuple(range(50))),
]


@pytest.fixture
def engines(make_engine):
    """The same model call by call and with graphs."""

    def make(dtype=torch.float32, **options):
        return [make_engine(device="cuda", dtype=dtype, graphs=g, **options) for g in (False, True)]

    return make


def not_recorded(caplog):
    """Warnings of work that runs without a graph."""
    return [r.getMessage() for r in caplog.records if r.name == "internvl2.engine.graphs"]


def tokens_of(answers):
    return [(answer.token_ids, answer.finish_reason) for answer in answers]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 13, 33])
def test_graphs_of_every_size_equal_call_by_call(engines, make_prompt, count, caplog):
    prompts = [make_prompt([n, 5, 6 + n]) for n in range(count)]
    plain, recorded = engines(max_sequences=40, cache_tokens=4096)
    assert tokens_of(recorded.generate(prompts, GREEDY)) == tokens_of(
        plain.generate(prompts, GREEDY)
    )
    assert not_recorded(caplog) == []


@pytest.mark.parametrize("params", WISHES, ids=range(len(WISHES)))
def test_every_way_to_choose_tokens_is_the_same_in_graphs(engines, make_prompt, params):
    prompts = [make_prompt([n, 5, 6 + n]) for n in range(3)]
    plain, recorded = engines()
    assert tokens_of(recorded.generate(prompts, params)) == tokens_of(
        plain.generate(prompts, params)
    )


@pytest.mark.parametrize("seed", range(4))
def test_requests_that_come_and_go_are_answered_alike(engines, make_prompt, seed):
    rng = random.Random(seed)
    options = {"max_sequences": rng.randint(2, 9), "max_batch_tokens": 32, "block_size": 4}
    plans = [
        (rng.randrange(40), [rng.randrange(90)] * rng.randint(1, 30), rng.choice(WISHES))
        for _ in range(16)
    ]
    found = []
    for engine in engines(**options):
        waiting, written, step = sorted(plans, key=lambda item: item[0]), {}, 0
        while waiting or engine.has_work:
            while waiting and waiting[0][0] <= step:
                _, ids, params = waiting.pop(0)
                engine.add(make_prompt(ids, [(1, 1)]), params)
            for output in engine.step():
                written.setdefault(output.sequence_id, []).extend(output.token_ids)
            step += 1
        found.append(written)
    assert found[0] == found[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_agrees_up_to_rounding(engines, make_prompt, dtype):
    prompts = [make_prompt([n, 5, 6 + n]) for n in range(5)]
    plain, recorded = engines(dtype)
    params = replace(GREEDY, logprobs=0)
    pairs = zip(plain.generate(prompts, params), recorded.generate(prompts, params), strict=True)
    for one, other in pairs:
        together = zip(one.logprobs, other.logprobs, one.token_ids, other.token_ids, strict=True)
        for first, second, token, same in together:
            if token != same:
                break  # two tokens were about as probable; from here on the texts differ
            assert first.chosen.logprob == pytest.approx(second.chosen.logprob, abs=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_kernels_run_in_graphs(wide_model, processor_of, make_prompt, dtype, caplog):
    model = prepare(wide_model("cuda", dtype))
    prompts = [make_prompt([n, 5, 6 + n] * (1 + 9 * n), [(n, 1)]) for n in range(6)]
    options = EngineOptions(cache_tokens=4096, max_context=400)
    found = []
    for graphs in (False, True):
        with Engine(model, processor_of(model), replace(options, graphs=graphs)) as engine:
            engine.generate(prompts[:2], GREEDY)
            found.append([a.token_ids[:4] for a in engine.generate(prompts, GREEDY)])
    if dtype is torch.float32:
        assert found[0] == found[1]
    assert not_recorded(caplog) == []


def test_steps_are_recorded_while_pictures_are_encoded_in_another_thread(
    engines, make_prompt, caplog
):
    plain, recorded = engines(max_sequences=16, cache_tokens=4096)
    prompts = [make_prompt([n, 5], [(n, 2)]) for n in range(16)]
    expected = tokens_of(plain.generate(prompts, GREEDY))
    stop = threading.Event()

    def keep_busy():
        tiles = torch.from_numpy(prompts[0].tiles)
        while not stop.is_set():
            with torch.inference_mode():
                plain.model.encode_tiles(tiles.pin_memory().to("cuda", non_blocking=True)).cpu()

    thread = threading.Thread(target=keep_busy)
    thread.start()
    try:
        assert tokens_of(recorded.generate(prompts, GREEDY)) == expected
    finally:
        stop.set()
        thread.join()
    assert not_recorded(caplog) == []


def test_recordings_take_no_more_than_the_plan_counts(tiny_models, make_engine, make_prompt):
    config, cuda = tiny_models["plain"].config, torch.device("cuda")
    engine = make_engine(device="cuda", max_sequences=16, cache_tokens=4096)
    engine.generate([make_prompt([1, 2])] * 3, replace(GREEDY, max_tokens=1))
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.mem_get_info()[0]
    for count in sizes_up_to(16):
        for _ in range(count):
            engine.add(make_prompt([1, 2]), replace(GREEDY, max_tokens=4))
        while engine.has_work:
            engine.step()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    sizes = StepSizes(512, 16, 4, 400)
    planned = [
        step_bytes(config, torch.float32, cuda, replace(sizes, recordings=n))
        for n in (0, len(sizes_up_to(16)))
    ]
    assert before - torch.cuda.mem_get_info()[0] <= planned[1] - planned[0]
