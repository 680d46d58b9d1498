"""Shares of a model compute together what the whole model computes."""

import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import torch

from internvl2.config import DecoderConfig, InternVLConfig, RotaryConfig, VisionConfig
from internvl2.model.attention import PackedAttention
from internvl2.model.internvl import InternVL, random_model
from internvl2.model.joined import join_linears
from internvl2.model.kernels import FusedKernels
from internvl2.model.rotary import Positions
from internvl2.model.tensor_parallel import DividedInternVL, Share

VOCAB, SIDE = 101, 56


@dataclass
class Board:
    """Where threads that stand for processes lay down what they have."""

    size: int
    barrier: threading.Barrier = field(init=False)
    laid: dict[int, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self):
        self.barrier = threading.Barrier(self.size, timeout=20)


@dataclass
class Threads:
    """The peers of one thread."""

    rank: int
    board: Board

    def _everyone(self, x: torch.Tensor) -> list[torch.Tensor]:
        self.board.laid[self.rank] = x.clone()
        self.board.barrier.wait()
        found = [self.board.laid[rank] for rank in range(self.board.size)]
        self.board.barrier.wait()
        return found

    def sum(self, x):
        return torch.stack(self._everyone(x)).sum(0)

    def gather(self, x):
        return torch.cat(self._everyone(x))

    def adopt(self, x):
        return self._everyone(x)[0]


def config_of(**changes) -> InternVLConfig:
    decoder = DecoderConfig(
        kind="qwen3",
        vocab_size=VOCAB,
        hidden_size=32,
        num_layers=2,
        num_heads=8,
        num_kv_heads=2,
        head_dim=8,
        intermediate_size=48,
        max_positions=128,
        rotary=RotaryConfig(theta=10000.0),
        qkv_bias=True,
        qk_norm=True,
    )
    vision = VisionConfig(
        hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32, image_size=SIDE
    )
    decoder = dataclasses.replace(decoder, **changes)
    return InternVLConfig(vision, decoder, "internlm2-chat", tile_size=SIDE, image_token_id=97)


def shares_of(whole: InternVL, size: int) -> list[DividedInternVL]:
    shares = []
    for rank in range(size):
        with torch.device("meta"):
            model = DividedInternVL(whole.config, Share(rank, size))
        parts = model.share.parts(whole.state_dict().items(), whole.config.decoder)
        copies = {name: part.clone() for name, part in parts}
        model.load_state_dict(copies, strict=True, assign=True)
        shares.append(model.eval())
    return shares


def together(shares: list[DividedInternVL], run: Callable) -> list:
    """What each share gives when all run the same."""
    board = Board(len(shares))
    for rank, model in enumerate(shares):
        model.join(Threads(rank, board))
    with ThreadPoolExecutor(len(shares)) as pool:
        return list(pool.map(lambda pair: run(*pair), enumerate(shares)))


@torch.inference_mode()
def logits(model: InternVL, tokens: torch.Tensor, tiles: torch.Tensor | None) -> torch.Tensor:
    lengths = [5, len(tokens) - 5]
    positions = Positions.packed(lengths)
    return model.logits(model(tokens, positions, tiles, PackedAttention.of(lengths)))


def inputs(num_tiles: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 96, (40,), generator=generator)
    tokens[8 : 8 + 4 * num_tiles] = 97
    shape = (num_tiles, SIDE, SIDE, 3)
    return tokens, torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("size", "changes"),
    [
        (2, {}),
        (4, {}),
        (8, {"num_kv_heads": 4, "qk_norm": False}),
        (2, {"num_kv_heads": 8, "qkv_bias": False}),
        (4, {"vocab_size": 98}),
    ],
    ids=["kv_divided", "kv_repeated", "eight", "no_groups", "uneven_vocabulary"],
)
def test_shares_give_the_logits_of_the_whole_model(size, changes):
    whole = random_model(config_of(**changes))
    tokens, tiles = inputs(num_tiles=3)
    expected = logits(whole, tokens, tiles)
    found = together(shares_of(whole, size), lambda rank, model: logits(model, tokens, tiles))
    for one in found:
        torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(one, found[0])


def test_layers_that_are_made_ready_for_a_gpu_have_the_same_sums():
    whole = random_model(config_of())
    tokens, tiles = inputs(num_tiles=1)
    shares = shares_of(whole, 2)
    for model in shares:
        join_linears(model.decoder.layers)
        model.decoder.use(FusedKernels())
    expected = logits(whole, tokens, tiles)
    for one in together(shares, lambda rank, model: logits(model, tokens, tiles)):
        torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-4)


def test_tokens_and_tiles_of_the_first_process_count():
    whole = random_model(config_of())
    tokens, tiles = inputs(num_tiles=1)

    def run(rank: int, model: InternVL) -> torch.Tensor:
        own = (tokens, tiles) if rank == 0 else (tokens.clone(), torch.zeros_like(tiles))
        if rank:
            own[0][20:] = 3
        return logits(model, *own)

    expected = logits(whole, tokens, tiles)
    for one in together(shares_of(whole, 2), run):
        torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_tiles", [1, 4, 5])
def test_each_process_encodes_its_share_of_the_tiles(num_tiles):
    whole = random_model(config_of())
    tiles = inputs(num_tiles=5)[1][:num_tiles]
    encoded = []

    @torch.inference_mode()
    def run(rank: int, model: InternVL) -> torch.Tensor:
        model.vision.register_forward_hook(lambda module, given, out: encoded.append(len(out)))
        return model.encode_tiles(tiles)

    with torch.inference_mode():
        expected = whole.encode_tiles(tiles)
    for one in together(shares_of(whole, 2), run):
        torch.testing.assert_close(one, expected)
    assert encoded == [-(-num_tiles // 2)] * 2


def test_shares_hold_no_more_than_their_part():
    config = config_of(num_kv_heads=8, vocab_size=104)
    whole = random_model(config)
    for model in shares_of(whole, 4):
        for (name, own), full in zip(
            model.decoder.named_parameters(), whole.decoder.parameters(), strict=True
        ):
            divided = "norm" not in name and not name.startswith("embedding")
            assert own.numel() * (4 if divided else 1) == full.numel(), name


@pytest.mark.parametrize(
    ("size", "changes"),
    [(3, {}), (2, {"intermediate_size": 49}), (4, {"num_heads": 12, "num_kv_heads": 6})],
    ids=["heads", "width", "kv_heads"],
)
def test_what_cannot_be_divided_is_refused_with_what_could(size, changes):
    config = config_of(**changes)
    with pytest.raises(ValueError, match=rf"over {size} processes; tensor_parallel can be 1"):
        Share(0, size).config(config)


def test_a_share_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="no share 2 of 2"):
        Share(2, 2)
