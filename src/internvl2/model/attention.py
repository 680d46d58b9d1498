"""Who may look at whom: the one argument through which the decoder meets packing and caches.

`decoder(x, positions, attend)` calls `attend(layer, q, k, v)` once a layer. `PackedAttention` keeps
the sequences of a packed stream apart; `PagedAttention` also writes keys and values into a paged
cache and reads what earlier steps left there. Which kernel computes it is decided only here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise, product
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from internvl2 import device as devices
from internvl2.model import ascend
from internvl2.model.spans import DecodeSpan, PackedSpans, PrefillSpan

DecodeKernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""Queries, keys, values, block tables and lengths of `decode_attention` to what it gives."""
PrefillKernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int], Tensor]
"""What `varlen_attention` takes and gives."""

BY_HEADS = 512
"""Fewest patches of a tile for which a call a head costs less than it saves."""


@runtime_checkable
class Attention(Protocol):
    """Softmax attention of every token over the tokens it may see."""

    def __call__(
        self,
        layer: int,
        q: Float[Tensor, "tokens heads head_dim"],
        k: Float[Tensor, "tokens kv_heads head_dim"],
        v: Float[Tensor, "tokens kv_heads head_dim"],
    ) -> Float[Tensor, "tokens heads head_dim"]:
        """Attend in `layer`; queries and keys are already rotated."""
        ...


@dataclass(frozen=True)
class PackedAttention:
    """Causal attention within each of the sequences that follow each other in one stream."""

    lengths: tuple[int, ...]
    """Tokens of each sequence, in stream order."""
    boundaries: Int[Tensor, " bounds"]
    """Where each sequence starts, then the length of the stream; int32, on the stream's device."""
    longest: int
    """Tokens of the longest sequence: a number, which unlike `lengths` never recompiles a layer."""

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> "PackedAttention":
        """Attention for sequences of these lengths."""
        if not lengths or min(lengths) < 1:
            raise ValueError(
                f"packed sequences have lengths {list(lengths)}; each must be at least 1"
            )
        starts = [0, *accumulate(lengths)]
        boundaries = torch.tensor(starts, dtype=torch.int32, device=device)
        return cls(tuple(lengths), boundaries, max(lengths))

    def __call__(
        self,
        layer: int,
        q: Float[Tensor, "tokens heads head_dim"],
        k: Float[Tensor, "tokens kv_heads head_dim"],
        v: Float[Tensor, "tokens kv_heads head_dim"],
    ) -> Float[Tensor, "tokens heads head_dim"]:
        """Attend; the layer does not matter, since nothing is kept."""
        if ascend.has_packed_kernel(q.device):
            return ascend.packed_attention(q, k, v, self.lengths, self.lengths, self._mask)
        if has_varlen_kernel(q):
            edges, longest = self.boundaries, self.longest
            return varlen_attention(q, k, v, edges, edges, longest, longest)
        bounds = list(pairwise([0, *accumulate(self.lengths)]))
        return torch.cat([_causal_attention(q[a:b], k[a:b], v[a:b]) for a, b in bounds])

    @cached_property
    def _mask(self) -> Bool[Tensor, "2048 2048"]:
        return ascend.causal_mask(self.boundaries.device)


@dataclass(frozen=True)
class PagedAttention:
    """Causal attention over a paged cache, for a step that mixes prompts and single new tokens.

    The stream holds the prefill spans first and the decode span last. The lengths of the decode
    span are on the device and on the host, so that a step of single tokens waits for neither.
    """

    keys: Float[Tensor, "layers blocks block_size kv_heads head_dim"]
    values: Float[Tensor, "layers blocks block_size kv_heads head_dim"]
    slots: Int[Tensor, " tokens"]
    """Where each token's key and value go: block * block_size + offset."""
    prefills: tuple[PrefillSpan, ...] = ()
    decodes: DecodeSpan | None = None
    decode_kernel: DecodeKernel | None = None
    """What attends for single tokens on a device that has such a kernel (`fused`)."""
    prefill_kernel: PrefillKernel | None = None
    """What attends for prompts, where it is faster than PyTorch's kernel."""

    def __call__(
        self,
        layer: int,
        q: Float[Tensor, "tokens heads head_dim"],
        k: Float[Tensor, "tokens kv_heads head_dim"],
        v: Float[Tensor, "tokens kv_heads head_dim"],
    ) -> Float[Tensor, "tokens heads head_dim"]:
        """Write the new keys and values into the cache of `layer`, then attend over it."""
        keys, values = self.keys[layer], self.values[layer]
        rearrange(keys, "n b h d -> (n b) h d").index_copy_(0, self.slots, k)
        rearrange(values, "n b h d -> (n b) h d").index_copy_(0, self.slots, v)
        return self.over_cache(layer, q, k, v)

    def over_cache(
        self,
        layer: int,
        q: Float[Tensor, "tokens heads head_dim"],
        k: Float[Tensor, "tokens kv_heads head_dim"],
        v: Float[Tensor, "tokens kv_heads head_dim"],
    ) -> Float[Tensor, "tokens heads head_dim"]:
        """Attend, with the new keys and values in the cache of `layer` already."""
        keys, values = self.keys[layer], self.values[layer]
        outputs = self._prefills(keys, values, q, k, v)
        if self.decodes is not None:
            outputs.append(self._decodes(self.decodes, keys, values, q[self.decodes.start :]))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _prefills(
        self, keys: Tensor, values: Tensor, q: Tensor, k: Tensor, v: Tensor
    ) -> list[Float[Tensor, "span heads head_dim"]]:
        if self.prefills and has_varlen_kernel(q):
            return self._packed_prefills(keys, values, q, k, v)
        seen = [(_seen(span, keys, k), _seen(span, values, v)) for span in self.prefills]
        if seen and ascend.has_packed_kernel(q.device):
            lengths = [span.stop - span.start for span in self.prefills]
            k, v = (torch.cat(parts) for parts in zip(*seen, strict=True))
            queries = q[: self.prefills[-1].stop]
            totals = [span.total for span in self.prefills]
            return [ascend.packed_attention(queries, k, v, lengths, totals, self._mask)]
        runs = [q[span.start : span.stop] for span in self.prefills]
        return [_causal_attention(run, *both) for run, both in zip(runs, seen, strict=True)]

    def _packed_prefills(
        self, keys: Tensor, values: Tensor, q: Tensor, k: Tensor, v: Tensor
    ) -> list[Float[Tensor, "queries heads head_dim"]]:
        outputs: list[Tensor] = []
        attend = self.prefill_kernel or varlen_attention
        for pack in self._packs:
            rows = slice(pack.spans[0].start, pack.spans[-1].stop)
            seen_keys, seen_values = k[rows], v[rows]
            if pack.key_slots is not None:
                seen_keys, seen_values = (
                    rearrange(x, "n b h d -> (n b) h d").index_select(0, pack.key_slots)
                    for x in (keys, values)
                )
            q_bounds, k_bounds = pack.bounds
            longest = pack.longest, pack.most_keys
            outputs.append(attend(q[rows], seen_keys, seen_values, q_bounds, k_bounds, *longest))
        return outputs

    def _decodes(
        self, span: DecodeSpan, keys: Tensor, values: Tensor, q: Tensor
    ) -> Float[Tensor, "sequences heads head_dim"]:
        if self.decode_kernel is not None:
            return self.decode_kernel(q, keys, values, span.block_tables, span.context_lens)
        if span.lengths is None:
            return decode_attention(q, keys, values, span)
        if ascend.has_paged_kernel(q, keys):
            return ascend.paged_attention(q, keys, values, span.short_tables, span.lengths)
        if ascend.has_packed_kernel(q.device):
            keys, values = (
                rearrange(x, "n b h d -> (n b) h d").index_select(0, self._decode_slots)
                for x in (keys, values)
            )
            single = [1] * len(span.lengths)
            return ascend.packed_attention(q, keys, values, single, span.lengths, None)
        return decode_attention(q, keys, values, span)

    @cached_property
    def _mask(self) -> Bool[Tensor, "2048 2048"]:
        return ascend.causal_mask(self.keys.device)

    @cached_property
    def _packs(self) -> list[PackedSpans]:
        return PackedSpans.of(self.prefills, self.keys.shape[2], self.keys.device)

    @cached_property
    def _decode_slots(self) -> Int[Tensor, " tokens"]:
        assert self.decodes is not None
        return self.decodes.slots(self.keys.shape[2])


def takes_varlen(capability: tuple[int, int], dtype: torch.dtype, head_dim: int) -> bool:
    """Whether PyTorch's variable-length flash attention runs on a GPU of this generation."""
    is_half = dtype in (torch.bfloat16, torch.float16)
    return is_half and capability >= (8, 0) and head_dim <= 256


def full_attention(
    q: Float[Tensor, "tiles patches dim"],
    k: Float[Tensor, "tiles patches dim"],
    v: Float[Tensor, "tiles patches dim"],
    num_heads: int,
) -> Float[Tensor, "tiles patches dim"]:
    """Attention of every patch of a tile over all of them, each head with its share of `dim`."""
    if ascend.has_packed_kernel(q.device):
        return ascend.full_attention(q, k, v, num_heads)
    if has_products_of_heads(q):
        return _attention_by_heads(q, k, v, num_heads)
    q, k, v = (rearrange(x, "t p (h d) -> t h p d", h=num_heads) for x in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "t h p d -> t p (h d)")


def has_products_of_heads(q: Float[Tensor, "tiles patches dim"]) -> bool:
    """Whether plain products in bf16, head by head, are the fastest attention over whole tiles.

    They are on a CPU with instructions for them: PyTorch's kernel multiplies in fp32 there.
    """
    is_large = q.shape[1] >= BY_HEADS
    is_bf16 = q.device.type == "cpu" and q.dtype is torch.bfloat16
    return is_large and is_bf16 and not torch.is_grad_enabled() and devices.cpu_multiplies_bf16()


def _attention_by_heads(
    q: Float[Tensor, "tiles patches dim"],
    k: Float[Tensor, "tiles patches dim"],
    v: Float[Tensor, "tiles patches dim"],
    num_heads: int,
) -> Float[Tensor, "tiles patches dim"]:
    """One head at a time, so that its scores, in one buffer for all, stay in the cache.

    Scores are rounded to bf16 before the softmax, as in the official code without flash attention.
    """
    tiles, patches, dim = q.shape
    size = dim // num_heads
    out = q.new_empty(tiles, patches, dim)
    scores = q.new_empty(patches, patches)
    q = q * size**-0.5
    for tile, head in product(range(tiles), range(num_heads)):
        of_head = slice(head * size, (head + 1) * size)
        torch.mm(q[tile, :, of_head], k[tile, :, of_head].T, out=scores)
        torch.softmax(scores, dim=-1, out=scores)
        torch.mm(scores, v[tile, :, of_head], out=out[tile, :, of_head])
    return out


def _seen(
    span: PrefillSpan,
    cached: Float[Tensor, "blocks block_size kv_heads head_dim"],
    new: Float[Tensor, "tokens kv_heads head_dim"],
) -> Float[Tensor, "total kv_heads head_dim"]:
    """Keys or values of a sequence up to the end of a span."""
    if span.context == 0:
        return new[span.start : span.stop]
    return rearrange(cached[span.blocks], "n b h d -> (n b) h d")[: span.total]


def _causal_attention(
    q: Float[Tensor, "queries heads head_dim"],
    k: Float[Tensor, "keys kv_heads head_dim"],
    v: Float[Tensor, "keys kv_heads head_dim"],
) -> Float[Tensor, "queries heads head_dim"]:
    """One sequence, whose last query is also its last key."""
    queries, keys = q.shape[0], k.shape[0]
    if has_varlen_kernel(q):
        # Made on the device: a copy of the numbers would wait for it, once a layer.
        q_bounds = torch.arange(0, queries + 1, queries, dtype=torch.int32, device=q.device)
        k_bounds = torch.arange(0, keys + 1, keys, dtype=torch.int32, device=q.device)
        return varlen_attention(q, k, v, q_bounds, k_bounds, queries, keys)
    mask = None
    if queries not in (1, keys):
        mask = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    q, k, v = (rearrange(x, "t h d -> 1 h t d") for x in (q, k, v))
    is_causal = mask is None and queries > 1
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=is_causal, enable_gqa=True
    )
    return rearrange(out, "1 h t d -> t h d")


def decode_attention(
    q: Float[Tensor, "sequences heads head_dim"],
    keys: Float[Tensor, "blocks block_size kv_heads head_dim"],
    values: Float[Tensor, "blocks block_size kv_heads head_dim"],
    span: DecodeSpan,
) -> Float[Tensor, "sequences heads head_dim"]:
    """Attention of single new tokens over a paged cache in plain PyTorch."""
    if q.device.type == "cpu" and span.lengths is not None:
        rows = zip(q, span.block_tables, span.lengths, strict=True)
        return torch.stack([_attend_one(x, keys, values, table, n) for x, table, n in rows])
    k = rearrange(keys[span.block_tables], "s n b h d -> s h (n b) d")
    v = rearrange(values[span.block_tables], "s n b h d -> s h (n b) d")
    visible = torch.arange(k.shape[2], device=q.device) < span.context_lens[:, None]
    out = F.scaled_dot_product_attention(
        rearrange(q, "s h d -> s h 1 d"),
        k,
        v,
        attn_mask=rearrange(visible, "s t -> s 1 1 t"),
        enable_gqa=True,
    )
    return rearrange(out, "s h 1 d -> s h d")


def _attend_one(
    q: Float[Tensor, "heads head_dim"],
    keys: Float[Tensor, "blocks block_size kv_heads head_dim"],
    values: Float[Tensor, "blocks block_size kv_heads head_dim"],
    table: Int[Tensor, " entries"],
    length: int,
) -> Float[Tensor, "heads head_dim"]:
    """One new token of a sequence of this length, on a CPU, where padding would cost time.

    Heads that share keys are queries of one product: PyTorch's kernel for grouped queries reads the
    keys once a head, which takes 2 to 6 times as long in bf16.
    """
    size, kv_heads = keys.shape[1:3]
    used = table[: -(-length // size)]
    k, v = (
        rearrange(x.index_select(0, used), "n b h d -> 1 h (n b) d")[:, :, :length]
        for x in (keys, values)
    )
    out = F.scaled_dot_product_attention(rearrange(q, "(h g) d -> 1 h g d", h=kv_heads), k, v)
    return rearrange(out, "1 h g d -> (h g) d")


def has_varlen_kernel(q: Tensor) -> bool:
    """Whether PyTorch's variable-length flash attention takes these tensors."""
    if q.device.type != "cuda":
        return False
    return takes_varlen(torch.cuda.get_device_capability(q.device), q.dtype, q.shape[-1])


def varlen_attention(
    q: Float[Tensor, "queries heads head_dim"],
    k: Float[Tensor, "keys kv_heads head_dim"],
    v: Float[Tensor, "keys kv_heads head_dim"],
    q_bounds: Int[Tensor, " bounds"],
    k_bounds: Int[Tensor, " bounds"],
    max_q: int,
    max_k: int,
) -> Float[Tensor, "queries heads head_dim"]:
    """PyTorch's flash attention over a packed stream of runs.

    Bounds, in int32, say where the runs' queries and keys begin, and then how many there are; the
    last query of a run sees all its keys.
    """
    out = torch.ops.aten._flash_attention_forward(
        q, k, v, q_bounds, k_bounds, max_q, max_k, 0.0, True, False
    )
    return out[0]
