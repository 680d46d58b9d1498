"""Attention of packed runs of prompts: the kernel gives what each run gives by itself."""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

pytestmark = pytest.mark.compiled

BOUND = {torch.float32: 2e-6, torch.bfloat16: 2e-2}
RUNS = [(1, 1), (5, 5), (64, 64), (65, 65), (130, 130), (3, 70), (64, 128), (70, 201)]
"""Queries and keys of runs that end at edges of tiles and beside them; some have earlier keys."""


def example(
    device: torch.device,
    runs: list[tuple[int, int]],
    heads: tuple[int, int] = (4, 2),
    size: int = 16,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, cut out of one tensor as those of a joined product are."""
    generator = torch.Generator().manual_seed(len(runs) + size)
    tokens = max(sum(queries for queries, _ in runs), sum(keys for _, keys in runs))
    numbers = torch.randn(tokens, heads[0] + 2 * heads[1], size, generator=generator)
    q, k, v = numbers.to(device, dtype).split([heads[0], heads[1], heads[1]], dim=1)
    return q[: sum(n for n, _ in runs)], k[: sum(n for _, n in runs)], v[: sum(n for _, n in runs)]


def attend(q: Tensor, k: Tensor, v: Tensor, runs: list[tuple[int, int]], which: int = 0) -> Tensor:
    from internvl2.model.triton_kernels.packed_prefill import TILINGS, packed_prefill

    bounds = torch.tensor([(0, 0), *runs], dtype=torch.int32).cumsum(0).int().to(q.device)
    longest = max(queries for queries, _ in runs)
    return packed_prefill(q, k, v, *bounds.T.contiguous(), longest, TILINGS[which])


def alone(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    queries, keys = len(q), len(k)
    mask = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    q, k, v = (rearrange(x.double(), "t h d -> 1 h t d") for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    return rearrange(out, "1 h t d -> t h d")


def assert_each_as_alone(found: Tensor, q: Tensor, k: Tensor, v: Tensor, runs) -> None:
    queries, keys = zip(*runs, strict=True)
    parts = zip(q.split(queries), k.split(keys), v.split(keys), strict=True)
    wanted = torch.cat([alone(*part) for part in parts])
    assert (found.dtype, found.shape) == (q.dtype, q.shape)
    assert (found.double() - wanted).abs().max() <= BOUND[q.dtype] * wanted.abs().max()


@pytest.mark.parametrize("which", [0, 1])
def test_runs_of_every_length_are_kept_apart(device, which):
    inputs = example(device, RUNS)
    assert_each_as_alone(attend(*inputs, RUNS, which), *inputs, RUNS)


@pytest.mark.parametrize("group", [1, 3, 7])
def test_any_number_of_heads_shares_keys(device, group):
    runs = [(20, 90), (70, 70)]
    inputs = example(device, runs, heads=(2 * group, 2))
    assert_each_as_alone(attend(*inputs, runs), *inputs, runs)


@pytest.mark.parametrize("size", [64, 80, 96, 128])
def test_sizes_of_heads_need_be_no_power_of_two(device, size):
    runs = [(66, 150)]
    # Heads of fp32 so large do not fit into the shared memory of a GPU.
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    inputs = example(device, runs, size=size, dtype=dtype)
    assert_each_as_alone(attend(*inputs, runs), *inputs, runs)


@pytest.mark.parametrize("which", [0, 1])
def test_numbers_of_half_the_bits(device, which):
    inputs = example(device, RUNS, size=64, dtype=torch.bfloat16)
    assert_each_as_alone(attend(*inputs, RUNS, which), *inputs, RUNS)


def test_a_run_gives_the_same_bits_in_any_company(device):
    runs = [(70, 201), (130, 130), (5, 5)]
    q, k, v = example(device, runs, size=64, dtype=torch.bfloat16)
    together = attend(q, k, v, runs)
    by_itself = attend(q[70:200], k[201:331], v[201:331], [(130, 130)])
    assert (together[70:200] == by_itself).all()


def test_prompts_over_a_cache_are_attended_by_the_kernel(device, monkeypatch):
    """As a step of an engine has them: one prompt from its start, one from its middle."""
    from functools import partial

    from internvl2.model import attention
    from internvl2.model.attention import PagedAttention
    from internvl2.model.spans import PrefillSpan
    from internvl2.model.triton_kernels.packed_prefill import TILINGS, packed_prefill

    def kernel(q, k, v, q_bounds, k_bounds, longest, _):
        asked.append(longest)
        return packed_prefill(q, k, v, q_bounds, k_bounds, longest, TILINGS[0])

    asked: list[int] = []
    torch.manual_seed(0)
    keys, values = torch.randn(2, 1, 8, 16, 2, 16).to(device)
    blocks = torch.arange(8, device=device).view(2, 4)
    spans = PrefillSpan(0, 40, 0, blocks[0]), PrefillSpan(40, 50, 30, blocks[1])
    slots = torch.cat([torch.arange(40), 64 + torch.arange(30, 40)]).to(device)
    q, k, v = (torch.randn(50, heads, 16).to(device) for heads in (4, 2, 2))
    plain = PagedAttention(keys, values, slots, spans)
    wanted = plain(0, q, k, v)
    monkeypatch.setattr(attention, "has_varlen_kernel", lambda q: True)
    attend = partial(PagedAttention, prefill_kernel=kernel)
    found = attend(keys, values, slots, spans)(0, q, k, v)
    assert asked == [40]
    assert (found - wanted).abs().max() <= BOUND[q.dtype] * wanted.abs().max()


@pytest.mark.parametrize("which", [0, 1])
def test_the_trial_at_loading_gives_what_each_run_gives(device, monkeypatch, which):
    from internvl2.config import DecoderConfig, RotaryConfig
    from internvl2.model import fused
    from internvl2.model.decoder import Decoder

    runs = [(90, 90), (6, 70)]
    monkeypatch.setattr(fused, "PREFILLS", tuple(runs))
    config = DecoderConfig("qwen2", 99, 64, 1, 4, 2, 16, 96, 512, RotaryConfig(1e4), qkv_bias=True)
    trial = fused._Trials.of(Decoder(config).to(device)).prefill(which, None)
    *inputs, _ = trial.inputs
    with torch.no_grad():
        assert_each_as_alone(trial.fused(*trial.inputs), *inputs, runs)
