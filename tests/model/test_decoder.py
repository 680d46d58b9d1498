"""The decoder computes the same whatever the packing, the cache or the chunks."""

import dataclasses

import pytest
import torch

from internvl2.config import DecoderConfig, RotaryConfig
from internvl2.model.attention import DecodeSpan, PackedAttention, PagedAttention, PrefillSpan
from internvl2.model.decoder import Decoder
from internvl2.model.rotary import Positions, Rotary

PLAIN = RotaryConfig(theta=10000.0)
DYNAMIC = RotaryConfig(theta=10000.0, kind="dynamic", limit=8, factor=2.0)
LONG = RotaryConfig(
    theta=10000.0,
    kind="long",
    limit=8,
    short_factors=tuple(1 + i / 10 for i in range(8)),
    long_factors=tuple(2.0 + i for i in range(8)),
    scale=1.2,
)
BLOCK_SIZE = 4


def tiny(rotary: RotaryConfig = PLAIN) -> Decoder:
    torch.manual_seed(0)
    config = DecoderConfig(
        kind="qwen3",
        vocab_size=97,
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=96,
        max_positions=64,
        rotary=rotary,
        qkv_bias=True,
        qk_norm=True,
    )
    return Decoder(config).eval()


def run_packed(decoder: Decoder, sequences: list[torch.Tensor]) -> list[torch.Tensor]:
    lengths = [len(s) for s in sequences]
    x = decoder.embedding(torch.cat(sequences))
    hidden = decoder(x, Positions.packed(lengths), PackedAttention.of(lengths))
    return list(hidden.split(lengths))


def sequences(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 97, (n,), generator=generator) for n in lengths]


class Cache:
    """A paged cache for one sequence, its blocks scattered on purpose."""

    def __init__(self, decoder: Decoder, num_blocks: int = 16):
        config = decoder.config
        shape = (config.num_layers, num_blocks, BLOCK_SIZE, config.num_kv_heads, config.head_dim)
        self.keys, self.values = torch.full(shape, torch.nan), torch.full(shape, torch.nan)
        self.keys[:, -1] = self.values[:, -1] = 0
        self.blocks = torch.randperm(num_blocks - 1, generator=torch.Generator().manual_seed(2))

    def slots(self, start: int, stop: int) -> torch.Tensor:
        index = torch.arange(start, stop)
        return self.blocks[index // BLOCK_SIZE] * BLOCK_SIZE + index % BLOCK_SIZE

    def prefill(self, start: int, stop: int) -> PagedAttention:
        needed = self.blocks[: -(-stop // BLOCK_SIZE)]
        span = PrefillSpan(0, stop - start, start, needed)
        return PagedAttention(self.keys, self.values, self.slots(start, stop), (span,))

    def decode(self, position: int) -> PagedAttention:
        table = self.blocks[: -(-(position + 1) // BLOCK_SIZE)]
        zero = torch.nan_to_num
        self.keys, self.values = zero(self.keys), zero(self.values)
        span = DecodeSpan(0, table[None], torch.tensor([position + 1]), (position + 1,))
        return PagedAttention(
            self.keys, self.values, self.slots(position, position + 1), decodes=span
        )


@pytest.mark.parametrize("rotary", [PLAIN, DYNAMIC, LONG], ids=lambda r: r.kind)
@torch.no_grad()
def test_packed_sequences_do_not_see_each_other(rotary):
    decoder = tiny(rotary)
    pack = sequences(5, 12, 1, 9)
    for together, tokens in zip(run_packed(decoder, pack), pack, strict=True):
        torch.testing.assert_close(together, run_packed(decoder, [tokens])[0])


@pytest.mark.parametrize("rotary", [PLAIN, DYNAMIC, LONG], ids=lambda r: r.kind)
@torch.no_grad()
def test_prefill_in_chunks_equals_the_whole(rotary):
    decoder, (tokens,) = tiny(rotary), sequences(13)
    cache, length = Cache(decoder), torch.tensor(13)
    parts = []
    for start, stop in [(0, 5), (5, 6), (6, 13)]:
        positions = Positions(torch.arange(start, stop), length.expand(stop - start))
        x = decoder.embedding(tokens[start:stop])
        parts.append(decoder(x, positions, cache.prefill(start, stop)))
    torch.testing.assert_close(torch.cat(parts), run_packed(decoder, [tokens])[0])


@torch.no_grad()
def test_decoding_from_the_cache_equals_the_packed_run():
    decoder, (tokens,) = tiny(), sequences(11)
    cache = Cache(decoder)
    parts = [decoder(decoder.embedding(tokens[:6]), Positions.packed([6]), cache.prefill(0, 6))]
    for i in range(6, 11):
        positions = Positions(torch.tensor([i]), torch.tensor([i + 1]))
        parts.append(decoder(decoder.embedding(tokens[i : i + 1]), positions, cache.decode(i)))
    torch.testing.assert_close(torch.cat(parts), run_packed(decoder, [tokens])[0])


@torch.no_grad()
def test_a_step_may_mix_a_prompt_with_single_tokens():
    decoder, (first, second) = tiny(), sequences(7, 9)
    shape = (2, 8, BLOCK_SIZE, 2, 16)
    keys, values = torch.zeros(shape), torch.zeros(shape)
    table = torch.tensor([6, 1])
    slots = torch.cat([torch.arange(24, 28), torch.arange(4, 6)])
    alone = PagedAttention(keys, values, slots, (PrefillSpan(0, 6, 0, table),))
    decoder(decoder.embedding(first[:6]), Positions.packed([6]), alone)

    prompt = PrefillSpan(0, 9, 0, torch.tensor([2, 3, 4]))
    single = DecodeSpan(9, table[None], torch.tensor([7]), (7,))
    mixed = PagedAttention(
        keys, values, torch.cat([torch.arange(8, 17), torch.tensor([6])]), (prompt,), single
    )
    positions = Positions(
        torch.cat([torch.arange(9), torch.tensor([6])]), torch.tensor([9] * 9 + [7])
    )
    hidden = decoder(decoder.embedding(torch.cat([second, first[6:]])), positions, mixed)
    whole_first, whole_second = run_packed(decoder, [first, second])
    torch.testing.assert_close(hidden[:9], whole_second)
    torch.testing.assert_close(hidden[9:], whole_first[6:])


@torch.no_grad()
def test_rotation_beyond_the_limit_depends_on_the_length():
    decoder = tiny(DYNAMIC)
    plain = tiny(dataclasses.replace(DYNAMIC, kind="plain"))
    short, long = sequences(8, 9)
    torch.testing.assert_close(run_packed(decoder, [short]), run_packed(plain, [short]))
    assert not torch.allclose(run_packed(decoder, [long])[0], run_packed(plain, [long])[0])


def test_an_empty_sequence_cannot_be_packed():
    with pytest.raises(ValueError, match=r"lengths \[3, 0\]"):
        PackedAttention.of([3, 0])


def test_gradients_reach_every_parameter_of_a_pack():
    decoder = tiny()
    hidden = torch.cat(run_packed(decoder, sequences(4, 6)))
    decoder.head(hidden).square().sum().backward()
    assert [name for name, p in decoder.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("kind", ["plain", "dynamic"])
def test_kept_frequencies_turn_by_the_same_angles(kind):
    rotary = Rotary(RotaryConfig(1e6, kind, limit=5, factor=2.0), 16)
    positions = Positions.packed([3, 9])
    computed = rotary(positions)
    rotary.keep(positions.index.device)
    kept = rotary(positions)
    assert torch.equal(kept.cos, computed.cos)
    assert torch.equal(kept.sin, computed.sin)
