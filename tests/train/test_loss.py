"""Chunked cross entropy equals the plain one, in value and in gradients."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from internvl2.train.loss import chunked_cross_entropy

ROWS, DIM, VOCAB = 37, 16, 101


@dataclass(frozen=True)
class Problem:
    hidden: torch.Tensor
    head: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor

    def gradients(self, loss: torch.Tensor) -> list[torch.Tensor]:
        wanted = [t for t in (self.hidden, self.head) if t.requires_grad]
        return list(torch.autograd.grad(loss / 7, wanted))

    def plain(self) -> torch.Tensor:
        logits = (self.hidden.float() @ self.head.float().T).float()
        return self.weights @ F.cross_entropy(logits, self.labels, reduction="none")

    def chunked(self, chunk: int = 8) -> torch.Tensor:
        return chunked_cross_entropy(self.hidden, self.head, self.labels, self.weights, chunk)


def problem(dtype: torch.dtype = torch.float32, rows: int = ROWS, *, frozen: bool = False):
    torch.manual_seed(0)
    return Problem(
        torch.randn(rows, DIM, dtype=dtype, requires_grad=True),
        torch.randn(VOCAB, DIM, dtype=dtype, requires_grad=not frozen),
        torch.randint(VOCAB, (rows,)),
        torch.rand(rows),
    )


@pytest.mark.parametrize("chunk", [1, 8, 36, 37, 1000])
def test_loss_and_gradients_are_those_of_plain_cross_entropy(chunk: int):
    case = problem()
    ours, plain = case.chunked(chunk), case.plain()
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=0)
    for mine, theirs in zip(case.gradients(ours), case.gradients(plain), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_bf16_gradients_keep_their_type_and_stay_near():
    case = problem(torch.bfloat16)
    ours, plain = case.chunked(), case.plain()
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, plain, rtol=1e-2, atol=0)
    for mine, theirs in zip(case.gradients(ours), case.gradients(plain), strict=True):
        assert mine.dtype == torch.bfloat16
        torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=5e-3)


def test_the_heads_gradient_is_summed_in_fp32():
    case = problem(torch.bfloat16, rows=2000)
    exact = torch.autograd.grad(case.plain(), case.head)[0].float()
    by_row, at_once = (torch.autograd.grad(case.chunked(n), case.head)[0] for n in (1, 2000))
    error = [(g.float() - exact).norm() / exact.norm() for g in (by_row, at_once)]
    assert error[0] < 5e-3
    assert error[0] < 1.5 * error[1] + 1e-3


def test_a_frozen_head_gets_no_gradient_and_changes_no_other():
    case = problem(frozen=True)
    (mine,), (theirs,) = (case.gradients(loss) for loss in (case.chunked(), case.plain()))
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    case.chunked().backward()
    assert case.head.grad is None


def test_a_frozen_body_lets_the_head_learn_alone():
    case = problem()
    case.hidden.requires_grad_(False)
    (mine,), (theirs,) = (case.gradients(loss) for loss in (case.chunked(), case.plain()))
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_no_labelled_row_is_a_loss_of_zero_with_gradients_of_zero():
    case = problem(rows=0)
    loss = case.chunked()
    loss.backward()
    assert loss.item() == 0
    assert case.hidden.grad.shape == (0, DIM)
    assert case.head.grad.abs().max() == 0


def test_without_gradients_only_the_loss_is_computed():
    case = problem()
    with torch.no_grad():
        loss = case.chunked()
    assert not loss.requires_grad
    torch.testing.assert_close(loss, case.plain().detach(), rtol=1e-6, atol=0)


def test_the_gradient_can_be_taken_twice():
    case = problem()
    loss = case.chunked()
    first, second = (torch.autograd.grad(loss, case.head, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_rows_of_weight_zero_teach_nothing():
    case = problem()
    case.weights[5:] = 0
    gradient = torch.autograd.grad(case.chunked(), case.hidden)[0]
    assert gradient[5:].abs().max() == 0
    assert gradient[:5].abs().min(dim=1).values.max() > 0


def test_all_logits_are_never_held():
    case = problem(rows=4096)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: sizes.append(t.numel()) or t, lambda t: t
    ):
        case.chunked(64).backward()
    assert max(sizes) < 4096 * VOCAB


def test_an_empty_chunk_is_refused():
    with pytest.raises(ValueError, match="chunk is 0"):
        problem().chunked(0)


@pytest.mark.gpu
@pytest.mark.parametrize("vocab", [92553, 151655])
def test_odd_vocabularies_teach_on_a_gpu_what_they_teach_in_fp32(vocab: int):
    torch.manual_seed(0)
    hidden = torch.randn(300, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    head = torch.randn(vocab, 256, device="cuda", dtype=torch.bfloat16).mul_(0.05)
    labels = torch.randint(vocab, (300,), device="cuda")
    case = Problem(hidden, head.requires_grad_(), labels, torch.rand(300, device="cuda"))
    ours, plain = case.chunked(128), case.plain()
    torch.testing.assert_close(ours, plain, rtol=1e-3, atol=0)
    for mine, theirs in zip(case.gradients(ours), case.gradients(plain), strict=True):
        error = (mine.float() - theirs.float()).norm() / theirs.float().norm()
        assert error < 2e-2
