"""InternViT: from tiles to a feature vector per patch. The 300M and the 6B tower are one module.

Source of the formulas: `modeling_intern_vit.py` of the official code.
"""

from collections.abc import Iterable, Sequence
from itertools import zip_longest

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn

from internvl2.config import VisionConfig
from internvl2.model.attention import full_attention
from internvl2.model.initial import normal
from internvl2.model.kernels import RMSNorm
from internvl2.model.vision_kernels import PLAIN, VisionKernels

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class VisionTower(nn.Module):
    """A pre-norm transformer over a tile's patches, with learned positions and layer scale."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        positions = 1 + config.patches_per_side**2
        self.class_embedding = normal(config.hidden_size, deviation=0.02)
        self.position_embedding = normal(positions, config.hidden_size, deviation=0.02)
        patch = config.patch_size
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, patch, stride=patch)
        rates = torch.linspace(0, config.drop_path_rate, config.num_layers, device="cpu").tolist()
        self.layers = nn.ModuleList(VisionLayer(config, rate) for rate in rates)
        self.kernels = PLAIN

    def forward(
        self, pixels: Float[Tensor, "tiles 3 size size"], num_layers: int | None = None
    ) -> Float[Tensor, "tiles states dim"]:
        """Hidden state after `num_layers` layers (default: all); token 0 is the class token."""
        x = self.embed(pixels)
        layers = self.layers[:num_layers]
        if self.kernels.scaled_sum_norm is not None and len(layers):
            return self._with_joined_norms(x, layers)
        for layer in layers:
            x = layer(x)
        return x

    def use(self, kernels: VisionKernels) -> None:
        """Computes with these kernels from now on; it can no longer be trained."""
        self.kernels = kernels
        for layer in self.layers:
            assert isinstance(layer, VisionLayer)
            layer.attention.kernels = layer.mlp.kernels = kernels

    def _with_joined_norms(
        self, x: Float[Tensor, "tiles states dim"], layers: Iterable[nn.Module]
    ) -> Float[Tensor, "tiles states dim"]:
        """The same layers; each sum is made together with the norm that reads it."""
        add = self.kernels.scaled_sum_norm
        assert add is not None
        known = [layer for layer in layers if isinstance(layer, VisionLayer)]
        normed = known[0].norm1(x)
        for layer, following in zip_longest(known, known[1:]):
            branch = layer.attention(normed)
            x, normed = add(x, branch, layer.scale1, *norm_numbers(layer.norm2))
            branch = layer.mlp(normed)
            if following is None:
                return x + branch * layer.scale2.to(x.dtype)
            x, normed = add(x, branch, layer.scale2, *norm_numbers(following.norm1))
        return x

    def embed(
        self, pixels: Float[Tensor, "tiles 3 size size"]
    ) -> Float[Tensor, "tiles states dim"]:
        """Patch embeddings behind the class token, with their positions added."""
        side = pixels.shape[-1] // self.config.patch_size
        x = self._embed_patches(pixels)
        first = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        return torch.cat([first, x], dim=1) + self._positions(side).to(x.dtype)

    def _embed_patches(
        self, pixels: Float[Tensor, "tiles 3 size size"]
    ) -> Float[Tensor, "tiles patches dim"]:
        """The convolution as the matrix product that it is: each pixel is in one patch alone."""
        p = self.config.patch_size
        patches = rearrange(pixels, "t c (h y) (w x) -> t (h w) (c y x)", y=p, x=p)
        weight = rearrange(self.patch_embedding.weight, "dim c y x -> dim (c y x)")
        return F.linear(patches, weight, self.patch_embedding.bias)

    def _positions(self, side: int) -> Float[Tensor, "states dim"]:
        """Position embeddings for `side` x `side` patches, interpolated where need be."""
        trained = self.config.patches_per_side
        if side == trained:
            return self.position_embedding
        first, grid = self.position_embedding.float().split([1, trained**2])
        grid = rearrange(grid, "(h w) dim -> 1 dim h w", h=trained)
        grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
        return torch.cat([first, rearrange(grid, "1 dim h w -> (h w) dim")])


class VisionLayer(nn.Module):
    """Attention and MLP, each scaled per channel and, while training, sometimes left out."""

    def __init__(self, config: VisionConfig, drop_path_rate: float):
        super().__init__()
        self.drop_path_rate = drop_path_rate
        self.norm1 = _norm(config)
        self.attention = VisionAttention(config)
        self.scale1 = nn.Parameter(torch.ones(config.hidden_size))
        self.norm2 = _norm(config)
        self.mlp = VisionMLP(config)
        self.scale2 = nn.Parameter(torch.ones(config.hidden_size))

    def forward(self, x: Float[Tensor, "tiles patches dim"]) -> Float[Tensor, "tiles patches dim"]:
        """One layer of the tower."""
        x = x + self._drop_path(self.attention(self.norm1(x)) * self.scale1.to(x.dtype))
        return x + self._drop_path(self.mlp(self.norm2(x)) * self.scale2.to(x.dtype))

    def _drop_path(
        self, x: Float[Tensor, "tiles patches dim"]
    ) -> Float[Tensor, "tiles patches dim"]:
        """Leave the branch out for some tiles and scale the others up (1603.09382)."""
        if not self.training or self.drop_path_rate == 0:
            return x
        keep = 1 - self.drop_path_rate
        kept = torch.rand(x.shape[0], 1, 1, device=x.device) < keep
        return x * kept.to(x.dtype) / keep


class VisionAttention(nn.Module):
    """Full attention among the patches of a tile."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.num_heads = config.num_heads
        dim = config.hidden_size
        self.qkv = nn.Linear(dim, 3 * dim, bias=config.qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.q_norm = RMSNorm(dim, eps=config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(dim, eps=config.norm_eps) if config.qk_norm else None
        self.kernels = PLAIN

    def forward(self, x: Float[Tensor, "tiles patches dim"]) -> Float[Tensor, "tiles patches dim"]:
        """Attend; in the 6B tower queries and keys are normalised over all heads together."""
        q, k, v = self._normed(self.qkv(x))
        attend = self.kernels.attend
        if attend is None:
            return self.proj(full_attention(q, k, v, self.num_heads))
        q, k, v = (rearrange(part, "t p (h d) -> t h p d", h=self.num_heads) for part in (q, k, v))
        return self.proj(rearrange(attend(q, k, v), "t h p d -> t p (h d)"))

    def _normed(self, product: Float[Tensor, "tiles patches three"]) -> tuple[Tensor, ...]:
        """Queries, keys and values out of their joined product."""
        if self.q_norm is None or self.k_norm is None:
            return product.chunk(3, dim=-1)
        fused, eps = self.kernels.norm_queries_and_keys, self.q_norm.eps
        if fused is not None and eps is not None:
            return fused(product, self.q_norm.weight, self.k_norm.weight, eps).chunk(3, dim=-1)
        q, k, v = product.chunk(3, dim=-1)
        return self.q_norm(q), self.k_norm(k), v


class VisionMLP(nn.Module):
    """Two linear maps with an exact (erf) GELU between them."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.kernels = PLAIN

    def forward(self, x: Float[Tensor, "tiles patches dim"]) -> Float[Tensor, "tiles patches dim"]:
        """Transform each patch by itself."""
        if self.kernels.biased_gelu is None:
            return self.fc2(F.gelu(self.fc1(x)))
        return self.fc2(self.kernels.biased_gelu(F.linear(x, self.fc1.weight), self.fc1.bias))


def normalize(
    tiles: UInt8[Tensor, "tiles size size 3"], dtype: torch.dtype
) -> Float[Tensor, "tiles 3 size size"]:
    """Pixels of 0..255 with ImageNet's mean and deviation taken out, in fp32 until the end."""
    pixels = (tiles.float() / 255 - _filled(IMAGENET_MEAN, tiles)) / _filled(IMAGENET_STD, tiles)
    return rearrange(pixels, "tiles h w c -> tiles c h w").to(dtype).contiguous()


def _filled(numbers: Sequence[float], like: Tensor) -> Float32[Tensor, " numbers"]:
    """Numbers on another tensor's device; a copy from the host would wait for the device."""
    return torch.stack([torch.full((), number, device=like.device) for number in numbers])


def norm_numbers(norm: nn.Module) -> tuple[Tensor, Tensor | None, float]:
    """Weight, bias and epsilon of a norm, as its fused kernel takes them."""
    if isinstance(norm, nn.LayerNorm):
        return norm.weight, norm.bias, norm.eps
    assert isinstance(norm, RMSNorm)
    assert norm.eps is not None
    return norm.weight, None, norm.eps


def _norm(config: VisionConfig) -> nn.Module:
    kind = nn.LayerNorm if config.norm == "layer_norm" else RMSNorm
    return kind(config.hidden_size, eps=config.norm_eps)
