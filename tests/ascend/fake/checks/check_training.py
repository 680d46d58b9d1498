"""Training on the fake device is training on the CPU."""

import pytest
import torch
import torch.nn.functional as F
import torch_npu  # noqa: F401 - makes the device known
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Block(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.RMSNorm(dim), nn.Linear(dim, 3 * dim)
        self.gate, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.drop = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (4, -1)).transpose(1, 2)
            for t in self.attention(self.norm(x)).chunk(3, -1)
        )
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return x + self.down(F.silu(self.gate(self.drop(x + seen))))


class Toy(nn.Module):
    def __init__(self, dim: int = 32, words: int = 101) -> None:
        super().__init__()
        self.patches, self.words = nn.Conv2d(3, dim, 4, 4), nn.Embedding(words, dim)
        self.blocks = nn.ModuleList(Block(dim) for _ in range(2))
        self.head = nn.Linear(dim, words, bias=False)

    def forward(self, ids: Tensor, pixels: Tensor) -> Tensor:
        x = self.words(ids).clone()
        x[:, 3:11] = self.patches(pixels).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return self.head(x)


def losses(device: str, autocast: torch.dtype | None = None, fused: bool = True) -> list[float]:
    torch.manual_seed(0)
    model = Toy().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, fused=fused, foreach=not fused)
    found = []
    for step in range(3):
        draw = torch.Generator().manual_seed(step)
        ids = torch.randint(8, 101, (2, 24), generator=draw).to(device)
        pixels = torch.randn(2, 3, 8, 16, generator=draw).to(device)
        with torch.autocast(device, dtype=autocast, enabled=autocast is not None):
            logits = model(ids, pixels)
        loss = F.cross_entropy(logits.float().flatten(0, 1), ids.flatten())
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found += [loss.item(), norm.item()]
    return found


@pytest.mark.parametrize("fused", [True, False])
def test_the_losses_and_norms_are_the_cpu_s(fused: bool) -> None:
    assert losses("npu", fused=fused) == pytest.approx(losses("cpu", fused=fused), abs=1e-5)


def test_they_are_with_autocast_as_far_as_its_format_goes() -> None:
    autocast = torch.bfloat16
    assert losses("npu", autocast) == pytest.approx(losses("cpu", autocast), abs=5e-3)


def test_autocast_multiplies_in_the_small_format_and_sums_in_the_large_one() -> None:
    x = torch.ones(2, 2, device="npu")
    with torch.autocast("npu", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        assert x.bfloat16().softmax(-1).dtype == torch.float32
