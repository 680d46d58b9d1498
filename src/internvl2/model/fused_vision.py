"""A vision tower made ready to answer on a CUDA device: fused kernels between its products.

Each kernel is tried first against plain PyTorch, at the shapes of a picture cut into tiles, and
taken where it agrees; where that is not certain to be faster it is timed as well. The attention
over a tile's patches is whichever of PyTorch's kernels is fastest.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_cudnn_attention, can_use_flash_attention

from internvl2.model.kernel_choice import KernelChoice, Trial
from internvl2.model.vision import VisionLayer, VisionTower, norm_numbers
from internvl2.model.vision_kernels import VisionKernels

TILES = 7
"""Of the picture that kernels are timed on: half of the usual most."""
HALF_PRECISION = (torch.bfloat16, torch.float16)
HEAD_DIM_UNIT = 8
"""Head sizes of attention called by name; PyTorch would pad others."""

_logger = logging.getLogger(__name__)


@torch.no_grad()
def fuse_vision(tower: VisionTower, choice: KernelChoice) -> None:
    """Uses the kernels that pass their trials; the tower cannot be trained after that."""
    trials = _Trials.of(tower)
    has_head_norms = tower.config.qk_norm
    tower.use(
        VisionKernels(
            scaled_sum_norm=_taken(choice, trials.scaled_sum_norm(), _scaled_sum_norm),
            biased_gelu=_taken(choice, trials.biased_gelu(), _biased_gelu),
            norm_queries_and_keys=_taken(
                choice, trials.norm_queries_and_keys(), _norm_queries_and_keys
            )
            if has_head_norms
            else None,
            attend=_fastest_attention(choice, trials),
        )
    )


@dataclass(frozen=True, slots=True)
class TileAttention:
    """One of PyTorch's kernels, called by name: who steers its choice does so for all threads."""

    attend: Callable[[Tensor, Tensor, Tensor], Tensor]
    """[tiles, heads, patches, head_dim] each."""
    suits: Callable[[SDPAParams], bool]
    """PyTorch's own answer whether the kernel takes such numbers: called by name, none checks."""


def _flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]


def _cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, False)[0]


ATTENTIONS: Mapping[str, TileAttention] = MappingProxyType(
    {
        "flash attention over tiles": TileAttention(_flash, can_use_flash_attention),
        "cuDNN's attention over tiles": TileAttention(_cudnn, can_use_cudnn_attention),
    }
)


@dataclass(frozen=True)
class _Trials:
    """What each kernel is tried on: numbers of a tower's shapes, type and device."""

    tower: VisionTower
    layer: VisionLayer
    patches: int

    @classmethod
    def of(cls, tower: VisionTower) -> "_Trials":
        """Trials of one layer, which are all alike."""
        layer = tower.layers[0]
        assert isinstance(layer, VisionLayer)
        return cls(tower, layer, 1 + tower.config.patches_per_side**2)

    def scaled_sum_norm(self) -> Trial:
        norm = self.layer.norm2
        dim = self.tower.config.hidden_size

        def plain(x: Tensor, branch: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
            total = x + branch * scale
            return total, norm(total)

        def fused(x: Tensor, branch: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
            return _scaled_sum_norm()(x, branch, scale, *norm_numbers(norm))

        inputs = self._random(2, 5, dim), self._random(2, 5, dim), self._random(dim)
        kind = type(norm).__name__
        return Trial("scaled sums and norms of tiles", fused, plain, inputs, case=(kind, dim))

    def biased_gelu(self) -> Trial:
        inner = self.tower.config.intermediate_size
        fc1 = self.layer.mlp.fc1

        def fused(x: Tensor) -> Tensor:
            return _biased_gelu()(F.linear(x, fc1.weight), fc1.bias)

        x = self._random(TILES, self.patches, self.tower.config.hidden_size)
        return Trial(
            "GELUs of tiles",
            fused,
            lambda x: F.gelu(fc1(x)),
            (x,),
            case=inner,
            must_be_faster=x.device.type == "cuda",
        )

    def norm_queries_and_keys(self) -> Trial:
        attention = self.layer.attention
        q_norm, k_norm = attention.q_norm, attention.k_norm
        assert q_norm is not None
        assert k_norm is not None
        dim = self.tower.config.hidden_size

        def plain(product: Tensor) -> Tensor:
            q, k, v = product.chunk(3, dim=-1)
            return torch.cat([q_norm(q), k_norm(k), v], dim=-1)

        def fused(product: Tensor) -> Tensor:
            return _norm_queries_and_keys()(
                product.clone(), q_norm.weight, k_norm.weight, q_norm.eps
            )

        product = self._random(2, 5, 3 * dim)
        return Trial("norms of a tile's queries and keys", fused, plain, (product,), case=dim)

    def suits(self, name: str) -> bool:
        """Whether the kernel takes the tower's numbers; another may end the whole process."""
        q, k, v = self._heads(self._product())
        params = SDPAParams(q, k, v, None, 0.0, False, False)
        return q.shape[-1] % HEAD_DIM_UNIT == 0 and ATTENTIONS[name].suits(params)

    def attention(self, name: str, found: str | None = None) -> Trial:
        """Of one against the fastest that was found before; None is PyTorch's own choice."""

        def over_heads(attend: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
            def of_product(product: Tensor) -> Tensor:
                out = attend(*self._heads(product))
                return rearrange(out, "t h p d -> t p (h d)").contiguous()

            return of_product

        usual = F.scaled_dot_product_attention
        plain = over_heads(usual if found is None else ATTENTIONS[found].attend)
        fused = over_heads(ATTENTIONS[name].attend)
        case = (self.tower.config.num_heads, self.patches, found)
        return Trial(name, fused, plain, (self._product(),), case, must_be_faster=True)

    def _product(self) -> Tensor:
        return self._random(TILES, self.patches, 3 * self.tower.config.hidden_size)

    def _heads(self, product: Tensor) -> list[Tensor]:
        heads = self.tower.config.num_heads
        parts = product.chunk(3, dim=-1)
        return [rearrange(part, "t p (h d) -> t h p d", h=heads) for part in parts]

    def _random(self, *shape: int) -> Tensor:
        """Drawn without touching the random numbers of whoever loads a model."""
        weight = self.tower.position_embedding
        numbers = torch.randn(shape, generator=torch.Generator().manual_seed(0), device="cpu")
        return numbers.to(weight)


def _fastest_attention(
    choice: KernelChoice, trials: _Trials
) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """A kernel that is faster than what PyTorch chooses by itself, if there is one."""
    weight = trials.tower.position_embedding
    if weight.device.type != "cuda" or weight.dtype not in HALF_PRECISION:
        return None  # neither has other formats
    return _fastest(choice, trials)


def _fastest(
    choice: KernelChoice, trials: _Trials
) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    found = None
    for name in ATTENTIONS:
        if not trials.suits(name):
            _logger.debug("%s is not for such heads or types", name)
        elif choice.prepare(trials.attention(name, found)):
            found = name
    return None if found is None else ATTENTIONS[found].attend


def _taken(
    choice: KernelChoice, trial: Trial, load: Callable[[], Callable[..., Any]]
) -> Callable[..., Any] | None:
    return load() if choice.prepare(trial) else None


def _scaled_sum_norm() -> Callable[..., tuple[Tensor, Tensor]]:
    from internvl2.model.triton_kernels.vision import scaled_sum_norm

    return scaled_sum_norm


def _biased_gelu() -> Callable[..., Tensor]:
    from internvl2.model.triton_kernels.vision import biased_gelu

    return biased_gelu


def _norm_queries_and_keys() -> Callable[..., Tensor]:
    from internvl2.model.triton_kernels.vision import norm_queries_and_keys

    return norm_queries_and_keys
