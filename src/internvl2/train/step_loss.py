"""The loss of one pack: tiles and tokens through the model, labelled rows through the head."""

from einops import rearrange
from torch import Tensor, nn

from internvl2.model.internvl import InternVL
from internvl2.train.data.packing import TrainBatch
from internvl2.train.loss import chunked_cross_entropy


class PackLoss(nn.Module):
    """`pack_loss` as a module: the whole that is divided over processes."""

    def __init__(self, model: InternVL) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: TrainBatch, scale: float) -> Tensor:
        """The loss of a pack."""
        return pack_loss(self.model, batch, scale)


def pack_loss(model: InternVL, batch: TrainBatch, scale: float) -> Tensor:
    """Sum of the weighted losses of a pack's learned tokens, `scale` times."""
    embedded = model.embed(batch.tokens, _visual(model, batch), batch.visual_rows)
    hidden = model.decoder(embedded, batch.positions, batch.attention())
    rows = batch.learned_rows
    return chunked_cross_entropy(
        hidden[rows], model.decoder.head.weight, batch.labels[rows], batch.weights[rows] * scale
    )


def _visual(model: InternVL, batch: TrainBatch) -> Tensor | None:
    """Visual tokens of the pack's pictures; None where it has none."""
    if batch.features is not None:
        encoded = model.projector(batch.features)
    elif len(batch.tiles):  # black ones alone where another process has pictures
        encoded = model.encode_tiles(batch.tiles)
    else:
        return None
    return rearrange(encoded[: batch.num_tiles], "tiles visual dim -> (tiles visual) dim")
