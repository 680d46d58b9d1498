"""`npu_fused_infer_attention_score`: attention without gradients, over a paged cache or not."""

from typing import NamedTuple

import torch
from torch import Tensor

from . import attention
from .kernel import Contract, define, device, device_fp32, host

_CONTRACT = Contract("npu_fused_infer_attention_score")
_TENSORS = """dequant_scale1 quant_scale1 dequant_scale2 quant_scale2 quant_offset2 antiquant_scale
 antiquant_offset key_antiquant_scale key_antiquant_offset value_antiquant_scale
 value_antiquant_offset block_table query_padding_size kv_padding_size key_shared_prefix
 value_shared_prefix"""
_SCHEMA = (
    "npu_fused_infer_attention_score(Tensor query, Tensor key, Tensor value, *, "
    "Tensor? pse_shift=None, Tensor? atten_mask=None, SymInt[]? actual_seq_lengths=None, "
    "SymInt[]? actual_seq_lengths_kv=None, "
    + ", ".join(f"Tensor? {name}=None" for name in _TENSORS.split())
    + ", SymInt[]? actual_shared_prefix_len=None, Tensor? query_rope=None, Tensor? key_rope=None, "
    "Tensor? key_rope_antiquant_scale=None, int num_heads=1, float scale=1.0, "
    "int pre_tokens=2147483647, int next_tokens=2147483647, str input_layout='BSH', "
    "int num_key_value_heads=0, int sparse_mode=0, int inner_precise=0, int block_size=0, "
    "int antiquant_mode=0, bool softmax_lse_flag=False, int key_antiquant_mode=0, "
    "int value_antiquant_mode=0) -> (Tensor, Tensor)"
)
_LAYOUTS = ("BSH", "BSND", "BNSD")
"""A card has TND too, for heads of a few sizes that no InternVL2 has."""
_WIDEST_ROW = 65535


class _Call(NamedTuple):
    """What decides how one call computes, apart from queries, keys and values."""

    layout: str
    heads: int
    kv_heads: int
    scale: float
    mode: int
    before: int
    after: int
    block_size: int
    q_lengths: list[int] | None
    kv_lengths: list[int] | None
    mask: Tensor | None
    table: Tensor | None


def _compute(  # noqa: PLR0913 - the real kernel's arguments
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    atten_mask: Tensor | None = None,
    actual_seq_lengths: list[int] | None = None,
    actual_seq_lengths_kv: list[int] | None = None,
    block_table: Tensor | None = None,
    num_heads: int = 1,
    scale: float = 1.0,
    pre_tokens: int = 2147483647,
    next_tokens: int = 2147483647,
    input_layout: str = "BSH",
    num_key_value_heads: int = 0,
    sparse_mode: int = 0,
    inner_precise: int = 0,
    block_size: int = 0,
    softmax_lse_flag: bool = False,
    **other: object,
) -> tuple[Tensor, Tensor]:
    given = {name: value for name, value in other.items() if type(value) is not int or value}
    _CONTRACT.absent(**given)
    needs_grad = query.requires_grad or key.requires_grad or value.requires_grad
    _CONTRACT.require(not needs_grad, "there are no gradients; use npu_fusion_attention")
    call = _Call(
        *(input_layout, num_heads, num_key_value_heads or num_heads, scale, sparse_mode),
        *(pre_tokens, next_tokens, block_size, actual_seq_lengths, actual_seq_lengths_kv),
        *(atten_mask, block_table),
    )
    _check(call, query, key, value)
    one_query = _by_token(call, query, call.heads).shape[1] == 1
    allowed = (0, 1) if one_query else (0, 1, 2, 3)
    _CONTRACT.require(inner_precise in allowed, f"inner_precise must be of {allowed}")
    output, log_sum = _attend(call, query, key, value)
    sums = log_sum if softmax_lse_flag else torch.zeros(1)
    return device(_in_layout(call, output), query), device_fp32(sums, query)


def _check(call: _Call, query: Tensor, key: Tensor, value: Tensor) -> None:
    require = _CONTRACT.require
    _CONTRACT.on_npu(query=query, key=key, value=value)
    _CONTRACT.one_dtype((torch.float16, torch.bfloat16), query=query, key=key, value=value)
    tensors = {"query": query, "key": key, "value": value}
    others = {"atten_mask": call.mask, "block_table": call.table}
    for name, tensor in (tensors | others).items():
        is_whole = tensor is None or tensor.is_contiguous()
        require(is_whole, f"{name} must be contiguous")
    require(call.layout in _LAYOUTS, f"this fake implements {_LAYOUTS}, not {call.layout!r}")
    require(query.dim() == len(call.layout), f"{call.layout} has {len(call.layout)} dims")
    require(key.shape == value.shape, f"key {key.shape} and value {value.shape} must be alike")
    ratio = call.heads // call.kv_heads
    require(call.heads == ratio * call.kv_heads, f"{call.heads} heads over {call.kv_heads}")
    require(ratio <= 64 and call.heads <= 256, "at most 256 heads, 64 to a key's head")
    _check_heads(call, query)
    if call.table is None:
        _check_padded(call, query, key)
    else:
        _check_paged(call, call.table, query, key)
    _check_mask(call, query)


def _check_heads(call: _Call, query: Tensor) -> None:
    if call.layout == "BSH":
        _CONTRACT.require(query.shape[2] % call.heads == 0, f"{query.shape[2]} over {call.heads}")
    else:
        heads = query.shape[call.layout.index("N")]
        _CONTRACT.require(heads == call.heads, f"num_heads {call.heads}, query has {heads}")
    dim = _by_token(call, query, call.heads).shape[-1]
    _CONTRACT.require(dim % 16 == 0 and dim <= 512, f"heads of {dim}; multiples of 16 up to 512")
    is_narrow = call.layout == "BNSD" or call.heads * dim <= _WIDEST_ROW
    _CONTRACT.require(is_narrow, f"{call.layout} rows are at most {_WIDEST_ROW} wide")


def _check_padded(call: _Call, query: Tensor, key: Tensor) -> None:
    require = _CONTRACT.require
    require(call.block_size == 0, "block_size without block_table")
    require(key.dim() == query.dim() and key.shape[0] == query.shape[0], "keys of another batch")
    size = _by_token(call, key, call.kv_heads).shape
    require(size[2] == call.kv_heads, f"num_key_value_heads {call.kv_heads}, key has {size[2]}")
    if call.kv_lengths is not None:
        longest = max(_lengths(call, "actual_seq_lengths_kv", call.kv_lengths, query.shape[0]))
        require(longest <= size[1], f"actual_seq_lengths_kv {longest} above {size[1]} keys")


def _check_paged(call: _Call, table: Tensor, query: Tensor, key: Tensor) -> None:
    require = _CONTRACT.require
    _CONTRACT.on_npu(block_table=table)
    require(table.dtype == torch.int32, f"block_table must be int32, not {table.dtype}")
    batch = query.shape[0]
    fits = table.dim() == 2 and table.shape[0] == batch
    require(fits, f"block_table must be [{batch}, blocks], not {tuple(table.shape)}")
    one_query = _by_token(call, query, call.heads).shape[1] == 1
    step, most = (16 if one_query else 128), 512
    fits = 0 < call.block_size <= most and call.block_size % step == 0
    require(fits, f"block_size {call.block_size}; multiples of {step} up to {most}")
    _check_cache(call, query, key)
    require(call.kv_lengths is not None, "block_table needs actual_seq_lengths_kv")
    lengths = _lengths(call, "actual_seq_lengths_kv", call.kv_lengths, batch)
    counts = [-(-length // call.block_size) for length in lengths]
    require(max(counts) <= table.shape[1], f"{max(counts)} blocks, {table.shape[1]} in the table")
    require(sum(counts) <= key.shape[0], f"{sum(counts)} blocks of {key.shape[0]} in the cache")
    rows = host(table)
    for row, count in zip(rows, counts, strict=True):
        used = row[:count]
        inside = bool(((used >= 0) & (used < key.shape[0])).all())
        require(inside, f"a block outside of the {key.shape[0]}: {used.tolist()}")


def _check_cache(call: _Call, query: Tensor, key: Tensor) -> None:
    dim = _by_token(call, query, call.heads).shape[-1]
    row = call.kv_heads * dim
    shapes = [(key.shape[0], call.block_size, row)]
    if call.layout == "BNSD":
        shapes.append((key.shape[0], call.kv_heads, call.block_size, dim))
    fits = tuple(key.shape) in shapes
    _CONTRACT.require(fits, f"the cache is {tuple(key.shape)}; possible: {shapes}")
    _CONTRACT.require(key.dim() == 4 or row <= _WIDEST_ROW, f"rows of {row}; {_WIDEST_ROW} at most")
    _CONTRACT.require(key.numel() < 2**31, f"a cache of {key.numel()} elements; 2**31 at most")


def _check_mask(call: _Call, query: Tensor) -> None:
    dtypes = (torch.bool, torch.int8, torch.uint8)
    queries = _by_token(call, query, call.heads).shape[1]
    mode = 0 if queries == 1 else call.mode
    attention.check_mask(_CONTRACT, call.mask, mode, dtypes)
    if call.mask is None:
        return
    if mode >= 2:
        attention.check_triangle(_CONTRACT, call.mask, host(call.mask))
        return
    batch, keys = query.shape[0], call.mask.shape[-1]
    one = [(batch, keys), (batch, 1, keys), (batch, 1, 1, keys)]
    many = [(queries, keys), (1, queries, keys), (1, 1, queries, keys), (batch, 1, queries, keys)]
    allowed = one if queries == 1 else many
    shape = tuple(call.mask.shape)
    _CONTRACT.require(shape in allowed, f"atten_mask is {shape}; possible: {allowed}")
    if call.table is not None:
        most = call.table.shape[1] * call.block_size
        _CONTRACT.require(keys >= most, f"atten_mask hides {keys} keys; the table has {most}")


def _lengths(call: _Call, name: str, values: object, batch: int) -> list[int]:
    """One length for each sequence of the batch."""
    lengths = _CONTRACT.host_ints(name, values)
    fits = len(lengths) == 1 or len(lengths) >= batch
    _CONTRACT.require(fits, f"{name} has {len(lengths)} entries; 1 or at least {batch}")
    _CONTRACT.require(min(lengths) >= 0, f"{name} must not be negative: {lengths}")
    return lengths * batch if len(lengths) == 1 else lengths[:batch]


def _attend(call: _Call, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """[batch, queries, heads, dim] and the logarithms [batch, heads, queries, 1] of the sums."""
    q = host(_by_token(call, query, call.heads))
    batch, queries = q.shape[:2]
    whole = [queries] if call.q_lengths is None or queries == 1 else call.q_lengths
    q_lengths = _lengths(call, "actual_seq_lengths", whole, batch)
    output, sums = torch.zeros_like(q), torch.full((batch, q.shape[2], queries, 1), torch.inf)
    for index, length in enumerate(q_lengths):
        k, v = (_sequence(call, cache, index, batch) for cache in (key, value))
        hidden = _hidden(call, index, length, queries, k.shape[0])
        one = attention.attend(q[index, :length], k, v, call.scale, hidden)
        output[index, :length] = one.output
        sums[index, :, :length, 0] = (one.maximum + one.total.log()).T
    return output, sums


def _hidden(call: _Call, index: int, length: int, queries: int, keys: int) -> Tensor | None:
    if queries > 1 and call.mode >= 2:
        return attention.hidden_by_mode(call.mode, length, keys, call.before, call.after)
    if call.mask is None:
        return None
    mask = host(call.mask).bool()
    rows = mask if queries == 1 or mask.dim() > 2 else mask[None]
    own = rows[index if rows.shape[0] > 1 else 0].reshape(queries, -1)
    return own[:length, :keys]


def _sequence(call: _Call, cache: Tensor, index: int, batch: int) -> Tensor:
    """Keys or values [tokens, heads, dim] of one sequence."""
    if call.table is None:
        rows = host(_by_token(call, cache, call.kv_heads))[index]
        lengths = [rows.shape[0]] if call.kv_lengths is None else call.kv_lengths
        return rows[: _lengths(call, "actual_seq_lengths_kv", lengths, batch)[index]]
    length = _lengths(call, "actual_seq_lengths_kv", call.kv_lengths, batch)[index]
    used = host(call.table)[index, : -(-length // call.block_size)]
    blocks = host(cache)[used.long()]
    if cache.dim() == 3:
        blocks = blocks.unflatten(-1, (call.kv_heads, -1))
    else:
        blocks = blocks.transpose(1, 2)
    return blocks.flatten(0, 1)[:length]


def _by_token(call: _Call, tensor: Tensor, heads: int) -> Tensor:
    """Any layout as [batch, tokens, heads, dim]."""
    if call.layout == "BSH":
        return tensor.unflatten(-1, (heads, -1))
    return tensor.transpose(1, 2) if call.layout == "BNSD" else tensor


def _in_layout(call: _Call, output: Tensor) -> Tensor:
    if call.layout == "BSH":
        return output.flatten(2)
    return output.transpose(1, 2) if call.layout == "BNSD" else output


npu_fused_infer_attention_score = define(_SCHEMA, _compute)
