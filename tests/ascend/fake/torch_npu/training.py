"""`npu_fusion_attention`: attention with gradients, over packed or padded sequences."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import attention
from .kernel import FLOATS, Contract, define, device, device_fp32, host

_CONTRACT = Contract("npu_fusion_attention")
_SCHEMA = """npu_fusion_attention(Tensor query, Tensor key, Tensor value, int head_num,
 str input_layout, Tensor? pse=None, Tensor? padding_mask=None, Tensor? atten_mask=None,
 float scale=1., float keep_prob=1., int pre_tockens=2147483647, int next_tockens=2147483647,
 int inner_precise=0, int[]? prefix=None, int[]? actual_seq_qlen=None, int[]? actual_seq_kvlen=None,
 int sparse_mode=0, bool gen_mask_parallel=True, bool sync=False, str softmax_layout="")
 -> (Tensor, Tensor, Tensor, Tensor, int, int, int)"""
_LAYOUTS = ("BSND", "BNSD", "TND")
"""A card knows BSH and SBH as well."""
_LONGEST_LIST = 1024
_MOST_TOKENS = 1 << 20


class _Call(NamedTuple):
    """What decides how one call computes, apart from its tensors."""

    heads: int
    layout: str
    scale: float
    mode: int
    before: int
    after: int
    q_ends: list[int] | None
    kv_ends: list[int] | None


class _Piece(NamedTuple):
    """One sequence: [tokens, heads, dim], and what its queries do not see."""

    q: Tensor
    k: Tensor
    v: Tensor
    hidden: Tensor | None


def _compute(  # noqa: PLR0913, PLR0917 - the real kernel's arguments
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_num: int,
    input_layout: str,
    pse: Tensor | None = None,
    padding_mask: Tensor | None = None,
    atten_mask: Tensor | None = None,
    scale: float = 1.0,
    keep_prob: float = 1.0,
    pre_tockens: int = 2147483647,
    next_tockens: int = 2147483647,
    inner_precise: int = 0,
    prefix: list[int] | None = None,
    actual_seq_qlen: list[int] | None = None,
    actual_seq_kvlen: list[int] | None = None,
    sparse_mode: int = 0,
    gen_mask_parallel: bool = True,
    sync: bool = False,
    softmax_layout: str = "",
) -> tuple[Tensor, Tensor, Tensor, Tensor, int, int, int]:
    _CONTRACT.absent(pse=pse, padding_mask=padding_mask, prefix=prefix)
    _CONTRACT.require(keep_prob == 1.0, "this fake draws no dropout; keep_prob must be 1")
    _CONTRACT.require(inner_precise in (0, 1, 2), f"inner_precise is 0 to 2, not {inner_precise}")
    band = (pre_tockens, next_tockens)
    ends = (actual_seq_qlen, actual_seq_kvlen)
    call = _Call(head_num, input_layout, scale, sparse_mode, *band, *ends)
    _check(call, query, key, value, atten_mask)
    done = [
        attention.attend(piece.q, piece.k, piece.v, scale, piece.hidden)
        for piece in _pieces(call, query, key, value, atten_mask)
    ]
    output = _joined(call, [one.output for one in done], query)
    softmax = [
        _softmax_layout(call, [getattr(one, name) for one in done], query)
        for name in ("maximum", "total")
    ]
    rest = query.new_empty(0)
    return device(output, query), *(device_fp32(x, query) for x in softmax), rest, 0, 0, 0


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    query, key, value, heads, layout, _, _, mask, scale, _, before, after, *rest = inputs
    ctx.save_for_backward(query, key, value, mask)
    ctx.call = _Call(heads, layout, scale, rest[4], before, after, rest[2], rest[3])
    ctx.inputs = len(inputs)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor, *_: object) -> tuple[Tensor | None, ...]:
    query, key, value, mask = ctx.saved_tensors
    pieces = list(_pieces(ctx.call, query, key, value, mask))
    grads = [
        attention.gradients(piece.q, piece.k, piece.v, ctx.call.scale, piece.hidden, own)
        for piece, own in zip(pieces, _split(ctx.call, grad, ctx.call.q_ends), strict=True)
    ]
    dq, dk, dv = (
        device(_joined(ctx.call, [getattr(one, name) for one in grads], like), like)
        for name, like in (("q", query), ("k", key), ("v", value))
    )
    return dq, dk, dv, *(None,) * (ctx.inputs - 3)


def _check(call: _Call, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
    require = _CONTRACT.require
    _CONTRACT.on_npu(query=query, key=key, value=value)
    _CONTRACT.one_dtype(FLOATS, query=query, key=key, value=value)
    require(call.layout in _LAYOUTS, f"this fake implements {_LAYOUTS}, not {call.layout!r}")
    dims = {query.dim(), key.dim(), value.dim()}
    require(dims == {len(call.layout)}, f"{call.layout} has {len(call.layout)} dims, not {dims}")
    require(key.shape == value.shape, f"key {key.shape} and value {value.shape} must be alike")
    require(0 < call.heads <= 256, f"head_num must be 1 to 256, not {call.heads}")
    _check_sizes(call, query, key)
    attention.check_mask(_CONTRACT, mask, call.mode, (torch.bool, torch.uint8))
    _check_mask_shape(call, query, key, mask)


def _check_sizes(call: _Call, query: Tensor, key: Tensor) -> None:
    require = _CONTRACT.require
    axis = call.layout.index("N")
    dim, heads, kv_heads = query.shape[-1], query.shape[axis], key.shape[axis]
    require(key.shape[-1] == dim, f"heads of query {dim} and key {key.shape[-1]} differ")
    require(heads == call.heads, f"head_num is {call.heads} but query has {heads} heads")
    require(heads % kv_heads == 0, f"{heads} heads are no multiple of {kv_heads}")
    require(1 <= dim <= 768, f"heads must be of 1 to 768, not {dim}")
    if call.layout == "TND":
        _check_ends("actual_seq_qlen", call.q_ends, query.shape[0])
        _check_ends("actual_seq_kvlen", call.kv_ends, key.shape[0])
        require(len(call.q_ends or ()) == len(call.kv_ends or ()), "the lists of ends differ")
    else:
        require(call.q_ends is None and call.kv_ends is None, "ends are for TND only")
        batch = call.layout.index("B")
        require(query.shape[batch] == key.shape[batch], "query and key have other batch sizes")


def _check_ends(name: str, values: object, tokens: int) -> None:
    ends = _CONTRACT.host_ints(name, values)
    _CONTRACT.require(tokens <= _MOST_TOKENS, f"{tokens} tokens; {_MOST_TOKENS} at most")
    _CONTRACT.require(
        0 < len(ends) <= _LONGEST_LIST, f"{name} has {len(ends)} entries; 1 to {_LONGEST_LIST}"
    )
    _CONTRACT.require(ends[0] > 0, f"{name} is cumulative and does not begin with 0: {ends[:4]}")
    used = [end for end in ends if end] if ends[-1] == 0 else ends
    grows = all(a <= b for a, b in pairwise(used)) and ends[: len(used)] == used
    _CONTRACT.require(grows, f"{name} must be cumulative: {ends}")
    ends_well = used[-1] == tokens if ends[-1] else used[-1] <= tokens
    _CONTRACT.require(ends_well, f"{name} ends with {used[-1]} but there are {tokens} tokens")


def _check_mask_shape(call: _Call, query: Tensor, key: Tensor, mask: Tensor | None) -> None:
    if mask is None:
        return
    if call.mode >= 2:
        _CONTRACT.require(mask.dim() == 2, f"the compressed mask has 2 dims, not {mask.dim()}")
        attention.check_triangle(_CONTRACT, mask, host(mask))
        return
    if call.layout == "TND":
        ends = [[0, *(x or [])] for x in (call.q_ends, call.kv_ends)]
        longest = [max(b - a for a, b in pairwise(x)) for x in ends]
        allowed = {tuple(longest)}
    else:
        batch, q_axis = call.layout.index("B"), call.layout.index("S")
        size = (query.shape[q_axis], key.shape[q_axis])
        leads = [(), (1, 1), (query.shape[batch], 1), (query.shape[batch], call.heads)]
        allowed = {(*lead, *size) for lead in leads}
    _CONTRACT.require(
        tuple(mask.shape) in allowed, f"atten_mask is {tuple(mask.shape)}; possible: {allowed}"
    )


def _pieces(
    call: _Call, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> Iterator[_Piece]:
    parts = zip(
        _split(call, query, call.q_ends),
        _split(call, key, call.kv_ends),
        _split(call, value, call.kv_ends),
        strict=True,
    )
    whole = None if mask is None or call.mode >= 2 else host(mask).bool()
    for index, (q, k, v) in enumerate(parts):
        hidden = None
        if call.mode >= 2:
            size = (q.shape[0], k.shape[0])
            hidden = attention.hidden_by_mode(call.mode, *size, call.before, call.after)
        elif whole is not None:
            own = whole[index if whole.shape[0] > 1 else 0] if whole.dim() == 4 else whole
            hidden = own[..., : q.shape[0], : k.shape[0]]
            blind = call.layout == "TND" and bool(hidden.all(-1).any())
            _CONTRACT.require(not blind, "a row of the mask hides every key")
        yield _Piece(q, k, v, hidden)


def _split(call: _Call, tensor: Tensor, ends: list[int] | None) -> list[Tensor]:
    """Each sequence as [tokens, heads, dim] on the host."""
    seen = host(tensor)
    if ends is not None:
        return [seen[a : max(a, b)] for a, b in pairwise([0, *ends])]
    return list(seen.transpose(1, 2) if call.layout == "BNSD" else seen)


def _joined(call: _Call, parts: list[Tensor], like: Tensor) -> Tensor:
    """Sequences of [tokens, heads, dim] in the layout of the call."""
    if call.layout == "TND":
        joined = torch.cat(parts)
        return torch.cat([joined, joined.new_zeros(like.shape[0] - len(joined), *joined.shape[1:])])
    stacked = torch.stack(parts)
    return stacked.transpose(1, 2) if call.layout == "BNSD" else stacked


def _softmax_layout(call: _Call, parts: list[Tensor], query: Tensor) -> Tensor:
    """[tokens, heads] of each sequence as the kernel gives them: eight times side by side."""
    if call.layout == "TND":
        joined = torch.cat(parts)
        missing = joined.new_zeros(query.shape[0] - len(joined), joined.shape[1])
        return torch.cat([joined, missing])[..., None].expand(-1, -1, 8)
    return torch.stack(parts).transpose(1, 2)[..., None].expand(-1, -1, -1, 8)


npu_fusion_attention = define(_SCHEMA.replace("\n", ""), _compute, _save, _backward)
