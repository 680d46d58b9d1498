"""Whether our loss and transformers' loss of the same weights and samples are the same."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from training_sides import PaddedBatch, transformers_model
from training_work import Work

from internvl2.checkpoint.layouts import rules
from internvl2.model.internvl import InternVL, random_model
from internvl2.train.data.packing import Sample
from internvl2.train.step_loss import pack_loss


@dataclass(frozen=True)
class Agreement:
    """Whether both sides compute the same loss from the same weights and samples."""

    ours: float
    """Mean over the labelled tokens of one pack."""
    theirs: float
    """The same of padded batches."""
    per_sample: float
    """Largest difference between the two means of one sample."""
    spread: float
    """Standard deviation of the samples' means: what a mix-up of samples would come to."""
    black: float
    """How far black tiles move a sample's mean: what pictures in the wrong place would come to."""

    def __str__(self) -> str:
        return (
            f"Mean loss of one pack with the same weights: ours {self.ours:.4f}, transformers "
            f"{self.theirs:.4f}; the means of a sample differ by at most {self.per_sample:.4f} "
            f"(they spread by {self.spread:.3f}, and black tiles move them by {self.black:.3f})"
        )


@torch.no_grad()
def agreement(work: Work, device: torch.device, dtype: torch.dtype) -> Agreement:
    """The losses of one pack, once packed by us and once padded by transformers."""
    model = random_model(work.config, device=str(device), dtype=dtype)
    # Larger scores make the loss depend on what the model makes of its input.
    model.decoder.head.weight.mul_(8)
    model.projector.linear2.weight.mul_(8)
    theirs = transformers_model(work.config, device, dtype).eval()
    load_ours(theirs, model)
    samples = work.packs[0]
    batch = replace(work, packs=(samples,)).batches()[0].to(device)
    ours = float(pack_loss(model, batch, 1 / batch.weight_sum))
    padded = [PaddedBatch.of([sample], device, dtype) for sample in samples]
    means = [float(theirs(**one.arguments, use_cache=False).loss) for one in padded]
    counts = [one.learned for one in padded]
    alone = [_alone(work, model, sample, device) for sample in samples]
    dark = [replace(s, prompt=replace(s.prompt, tiles=s.prompt.tiles * 0)) for s in samples]
    black = [_alone(work, model, sample, device) for sample in dark]
    return Agreement(
        ours=ours,
        theirs=float(np.average(means, weights=counts)),
        per_sample=max(abs(a - b) for a, b in zip(alone, means, strict=True)),
        spread=float(np.std(means)),
        black=max(abs(a - b) for a, b in zip(alone, black, strict=True)),
    )


def _alone(work: Work, model: InternVL, sample: Sample, device: torch.device) -> float:
    batch = replace(work, packs=((sample,),)).batches()[0].to(device)
    return float(pack_loss(model, batch, 1 / batch.weight_sum))


def load_ours(theirs: nn.Module, model: InternVL) -> None:
    """Give transformers' model the weights of ours, through the `hf` layout."""
    weights = model.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    renamed: dict[str, Tensor] = {}
    for rule in rules("hf", model.config, shapes):
        tensors = rule.write([weights[name] for name in rule.ours])
        renamed |= dict(zip(rule.theirs, tensors, strict=True))
    theirs.load_state_dict(renamed)
