"""The fused kernels compute what plain PyTorch does, within the bounds of their documentation."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
import torch_npu
from torch import Tensor

TRIANGLE = torch.ones(2048, 2048, dtype=torch.bool).triu(1)
SCALE = 0.3


def tensors(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    draw = torch.Generator().manual_seed(len(shapes))
    return [torch.randn(shape, generator=draw).to(dtype) for shape in shapes]


def compare(
    plain: Callable[..., Tensor], fused: Callable[..., Tensor], inputs: list[Tensor]
) -> None:
    """Outputs and gradients of both, in fp32."""
    ours = [x.clone().requires_grad_() for x in inputs]
    theirs = [x.to("npu").requires_grad_() for x in inputs]
    expected, found = plain(*ours), fused(*theirs)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9))
    expected.backward(grad)
    found.backward(grad.to("npu"))
    torch.testing.assert_close(found.detach().cpu(), expected.detach(), atol=1e-5, rtol=1e-5)
    for x, y in zip(theirs, ours, strict=True):
        torch.testing.assert_close(x.grad.cpu(), y.grad, atol=1e-5, rtol=1e-5)


def plain_packed(
    q: Tensor, k: Tensor, v: Tensor, q_ends: list[int], kv_ends: list[int], causal: bool
) -> Tensor:
    outputs = []
    for (a, b), (c, d) in zip(pairwise([0, *q_ends]), pairwise([0, *kv_ends]), strict=True):
        mask = torch.ones(b - a, d - c, dtype=torch.bool)
        mask = mask.tril((d - c) - (b - a)) if causal else mask
        parts = (x.transpose(0, 1)[None] for x in (q[a:b], k[c:d], v[c:d]))
        out = F.scaled_dot_product_attention(*parts, attn_mask=mask, enable_gqa=True, scale=SCALE)
        outputs.append(out[0].transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("q_ends", "kv_ends"), [([4, 10], [4, 10]), ([1, 3, 10], [5, 9, 30])])
def test_packed_attention_keeps_sequences_apart(
    q_ends: list[int], kv_ends: list[int], causal: bool
) -> None:
    def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch_npu.npu_fusion_attention(
            *(q, k, v, 4, "TND"),
            atten_mask=TRIANGLE.to("npu") if causal else None,
            scale=SCALE,
            actual_seq_qlen=q_ends,
            actual_seq_kvlen=kv_ends,
            sparse_mode=3 if causal else 0,
        )[0]

    shapes = ((q_ends[-1], 4, 16), (kv_ends[-1], 2, 16), (kv_ends[-1], 2, 16))
    compare(lambda *x: plain_packed(*x, q_ends, kv_ends, causal), fused, tensors(*shapes))


@pytest.mark.parametrize("layout", ["BNSD", "BSND"])
@pytest.mark.parametrize("masked", [True, False])
def test_padded_attention_is_sdpa_with_its_mask(layout: str, masked: bool) -> None:
    hidden = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(1)) > 0.6
    hidden[..., 0] = False

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = [x if layout == "BNSD" else x.transpose(1, 2) for x in (q, k, v)]
        mask = ~hidden if masked else None
        out = F.scaled_dot_product_attention(*parts, attn_mask=mask, scale=SCALE)
        return out if layout == "BNSD" else out.transpose(1, 2)

    def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = hidden.to("npu") if masked else None
        return torch_npu.npu_fusion_attention(q, k, v, 3, layout, atten_mask=mask, scale=SCALE)[0]

    shape = (2, 3, 6, 16) if layout == "BNSD" else (2, 6, 3, 16)
    compare(plain, fused, tensors(shape, shape, shape))


def test_the_softmax_of_packed_attention_comes_with_it() -> None:
    q, k, v = (x.to("npu") for x in tensors((3, 2, 16), (3, 2, 16), (3, 2, 16)))
    found = torch_npu.npu_fusion_attention(
        q, k, v, 2, "TND", actual_seq_qlen=[3], actual_seq_kvlen=[3]
    )
    scores = torch.einsum("qhd,khd->qhk", q.cpu(), k.cpu())
    maximum = scores.amax(-1)
    assert found[1].shape == found[2].shape == (3, 2, 8)
    torch.testing.assert_close(found[1][..., 0].cpu(), maximum)
    total = (scores - maximum[..., None]).exp().sum(-1)
    torch.testing.assert_close(found[2][..., 7].cpu(), total)
    assert found[4:] == (0, 0, 0)


CACHE = {"block_size": 16, "num_heads": 4, "num_key_value_heads": 2, "scale": SCALE}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["BSH", "BSND", "BNSD"])
def test_paged_attention_reads_each_sequence_through_its_blocks(
    layout: str, dtype: torch.dtype
) -> None:
    q, keys, values = tensors((3, 64), (9, 16, 32), (9, 16, 32), dtype=dtype)
    tables = torch.tensor([[1, 2], [3, 99], [5, 6]], dtype=torch.int32)
    lengths = [20, 3, 32]
    shapes = {"BSH": (3, 1, 64), "BSND": (3, 1, 4, 16), "BNSD": (3, 4, 1, 16)}
    found, _ = torch_npu.npu_fused_infer_attention_score(
        *(q.view(shapes[layout]).to("npu"), keys.to("npu"), values.to("npu")),
        block_table=tables.to("npu"),
        actual_seq_lengths_kv=lengths,
        input_layout=layout,
        **CACHE,
    )
    for i, length in enumerate(lengths):
        blocks = tables[i, : -(-length // 16)].long()
        k, v = (x[blocks].flatten(0, 1)[:length].view(-1, 2, 16).float() for x in (keys, values))
        out = plain_packed(q[i].view(1, 4, 16).float(), k, v, [1], [length], False)
        torch.testing.assert_close(
            found[i].cpu().float().flatten(), out.flatten(), atol=1e-2, rtol=1e-2
        )


def test_prompts_are_attended_to_causally_in_their_cache() -> None:
    q, keys, values = tensors((1, 6, 64), (3, 128, 32), (3, 128, 32), dtype=torch.float16)
    found, sums = torch_npu.npu_fused_infer_attention_score(
        *(q.to("npu"), keys.to("npu"), values.to("npu")),
        atten_mask=TRIANGLE.to("npu"),
        block_table=torch.tensor([[2]], dtype=torch.int32, device="npu"),
        actual_seq_lengths_kv=[10],
        sparse_mode=3,
        softmax_lse_flag=True,
        **CACHE | {"block_size": 128},
    )
    k, v = (x[2, :10].view(10, 2, 16).float() for x in (keys, values))
    out = plain_packed(q[0].view(6, 4, 16).float(), k, v, [6], [10], True)
    torch.testing.assert_close(found[0].cpu().float(), out.flatten(1), atol=1e-2, rtol=1e-2)
    assert sums.shape == (1, 4, 6, 1)


def test_norms_rotations_and_gates_are_the_plain_ones() -> None:
    compare(
        lambda x, w: F.rms_norm(x, (8,), w, 1e-6),
        lambda x, w: torch_npu.npu_rms_norm(x, w, epsilon=1e-6)[0],
        tensors((5, 8), (8,)),
    )
    compare(
        lambda x, c, s: x * c + torch.cat([-x[..., 4:], x[..., :4]], -1) * s,
        torch_npu.npu_rotary_mul,
        tensors((1, 5, 3, 8), (1, 5, 1, 8), (1, 5, 1, 8)),
    )
    compare(lambda x: F.silu(x[..., :4]) * x[..., 4:], torch_npu.npu_swiglu, tensors((5, 8)))


def test_no_fused_kernel_makes_the_host_wait() -> None:
    x, w = (x.to("npu") for x in tensors((5, 8), (8,)))
    q = torch.ones(3, 2, 16, device="npu")
    mask = TRIANGLE.to("npu")
    torch_npu.testing.forget_synchronizations()
    torch_npu.npu_swiglu(torch_npu.npu_rms_norm(x, w)[0])
    torch_npu.npu_fusion_attention(
        *(q, q, q, 2, "TND"),
        atten_mask=mask,
        actual_seq_qlen=[3],
        actual_seq_kvlen=[3],
        sparse_mode=3,
    )
    assert torch_npu.testing.synchronizations() == 0


PACKED = {"actual_seq_qlen": [4, 6], "actual_seq_kvlen": [4, 6]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actual_seq_qlen": None}, "must be a list of ints on the host"),
        ({"actual_seq_qlen": [0, 4, 6]}, "does not begin with 0"),
        ({"actual_seq_qlen": [4, 7]}, "ends with 7 but there are 6 tokens"),
        ({"actual_seq_qlen": [6, 4]}, "must be cumulative"),
        ({"actual_seq_qlen": [6]}, "the lists of ends differ"),
        ({"sparse_mode": 3}, "needs atten_mask"),
        ({"sparse_mode": 3, "atten_mask": TRIANGLE[:6, :6]}, "compressed mask of 2048 x 2048"),
        ({"sparse_mode": 3, "atten_mask": ~TRIANGLE}, "True above its diagonal"),
        ({"sparse_mode": 3, "atten_mask": TRIANGLE.float()}, "atten_mask must be of"),
        ({"atten_mask": torch.ones(4, 4, dtype=torch.bool)}, "a row of the mask hides every key"),
        ({"keep_prob": 0.9}, "no dropout"),
        ({"head_num": 2}, "head_num is 2 but query has 4 heads"),
        ({"input_layout": "NTD"}, "not 'NTD'"),
        ({"value": torch.zeros(6, 2, 16, dtype=torch.float16)}, "dtypes must be the same"),
        ({"key": torch.zeros(6, 3, 16), "value": torch.zeros(6, 3, 16)}, "no multiple of 3"),
    ],
)
def test_packed_attention_refuses(change: dict[str, object], message: str) -> None:
    given = {"query": (6, 4, 16), "key": (6, 2, 16), "value": (6, 2, 16)}
    arguments = {name: torch.zeros(shape) for name, shape in given.items()} | PACKED | change
    moved = {k: v.to("npu") if isinstance(v, Tensor) else v for k, v in arguments.items()}
    call = {"head_num": 4, "input_layout": "TND"} | moved
    with pytest.raises(RuntimeError, match=message):
        torch_npu.npu_fusion_attention(**call)


def test_lengths_of_packed_attention_are_no_tensors() -> None:
    q = torch.zeros(6, 2, 16, device="npu")
    ends = torch.tensor([4, 6], device="npu")
    with pytest.raises((RuntimeError, TypeError)):
        torch_npu.npu_fusion_attention(
            q, q, q, 2, "TND", actual_seq_qlen=ends, actual_seq_kvlen=ends
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_table": torch.zeros(3, 2, dtype=torch.int64)}, "block_table must be int32"),
        ({"block_table": torch.zeros(2, 2, dtype=torch.int32)}, r"block_table must be \[3, blocks"),
        ({"block_table": torch.full((3, 2), 9, dtype=torch.int32)}, "a block outside of the 9"),
        ({"block_size": 8}, "block_size 8; multiples of 16"),
        ({"block_size": 1024}, "block_size 1024; multiples of 16 up to 512"),
        ({"block_size": 32}, "the cache is"),
        ({"actual_seq_lengths_kv": None}, "needs actual_seq_lengths_kv"),
        ({"actual_seq_lengths_kv": [1, 2]}, "has 2 entries; 1 or at least 3"),
        ({"actual_seq_lengths_kv": [33]}, "3 blocks, 2 in the table"),
        ({"num_heads": 3}, "3 heads over 2"),
        ({"num_heads": 8}, "heads of 8"),
        ({"sparse_mode": 7, "query": torch.zeros(3, 2, 64)}, "multiples of 128"),
        ({"pse_shift": torch.zeros(1)}, "does not implement pse_shift"),
        ({"inner_precise": 2}, "inner_precise must be of"),
        ({"query": torch.zeros(64, 1, 3).permute(2, 1, 0)}, "query must be contiguous"),
    ],
)
def test_paged_attention_refuses(change: dict[str, object], message: str) -> None:
    given = {"query": (3, 1, 64), "key": (9, 16, 32), "value": (9, 16, 32)}
    arguments = {name: torch.zeros(shape) for name, shape in given.items()} | CACHE
    arguments |= {"block_table": torch.zeros(3, 2, dtype=torch.int32), "actual_seq_lengths_kv": [5]}
    halves = {
        k: v.half() if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in (arguments | change).items()
    }
    call = {k: v.to("npu") if isinstance(v, Tensor) else v for k, v in halves.items()}
    with pytest.raises(RuntimeError, match=message):
        torch_npu.npu_fused_infer_attention_score(**call)


def test_paged_attention_has_neither_fp32_nor_gradients() -> None:
    q = torch.zeros(1, 1, 64, device="npu")
    with pytest.raises(RuntimeError, match="dtype must be of"):
        torch_npu.npu_fused_infer_attention_score(q, q, q, num_heads=4)
    half = q.half().requires_grad_()
    with pytest.raises(RuntimeError, match="no gradients"):
        torch_npu.npu_fused_infer_attention_score(half, half, half, num_heads=4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: torch_npu.npu_rms_norm(x, x[0, 0, 0].half()), "dtypes must be the same"),
        (lambda x: torch_npu.npu_rms_norm(x, x[0, 0, 0, :4]), "is not the end of"),
        (lambda x: torch_npu.npu_rotary_mul(x[0], x[0], x[0]), "4 dims"),
        (lambda x: torch_npu.npu_rotary_mul(x, x[:, :, :, :4], x[:, :, :, :4]), "r1 ends with 4"),
        (lambda x: torch_npu.npu_rotary_mul(x, x[:1], x[:1]), "does not fit"),
        (lambda x: torch_npu.npu_rotary_mul(x, x, x, "whole"), "rotary_mode 'whole'"),
        (lambda x: torch_npu.npu_swiglu(x[..., :3]), "no two halves"),
        (lambda x: torch_npu.npu_swiglu(x.int()), "dtype must be of"),
    ],
)
def test_norms_rotations_and_gates_refuse(call: Callable[[Tensor], object], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        call(torch.zeros(2, 5, 3, 8, device="npu"))


def test_kernels_take_tensors_on_the_device_alone() -> None:
    x = torch.zeros(2, 8)
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch_npu.npu_swiglu(x)
    with pytest.raises(RuntimeError, match="gamma must be on an npu"):
        torch_npu.npu_rms_norm(x.to("npu"), x[0])
