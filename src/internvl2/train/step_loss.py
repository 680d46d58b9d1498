"""The loss of one pack: tiles and tokens through the model, labelled rows through the head."""

from collections.abc import Callable

from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from internvl2.model.internvl import InternVL
from internvl2.train.data.packing import TrainBatch
from internvl2.train.loss import chunked_cross_entropy

Reader = Callable[[Float[Tensor, "rows dim"], Float[Tensor, "vocab dim"]], tuple[Tensor, ...]]
"""Something else to make of hidden states at the positions that learn, with the head's weights."""


class PackLoss(nn.Module):
    """`pack_loss` as a module: the whole that is divided over processes."""

    def __init__(self, model: InternVL) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: TrainBatch, scale: float) -> Tensor:
        """The loss of a pack."""
        return pack_loss(self.model, batch, scale)

    def tile_features(
        self, tiles: UInt8[Tensor, "tiles size size 3"]
    ) -> Float[Tensor, "tiles visual wide"]:
        """What the vision tower makes of each tile."""
        return self.model.tile_features(tiles)

    def read(self, batch: TrainBatch, reader: Reader) -> tuple[Tensor, ...]:
        """What a reader makes of a pack."""
        return reader(_learned_states(self.model, batch), self.model.decoder.head.weight)


def pack_loss(model: InternVL, batch: TrainBatch, scale: float) -> Tensor:
    """Sum of the weighted losses of a pack's learned tokens, `scale` times."""
    rows = batch.learned_rows
    return chunked_cross_entropy(
        _learned_states(model, batch),
        model.decoder.head.weight,
        batch.labels[rows],
        batch.weights[rows] * scale,
    )


def _learned_states(model: InternVL, batch: TrainBatch) -> Float[Tensor, "rows dim"]:
    """Hidden states at the positions of a pack that learn."""
    embedded = model.embed(batch.tokens, _visual(model, batch), batch.visual_rows)
    hidden = model.decoder(embedded, batch.positions, batch.attention())
    return hidden[batch.learned_rows]


def _visual(model: InternVL, batch: TrainBatch) -> Tensor | None:
    """Visual tokens of the pack's pictures; None where it has none."""
    if batch.features is not None:
        encoded = model.projector(batch.features)
    elif len(batch.tiles):  # black ones alone where another process has pictures
        encoded = model.encode_tiles(batch.tiles)
    else:
        return None
    return rearrange(encoded[: batch.num_tiles], "tiles visual dim -> (tiles visual) dim")
