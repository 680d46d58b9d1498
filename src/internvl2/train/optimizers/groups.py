"""Which weights are trained, at which rates, and by which optimizer."""

from dataclasses import dataclass

from torch import Tensor, nn

from internvl2.model.internvl import InternVL
from internvl2.model.lora import is_adapter
from internvl2.train.optimizers.adamw import ExactAdamW
from internvl2.train.optimizers.muon import Muon
from internvl2.train.recipe import Freeze, Optimizer
from internvl2.train.sharding import squared_lengths

PARTS = ("vision", "projector", "decoder")
"""What a parameter's name starts with; the head belongs to the decoder."""
HEAD = "decoder.head."


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are trained alike."""

    part: str
    parameters: tuple[tuple[str, nn.Parameter], ...]
    factor: float
    """Share of the learning rate."""
    weight_decay: float
    matrices: bool
    """Whether Muon may orthogonalise them."""


@dataclass(frozen=True)
class GradientNorms:
    """Lengths of the gradients, on the device."""

    total: Tensor
    parts: dict[str, Tensor]
    """Of each part that has gradients."""

    def clipping(self, max_norm: float) -> Tensor:
        """What gradients are multiplied with so that their total length is at most `max_norm`."""
        return (max_norm / (self.total + 1e-6)).clamp(max=1.0)


def freeze_parts(model: InternVL, freeze: Freeze) -> None:
    """Decide which parameters get gradients; vision layers that are never run get none.

    Adapters do, whatever `freeze` says: `Recipe.kept` is what it should be where there are any.
    """
    layers = model.config.used_vision_layers
    if freeze.vision_last > layers:
        raise ValueError(
            f"freeze.vision_last is {freeze.vision_last}; the model uses {layers} vision layers"
        )
    for name, parameter in model.named_parameters():
        part, layer = name.split(".")[0], _vision_layer(name)
        is_frozen = freeze.freezes_head if name.startswith(HEAD) else getattr(freeze, part)
        if layer is not None:
            is_last = layer >= layers - freeze.vision_last
            is_frozen = layer >= layers or (freeze.vision and not is_last)
        parameter.requires_grad_(is_adapter(name) or not is_frozen)


def parameter_groups(model: InternVL, settings: Optimizer) -> list[ParameterGroup]:
    """Trained parameters by part, rate, weight decay and whether Muon takes them."""
    layers = model.config.used_vision_layers
    groups: dict[tuple[str, float, float, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = name.split(".")[0]
        factor = getattr(settings, f"{part}_rate")
        if part == "vision":
            layer = _vision_layer(name)
            factor *= settings.layer_decay ** (layers if layer is None else layers - 1 - layer)
        decay = settings.weight_decay if _decays(name, parameter) else 0.0
        matrices = settings.name == "muon" and _is_layer_matrix(name, parameter)
        groups.setdefault((part, factor, decay, matrices), []).append((name, parameter))
    if not groups:
        raise ValueError("every parameter is frozen; nothing would be trained")
    return [
        ParameterGroup(part, tuple(named), factor, decay, matrices)
        for (part, factor, decay, matrices), named in groups.items()
    ]


def build_optimizer(model: InternVL, settings: Optimizer, compiled: bool = False) -> ExactAdamW:
    """The optimizer of a recipe for the parameters that are not frozen."""
    groups = [
        {
            "params": list(group.parameters),
            "part": group.part,
            "factor": group.factor,
            "lr": settings.learning_rate * group.factor,
            "weight_decay": group.weight_decay,
            "matrices": group.matrices,
        }
        for group in parameter_groups(model, settings)
    ]
    kind = Muon if settings.name == "muon" else ExactAdamW
    return kind(
        groups,
        betas=settings.betas,
        eps=settings.eps,
        moments=settings.moments,
        compiled=compiled,
    )


def set_learning_rate(optimizer: ExactAdamW, rate: float) -> None:
    """Give each group its share of `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def gradient_norms(model: nn.Module) -> GradientNorms:
    """Length of all gradients together and of each part's, in fp32."""
    gradients = {
        part: [
            parameter.grad
            for name, parameter in model.named_parameters()
            if parameter.grad is not None and name.startswith(f"{part}.")
        ]
        for part in PARTS
    }
    counts = {part: len(found) for part, found in gradients.items() if found}
    if not counts:
        raise ValueError("no parameter has a gradient")
    squares = squared_lengths([gradient for found in gradients.values() for gradient in found])
    pieces = squares.split(list(counts.values()))
    lengths = {part: piece.sum().sqrt() for part, piece in zip(counts, pieces, strict=True)}
    return GradientNorms(squares.sum().sqrt(), lengths)


def _vision_layer(name: str) -> int | None:
    words = name.split(".")
    return int(words[2]) if words[:2] == ["vision", "layers"] else None


def _decays(name: str, parameter: Tensor) -> bool:
    """Norms, biases, layer scales and the tower's position and class embeddings do not."""
    return parameter.ndim > 1 and name != "vision.position_embedding"


def _is_layer_matrix(name: str, parameter: Tensor) -> bool:
    return parameter.ndim == 2 and (".layers." in name or name.startswith("projector."))
