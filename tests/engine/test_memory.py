"""What will not fit is refused before anything is loaded, with the numbers and what would fit."""

import dataclasses
import re

import pytest
import torch

from internvl2.config import DecoderConfig, InternVLConfig, RotaryConfig, VisionConfig
from internvl2.engine.memory import (
    GIB,
    MemoryRequest,
    NotEnoughMemory,
    count_parameters,
    longest_context,
    plan,
)
from internvl2.model.tensor_parallel import Share

CONFIG = InternVLConfig(
    VisionConfig(hidden_size=1024, num_layers=2, num_heads=16, intermediate_size=4096),
    DecoderConfig(
        kind="internlm2",
        vocab_size=92553,
        hidden_size=2048,
        num_layers=24,
        num_heads=16,
        num_kv_heads=8,
        head_dim=128,
        intermediate_size=8192,
        max_positions=32768,
        rotary=RotaryConfig(theta=1e6),
    ),
    "internlm2-chat",
)
REQUEST = MemoryRequest(max_sequences=8, max_batch_tokens=2048, vision_tiles=4)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def make_plan(free: float, device=CUDA, dtype=torch.bfloat16, **changes):
    request = dataclasses.replace(REQUEST, **changes)
    return plan(CONFIG, dtype, device, int(free * GIB), request)


def test_parameters_are_counted_without_memory():
    assert count_parameters(CONFIG) == pytest.approx(1.93e9, rel=0.02)


def test_an_accelerator_is_filled_up_to_its_share_or_to_what_all_sequences_need():
    half = make_plan(20, memory_share=0.5)
    assert half.weight_bytes + half.activation_bytes + half.cache_bytes <= 10 * GIB
    assert half.cache_bytes > 4 * GIB
    assert make_plan(500).cache_tokens == 8 * 32768


def test_a_cpu_takes_a_modest_cache():
    assert make_plan(64, CPU, torch.float32).cache_bytes <= 2.5 * GIB


def test_an_explicit_cache_is_taken_as_it_is():
    assert make_plan(64, cache_tokens=1600).num_blocks == 100


def test_too_little_memory_is_refused_with_the_numbers_and_what_would_fit():
    with pytest.raises(NotEnoughMemory) as caught:
        make_plan(8, CPU, torch.float32, max_context=32768)
    text = str(caught.value)
    assert "GiB of weights" in text
    assert "8.00 GiB can be used" in text
    assert "dtype bfloat16" in text


def test_a_shorter_context_is_offered_where_it_would_fit():
    with pytest.raises(NotEnoughMemory, match=r"a context of at most \d+ tokens \(max_context\)"):
        make_plan(6, CPU, max_context=32768)
    assert make_plan(6, CPU, max_context=4096).max_context == 4096


def test_weights_that_are_there_already_are_not_counted_again():
    loaded = plan(CONFIG, torch.bfloat16, CUDA, 3 * GIB, REQUEST, is_loaded=True)
    assert loaded.weight_bytes == 0
    with pytest.raises(NotEnoughMemory):
        plan(CONFIG, torch.bfloat16, CUDA, 3 * GIB, REQUEST)


@pytest.mark.parametrize(
    ("name", "value"), [("max_context", 3), ("cache_tokens", 0), ("memory_share", 1.5)]
)
def test_nonsensical_sizes_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        make_plan(64, **{name: value})


def test_a_rotary_kind_that_adapts_has_room_beyond_a_small_limit():
    rotary = RotaryConfig(theta=1e4, kind="dynamic", limit=47, factor=2.0)
    decoder = dataclasses.replace(CONFIG.decoder, max_positions=47, rotary=rotary)
    assert longest_context(dataclasses.replace(CONFIG, decoder=decoder)) == 8192
    assert longest_context(CONFIG) == 32768


@pytest.mark.parametrize("size", ["max_context", "cache_tokens"])
@pytest.mark.parametrize("free", [5.9, 6.0, 6.1037])
def test_the_advised_size_fits_and_one_more_block_does_not(size, free):
    with pytest.raises(NotEnoughMemory) as caught:
        make_plan(free, CPU, **{size: 65536})
    found = re.search(rf"at most (\d+) tokens \({size}\)", str(caught.value))
    assert found is not None
    most = int(found[1])
    assert make_plan(free, CPU, **{size: most}).cache_tokens >= most
    with pytest.raises(NotEnoughMemory):
        make_plan(free, CPU, **{size: most + REQUEST.block_size})


def test_a_smaller_dtype_is_offered_only_where_it_would_fit():
    with pytest.raises(NotEnoughMemory) as caught:
        make_plan(1, CPU, torch.float32, max_context=32768)
    assert "bfloat16" not in str(caught.value)


def test_a_process_of_several_holds_its_share_of_weights_and_cache():
    one, two, four = (
        plan(CONFIG, torch.bfloat16, CUDA, 40 * GIB, REQUEST, share=share)
        for share in (None, Share(0, 2), Share(0, 4))
    )
    assert two.bytes_per_token == one.bytes_per_token / 2
    assert one.weight_bytes > 1.5 * two.weight_bytes > 1.5 * four.weight_bytes
    with pytest.raises(NotEnoughMemory):
        plan(CONFIG, torch.bfloat16, CUDA, 4 * GIB, REQUEST)
    assert plan(CONFIG, torch.bfloat16, CUDA, 4 * GIB, REQUEST, share=Share(0, 4)).num_blocks
