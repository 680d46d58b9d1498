"""Low-rank adapters: small trained matrices beside frozen ones, which can take them in later.

LoRA (2106.09685) learns `weight + scale * up @ down`. rsLoRA (2312.03732) chooses another scale.
DoRA (2402.09353) learns the length of each row of that sum besides.
"""

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int32
from torch import Tensor, nn

from internvl2.model.internvl import InternVL
from internvl2.model.quantize import Nf4Linear, linear_maps, rounded

ADAPTER_NAMES = ("down", "up", "magnitude")
SHORTEST = 1e-12
"""Rows are taken to be at least this long, so that none is divided by 0."""


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """How the adapters of one part are shaped."""

    rank: int
    alpha: float
    dropout: float = 0.0
    """Share of an adapter's inputs that is left out while training."""
    dora: bool = False
    rslora: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"the rank of an adapter is {self.rank}; it must be at least 1")
        if self.alpha <= 0:
            raise ValueError(f"the alpha of an adapter is {self.alpha}; it must be above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"the dropout of an adapter is {self.dropout}; it must be in [0, 1)")

    @property
    def scale(self) -> float:
        """What the product of the two matrices is multiplied with."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


class HashedDropout(nn.Dropout):
    """Dropout that in a compiled layer hashes places instead of drawing a number for each.

    PyTorch's generator takes longer on a GPU than reading and writing what it is for. A hash of the
    place and of two numbers drawn per call is cheap enough to be computed again going back.
    """

    def forward(self, input: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        """Each number 0 with probability `p`, else 1 / (1 - p) times itself."""
        if not (self.training and self.p > 0 and torch.compiler.is_compiling()):
            return super().forward(input)
        return torch.where(_hashed(input) < round(self.p * 2**31), 0.0, input * (1 / (1 - self.p)))


class LoraLinear(nn.Module):
    """A frozen linear map and its adapter; a new adapter changes nothing.

    On the meta device adapters have no numbers yet: `with_new_adapters` gives them some.
    """

    magnitude: nn.Parameter | None

    def __init__(self, base: nn.Linear | Nf4Linear, settings: LoraSettings):
        super().__init__()
        self.base, self.settings = base.requires_grad_(False), settings
        self.dropout = HashedDropout(settings.dropout)
        new = _new_adapter(base.weight.detach(), settings)
        self.down, self.up = nn.Parameter(new["down"]), nn.Parameter(new["up"])
        self.magnitude = nn.Parameter(new["magnitude"]) if settings.dora else None

    def forward(self, x: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows outputs"]:
        """The map that the merged weight would be, without making that weight."""
        low = F.linear(self.dropout(x), self.down) * self.settings.scale
        if self.magnitude is None:
            return self.base(x) + F.linear(low, self.up)
        weight = self.base.weight
        with torch.no_grad():  # section 4.3 of the paper: lengths are constants going back
            lengths = _row_lengths(weight, self.down, self.up, self.settings.scale)
        y = _product(self.base, x, weight) + F.linear(low, self.up)
        y = (y * (self.magnitude / lengths)).to(y.dtype)
        return y if self.base.bias is None else y + self.base.bias


def add_lora(
    model: InternVL, decoder: LoraSettings | None = None, vision: LoraSettings | None = None
) -> None:
    """Give all linear maps in a part's layers adapters, which then are all that the part trains.

    Those are the official fine-tuner's targets. Vision layers that are never run get none.
    """
    if decoder is not None:
        model.decoder.requires_grad_(False)
        _adapt(model.decoder.layers, decoder)
    if vision is not None:
        model.vision.requires_grad_(False)
        _adapt(model.vision.layers[: model.config.used_vision_layers], vision)


def with_new_adapters(
    weights: Iterable[tuple[str, Tensor]], model: nn.Module, seed: int
) -> Iterator[tuple[str, Tensor]]:
    """A plain model's whole weights, renamed for an adapted one, with new adapters for all of it.

    The numbers depend on the seed and on names, not on the order of weights or the device.
    """
    adapted = {name: m for name, m in model.named_modules() if isinstance(m, LoraLinear)}
    for name, tensor in weights:
        place, _, kind = name.rpartition(".")
        if place not in adapted:
            yield name, tensor
            continue
        yield f"{place}.base.{kind}", tensor
        if kind == "weight":
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {place}".encode()))
            base, settings = adapted[place].base, adapted[place].settings
            meant = rounded(tensor) if settings.dora and isinstance(base, Nf4Linear) else tensor
            for key, numbers in _new_adapter(meant, settings, generator).items():
                yield f"{place}.{key}", numbers


def plain_name(name: str) -> str:
    """The name that a frozen parameter has in a model without adapters."""
    return name.replace(".base.", ".")


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return name.rpartition(".")[2] in ADAPTER_NAMES


@torch.no_grad()
def merged_weight(
    base: Float[Tensor, "outputs inputs"],
    down: Float[Tensor, "rank inputs"],
    up: Float[Tensor, "outputs rank"],
    magnitude: Float[Tensor, " outputs"] | None,
    settings: LoraSettings,
) -> Float[Tensor, "outputs inputs"]:
    """One weight for a matrix and its adapter, computed in fp32 and given in the base's type."""
    weight = torch.addmm(base.float(), up.float(), down.float(), alpha=settings.scale)
    if magnitude is not None:
        lengths = torch.linalg.vector_norm(weight, dim=1).clamp(min=SHORTEST)
        weight *= (magnitude.float() / lengths)[:, None]
    return weight.to(base.dtype)


def _adapt(layers: nn.Module, settings: LoraSettings) -> None:
    if any(isinstance(module, LoraLinear) for module in layers.modules()):
        raise ValueError("these layers have adapters already")
    for holder, name in linear_maps(layers):
        setattr(holder, name, LoraLinear(getattr(holder, name), settings))


def _hashed(x: Float[Tensor, "*axes"]) -> Int32[Tensor, "*axes"]:
    """For each place a number of 31 bits that looks random, another one in each call.

    Multiplications and shifts in turn, as in https://github.com/skeeto/hash-prospector, in int32,
    which wraps.
    """
    seeds = (torch.rand(2, device=x.device) * 2**24).int()
    h = torch.arange(x.numel(), dtype=torch.int32, device=x.device).view(x.shape) ^ seeds[0]
    h = (h ^ ((h >> 16) & 0xFFFF)) * 0x7FEB352D
    h = (h ^ ((h >> 15) & 0x1FFFF)) * -0x7B935975 + seeds[1]
    return (h ^ ((h >> 16) & 0xFFFF)) & 0x7FFFFFFF


def _product(
    base: nn.Linear | Nf4Linear,
    x: Float[Tensor, "*rows inputs"],
    weight: Float[Tensor, "outputs inputs"],
) -> Float[Tensor, "*rows outputs"]:
    """What a base makes of `x` before its bias is added; `weight` is the base's."""
    return base.product(x, weight) if isinstance(base, Nf4Linear) else F.linear(x, weight)


def _new_adapter(
    weight: Float[Tensor, "outputs inputs"],
    settings: LoraSettings,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Random `down`, `up` of zeros, and for DoRA the lengths that the weight's rows have."""
    rows, columns = weight.shape
    down = torch.empty(settings.rank, columns, device="meta" if weight.is_meta else "cpu")
    if not weight.is_meta:  # drawn on the host: the same numbers for every device
        down.uniform_(-(columns**-0.5), columns**-0.5, generator=generator)
    adapter = {"down": down.to(weight), "up": weight.new_zeros(rows, settings.rank)}
    if settings.dora:
        lengths = torch.linalg.vector_norm(weight, dim=1, dtype=torch.float32)
        adapter["magnitude"] = lengths.to(weight.dtype)
    return adapter


def _row_lengths(
    weight: Float[Tensor, "outputs inputs"],
    down: Float[Tensor, "rank inputs"],
    up: Float[Tensor, "outputs rank"],
    scale: float,
) -> Float32[Tensor, " outputs"]:
    """Lengths of the rows of `weight + scale * up @ down`, without making that sum.

    |w + s u D|^2 = |w|^2 + 2 s u (D w) + s^2 u (D D^T) u^T, for each row w of weight and u of up.
    """
    own = torch.linalg.vector_norm(weight, dim=1, dtype=torch.float32).square()
    up_, down_ = up.float() * scale, down.float()
    mixed = (up_ * F.linear(weight, down)).sum(dim=1)
    added = ((up_ @ (down_ @ down_.T)) * up_).sum(dim=1)
    return (own + 2 * mixed + added).clamp(min=SHORTEST**2).sqrt()
