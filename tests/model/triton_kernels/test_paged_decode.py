"""Attention of single tokens over the paged cache: the kernel gives what plain PyTorch gives."""

import pytest
import torch
from torch import Tensor

from internvl2.model.attention import decode_attention
from internvl2.model.spans import DecodeSpan

pytestmark = pytest.mark.compiled

BOUND = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


def example(
    device: torch.device,
    lengths: tuple[int, ...],
    heads: tuple[int, int] = (4, 2),
    size: int = 16,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor, DecodeSpan]:
    """Queries, keys and values of random numbers; unused entries of tables repeat other blocks."""
    generator = torch.Generator().manual_seed(0)
    width = -(-max(lengths) // block_size) + 2
    shape = (width * len(lengths), block_size, heads[1], size)
    tables = torch.randperm(shape[0], generator=generator).view(len(lengths), width)
    q = torch.randn(len(lengths), heads[0], size, generator=generator)
    keys, values = torch.randn(2, *shape, generator=generator)
    span = DecodeSpan(0, tables.to(device), torch.tensor(lengths, device=device), lengths)
    return *(x.to(device, dtype) for x in (q, keys, values)), span


def attend(q: Tensor, keys: Tensor, values: Tensor, span: DecodeSpan, splits: int | None) -> Tensor:
    from internvl2.model.triton_kernels.paged_decode import paged_decode

    return paged_decode(q, keys, values, span.block_tables, span.context_lens, splits)


def assert_equal(found: Tensor, *inputs) -> None:
    q, keys, values, span = inputs
    wanted = decode_attention(q.double(), keys.double(), values.double(), span)
    assert found.dtype == q.dtype
    assert (found.double() - wanted).abs().max() <= BOUND[q.dtype] * wanted.abs().max()


@pytest.mark.parametrize("splits", [None, 1, 3, 8])
def test_lengths_at_the_edges_of_blocks_and_tiles(device, splits):
    inputs = example(device, (1, 15, 16, 17, 63, 64, 65, 129))
    assert_equal(attend(*inputs, splits), *inputs)


@pytest.mark.parametrize("group", [1, 2, 3, 5, 7])
def test_any_number_of_heads_shares_keys(device, group):
    inputs = example(device, (3, 70), heads=(2 * group, 2))
    assert_equal(attend(*inputs, 2), *inputs)


@pytest.mark.parametrize("size", [64, 80, 96, 128])
def test_sizes_of_heads_need_be_no_power_of_two(device, size):
    inputs = example(device, (5, 66), size=size)
    assert_equal(attend(*inputs, 2), *inputs)


@pytest.mark.parametrize("block_size", [16, 48, 64, 256])
def test_blocks_of_any_multiple_of_16(device, block_size):
    inputs = example(device, (47, 80), block_size=block_size)
    assert_equal(attend(*inputs, 2), *inputs)


@pytest.mark.parametrize("splits", [1, 3])
def test_bf16_is_equal_within_its_rounding(device, splits):
    inputs = example(device, (1, 100), heads=(14, 2), size=64, dtype=torch.bfloat16)
    assert_equal(attend(*inputs, splits), *inputs)


@pytest.mark.parametrize("splits", [1, 4])
def test_what_lies_behind_a_sequence_is_never_read(device, splits):
    q, keys, values, span = example(device, (18, 70))
    clean = attend(q, keys, values, span, splits)
    used = torch.zeros(keys.shape[:2], dtype=torch.bool, device=device)
    for table, length in zip(span.block_tables, (18, 70), strict=True):
        for token in range(length):
            used[table[token // 16], token % 16] = True
    keys[~used], values[~used] = torch.inf, torch.nan
    assert torch.equal(attend(q, keys, values, span, splits), clean)


def test_a_sequence_is_the_same_alone_and_in_a_batch(device):
    q, keys, values, span = example(device, (18, 70, 5))
    together = attend(q, keys, values, span, 4)
    for row in range(3):
        only = slice(row, row + 1)
        tables, lengths = span.block_tables[only], span.context_lens[only]
        alone = DecodeSpan(0, tables, lengths, (span.lengths[row],))
        assert torch.equal(attend(q[only], keys, values, alone, 4), together[only])


def test_queries_and_tables_may_be_parts_of_larger_tensors(device):
    q, keys, values, span = example(device, (18, 70))
    wide = torch.cat([span.block_tables, span.block_tables], dim=1)[:, : span.block_tables.shape[1]]
    part = DecodeSpan(0, wide, span.context_lens, span.lengths)
    joined = torch.cat([q, q], dim=1)[:, : q.shape[1]]
    assert not joined.is_contiguous()
    assert torch.equal(attend(joined, keys, values, part, 2), attend(q, keys, values, span, 2))


def test_few_sequences_are_divided_and_many_are_not(device, monkeypatch):
    from internvl2.model.triton_kernels import paged_decode

    def splits(programs: int, longest: int) -> int:
        return paged_decode.splits_for(torch.device("cuda"), programs, longest)

    class Processors:
        multi_processor_count = 132

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Processors)
    assert splits(programs=8, longest=32768) == paged_decode.MOST_SPLITS
    assert splits(programs=8, longest=130) == 3
    assert splits(programs=128, longest=4096) == 5
    assert splits(programs=1024, longest=4096) == 1
