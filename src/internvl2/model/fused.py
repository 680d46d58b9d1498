"""A decoder made ready to answer on a CUDA device: joined products, and fused kernels between them.

Each kernel is tried against plain PyTorch first, with the model's own shapes; where one is not to
be had, the layers compute that part plainly.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from internvl2.model.aligned import ALIGNED, aligned_product
from internvl2.model.attention import (
    PrefillKernel,
    decode_attention,
    has_varlen_kernel,
    varlen_attention,
)
from internvl2.model.decoder import Decoder, DecoderLayer
from internvl2.model.joined import has_row_matrix, join_linears, row_matrix
from internvl2.model.kernel_choice import KernelChoice, Trial
from internvl2.model.kernels import FusedKernels, RowKernels, gated, gated_halves
from internvl2.model.low_bit_plans import plan_products
from internvl2.model.rotary import Positions, Rotation
from internvl2.model.row_shapes import fastest_row_kernels, usual_row_kernels
from internvl2.model.spans import DecodeSpan

BLOCK_SIZE = 16
BATCH = 32
"""Rows of scores in a trial: sequences that are answered together."""
PREFILLS = ((3328, 3328), (100, 612))
"""Queries and keys in a trial: a picture of 13 tiles, and the end of a longer prompt."""
LENGTHS = (1, BLOCK_SIZE, BLOCK_SIZE + 1, 150)
"""Tokens of the sequences in a trial."""
PREFILL_WAYS = 2
"""Of `packed_prefill.TILINGS`, which only Triton can be asked."""
LARGE_SHARED_MEMORY = (9, 10)
"""Major compute capabilities of GPUs that have what the kernel for prompts needs."""
SPLITS = (None, 1, 3)
"""Of attention in a trial: as many as are usual there, one, and several."""


@torch.no_grad()
def fuse(decoder: Decoder, choice: KernelChoice, *, is_whole: bool = True) -> None:
    """Joins a decoder's products of the same states, and uses the kernels that pass their trials.

    The decoder can neither be trained nor saved after that. A process that holds a share of one
    has sums with others between the products, which then do not grow together.
    """
    join_linears(decoder.layers, in_few_bits=True)
    plan_products(decoder.layers, choice)
    decoder.rotary.keep(decoder.embedding.weight.device)
    trials = _Trials.of(decoder)
    has_plain_head = type(decoder.head) is nn.Linear
    mlp, attention = trials.layer.mlp.joined, trials.layer.attention.joined
    kernels = FusedKernels(
        sum_norm=_chosen(choice, trials.sum_norm(), _sum_norm),
        gate=_chosen(choice, trials.gate(), _gate) if mlp else None,
        turn_and_store=_chosen(choice, trials.turn_and_store(), _turn_and_store)
        if attention
        else None,
        paged_decode=_chosen(choice, trials.paged_decode(), _paged_decode),
        prefill=_fastest_prefill(choice, trials),
        head=_chosen(choice, trials.head(), _row_product) if has_plain_head else None,
        scores=_chosen(choice, trials.scores(), lambda: aligned_product)
        if has_plain_head and _is_odd_on_a_gpu(decoder.head)
        else None,
    )
    if is_whole and trials.has_row_matrices and kernels.turn_and_store:
        kernels = replace(kernels, row=_row_kernels(choice, trials, kernels))
    decoder.use(kernels)


@dataclass(frozen=True)
class _Trials:
    """What each kernel is tried on: numbers of a decoder's shapes, type and device."""

    decoder: Decoder
    layer: DecoderLayer
    heads: int
    kv_heads: int

    @classmethod
    def of(cls, decoder: Decoder) -> "_Trials":
        """Heads are counted on the weights: a process may hold a share of them."""
        layer = decoder.layers[0]
        assert isinstance(layer, DecoderLayer)
        attention = layer.attention
        if attention.joined is None:
            widths = [attention.q.out_features, attention.k.out_features]
        else:
            widths = attention.joined.widths
        return cls(decoder, layer, *(width // attention.head_dim for width in widths[:2]))

    @property
    def has_row_matrices(self) -> bool:
        """Whether every layer's matrices are joined, and held in rows."""
        products = ("q, k, v", "o", "gate, up", "down")
        counts = {sum(map(has_row_matrix, layer.modules())) for layer in self.decoder.layers}
        return counts == {len(products)}

    def sum_norm(self) -> Trial:
        norm = self.layer.mlp_norm
        dim = norm.weight.shape[0]

        def plain(x: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
            return x + added, norm(x + added)

        def fused(x: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
            return _sum_norm()(x, added, norm.weight, norm.eps)

        inputs = self.random(5, dim), self.random(5, dim)
        return Trial("sums and norms", fused, plain, inputs, case=dim)

    def gate(self) -> Trial:
        inner = self.layer.mlp.down.in_features

        def plain(product: Tensor) -> Tensor:
            opening, up = product.chunk(2, dim=-1)
            return gated(opening, up)

        product = self.random(5, 2 * inner)
        return Trial("gates", lambda x: _gate()(x), plain, (product,), case=inner)

    def turn_and_store(self) -> Trial:
        size, tokens = self.layer.attention.head_dim, 5
        product = self.random(tokens, (self.heads + 2 * self.kv_heads) * size)
        cache = self.random(2, 3, BLOCK_SIZE, self.kv_heads, size)
        slots = torch.tensor([0, 40, 16, 31, 5], device=product.device)
        rotate = self.decoder.rotary(Positions.packed([tokens], product.device))
        return Trial(
            "rotations",
            self._fused_turn,
            self._plain_turn,
            (product, cache, slots, rotate.cos, rotate.sin),
            case=(self.heads, self.kv_heads, size),
        )

    def paged_decode(self) -> Trial:
        size = self.layer.attention.head_dim
        blocks = -(-max(LENGTHS) // BLOCK_SIZE)
        cache = self.random(2, len(LENGTHS) * blocks, BLOCK_SIZE, self.kv_heads, size)
        q = self.random(len(LENGTHS), self.heads, size)
        tables = torch.arange(len(LENGTHS) * blocks).flip(0).view(len(LENGTHS), blocks)
        tables, lengths = tables.to(q.device), torch.tensor(LENGTHS, device=q.device)

        def plain(q: Tensor, cache: Tensor, tables: Tensor, lengths: Tensor) -> Tensor:
            span = DecodeSpan(0, tables, lengths, LENGTHS)
            found = decode_attention(q, cache[0], cache[1], span)
            return torch.stack([found] * len(SPLITS))

        def fused(q: Tensor, cache: Tensor, tables: Tensor, lengths: Tensor) -> Tensor:
            paged = _paged_decode()
            return torch.stack([paged(q, *cache, tables, lengths, splits) for splits in SPLITS])

        case = (self.heads, self.kv_heads, size)
        return Trial("attention over the cache", fused, plain, (q, cache, tables, lengths), case)

    def prefill(self, number: int, found: int | None) -> Trial:
        """One way of the kernel against another, or against PyTorch's; None is that."""
        longest, most = (max(column) for column in zip(*PREFILLS, strict=True))

        def by(attend: PrefillKernel) -> Callable[..., Tensor]:
            def of_bounds(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor) -> Tensor:
                q_bounds, k_bounds = bounds.contiguous()
                return attend(q, k, v, q_bounds, k_bounds, longest, most)

            return of_bounds

        def fused(*inputs: Tensor) -> Tensor:
            return by(_packed_prefill(number))(*inputs)

        plain = by(varlen_attention if found is None else _packed_prefill(found))
        size = self.layer.attention.head_dim
        case = (self.heads, self.kv_heads, size, number, found)
        other = "plain PyTorch" if found is None else f"the kernel in its way {found}"
        return Trial(
            "attention of prompts",
            fused,
            plain,
            self._runs,
            case,
            must_be_faster=True,
            other=other,
        )

    @cached_property
    def _runs(self) -> tuple[Tensor, ...]:
        """Queries, keys, values and bounds of prompts: numbers that take a while to draw."""
        size = self.layer.attention.head_dim
        queries, keys = map(sum, zip(*PREFILLS, strict=True))
        q = self.random(queries, self.heads, size)
        k, v = self.random(2, keys, self.kv_heads, size)
        bounds = torch.tensor([(0, 0), *PREFILLS]).cumsum(0).T.to(q.device, torch.int32)
        return q, k, v, bounds

    def row(self, row: Callable[[], RowKernels], kernels: FusedKernels, *, faster: bool) -> Trial:
        """A layer's products with a single row, against the ones for any number of rows."""
        attention, mlp = self.layer.attention, self.layer.mlp
        dim, inner = attention.o.out_features, attention.o.in_features
        norms = self.layer.attention_norm, self.layer.mlp_norm
        joined, opening = attention.joined, mlp.joined
        assert joined is not None
        assert opening is not None

        def plain(x: Tensor, added: Tensor, out: Tensor) -> tuple[Tensor, ...]:
            first, normed = norms[0].of_sum(x, added, kernels)
            second, after = norms[1].of_sum(first, attention.o(out), kernels)
            opened = gated_halves(opening(after), kernels)
            return first, joined(normed), second, opened, mlp.down(opened)

        def fused(x: Tensor, added: Tensor, out: Tensor) -> tuple[Tensor, ...]:
            by, (one, two) = row(), norms
            first, states = by.normed(x, added, one.weight, one.eps, joined.matrix)
            turned = by.output(out, row_matrix(attention.o))
            second, opened = by.gated(first, turned, two.weight, two.eps, opening.matrix)
            return first, states, second, opened, by.down(opened, row_matrix(mlp.down))

        inputs = self.random(1, dim), self.random(1, dim), self.random(1, inner)
        case = (dim, inner, mlp.down.in_features, type(mlp.down).__name__, faster)
        return Trial("products with one row", fused, plain, inputs, case, must_be_faster=faster)

    def head(self) -> Trial:
        head = self.decoder.head

        def fused(hidden: Tensor) -> Tensor:
            return _row_product()(hidden, row_matrix(head))

        case = tuple(head.weight.shape)
        hidden = (self.random(1, case[1]),)
        return Trial("the head", fused, head, hidden, case, must_be_faster=True)

    def scores(self) -> Trial:
        head = self.decoder.head

        def aligned(hidden: Tensor) -> Tensor:
            return aligned_product(hidden, head.weight)

        case = tuple(head.weight.shape)
        hidden = (self.random(BATCH, case[1]),)
        return Trial("the head of a batch", aligned, head, hidden, case, must_be_faster=True)

    def _plain_turn(
        self, product: Tensor, cache: Tensor, slots: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        attention = self.layer.attention
        heads = rearrange(product, "t (h d) -> t h d", d=attention.head_dim)
        q, k, v = heads.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        if attention.q_norm is not None and attention.k_norm is not None:
            q, k = attention.q_norm(q), attention.k_norm(k)
        rotate, cache = Rotation(cos, sin), cache.clone()
        q, k = rotate(q), rotate(k)
        for room, new in zip(cache, (k, v), strict=True):
            rearrange(room, "n b h d -> (n b) h d").index_copy_(0, slots, new)
        return torch.cat([q, k], dim=1), cache

    def _fused_turn(
        self, product: Tensor, cache: Tensor, slots: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        cache = cache.clone()
        norms, eps = self.layer.attention.head_norms
        return _turn_and_store()(product, cos, sin, norms, eps, *cache, slots), cache

    def heads_of(self, tokens: int) -> Tensor:
        """Queries of so many tokens."""
        return self.random(tokens, self.heads, self.layer.attention.head_dim)

    def random(self, *shape: int) -> Tensor:
        """Drawn without touching the random numbers of whoever loads a model."""
        weight = self.decoder.embedding.weight
        numbers = torch.randn(shape, generator=torch.Generator().manual_seed(0), device="cpu")
        return numbers.to(weight)


def _fastest_prefill(choice: KernelChoice, trials: _Trials) -> PrefillKernel | None:
    """A kernel for Hopper that is faster there than PyTorch's, which is for the one before it."""
    weight = trials.decoder.embedding.weight
    if weight.device.type != "cuda" or not has_varlen_kernel(trials.heads_of(1)):
        return None
    if torch.cuda.get_device_capability(weight.device)[0] not in LARGE_SHARED_MEMORY:
        return None
    found = None
    for number in range(PREFILL_WAYS):
        if choice.prepare(trials.prefill(number, found)):
            found = number
    return None if found is None else _packed_prefill(found)


def _row_kernels(choice: KernelChoice, trials: _Trials, kernels: FusedKernels) -> RowKernels | None:
    """Those for a single row where they are faster, in the shapes that are fastest."""
    if not choice.prepare(trials.row(usual_row_kernels, kernels, faster=False)):
        return None
    layers = [layer for layer in trials.decoder.layers if isinstance(layer, DecoderLayer)]
    found = fastest_row_kernels(layers, choice, trials.random)
    return _chosen(choice, trials.row(lambda: found, kernels, faster=True), lambda: found)


def _is_odd_on_a_gpu(head: nn.Linear) -> bool:
    return head.weight.device.type == "cuda" and head.out_features % ALIGNED != 0


def _chosen(choice: KernelChoice, trial: Trial, load: Callable[[], Any]) -> Any | None:
    return load() if choice.prepare(trial) else None


def _sum_norm() -> Callable[..., tuple[Tensor, Tensor]]:
    from internvl2.model.triton_kernels.sum_norm import sum_norm

    return sum_norm


def _gate() -> Callable[..., Tensor]:
    from internvl2.model.triton_kernels.gate import gate

    return gate


def _turn_and_store() -> Callable[..., Tensor]:
    from internvl2.model.triton_kernels.turn_and_store import turn_and_store

    return turn_and_store


def _paged_decode() -> Callable[..., Tensor]:
    from internvl2.model.triton_kernels.paged_decode import paged_decode

    return paged_decode


def _packed_prefill(number: int) -> PrefillKernel:
    from internvl2.model.triton_kernels.packed_prefill import TILINGS, packed_prefill

    tiling = TILINGS[number]

    def attend(
        q: Tensor, k: Tensor, v: Tensor, q_bounds: Tensor, k_bounds: Tensor, max_q: int, _: int
    ) -> Tensor:
        return packed_prefill(q, k, v, q_bounds, k_bounds, max_q, tiling)

    return attend


def _row_product() -> Callable[..., Tensor]:
    from internvl2.model.triton_kernels.row_product import row_product

    return row_product
