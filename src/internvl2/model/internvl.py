"""InternVL: tiles become visual tokens, visual tokens join the text, the decoder reads both."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from internvl2.config import InternVLConfig
from internvl2.model.attention import Attention
from internvl2.model.decoder import Decoder
from internvl2.model.rotary import Positions
from internvl2.model.vision import VisionTower, normalize

PIXEL_SHUFFLE = {
    "v1": "tiles (h a) (w b) c -> tiles (w h) (a b c)",
    "v2": "tiles (h a) (w b) c -> tiles (h w) (a b c)",
}
"""How patches join into visual tokens; v1 leaves rows and columns of tokens swapped."""


class InternVL(nn.Module):
    """A member of the family: vision tower, projector and decoder."""

    def __init__(self, config: InternVLConfig):
        super().__init__()
        self.config = config
        self.vision = VisionTower(config.vision)
        self.projector = Projector(
            config.vision.hidden_size * config.shuffle**2, config.decoder.hidden_size
        )
        self.decoder = Decoder(config.decoder)

    def forward(
        self,
        tokens: Int[Tensor, " tokens"],
        positions: Positions,
        tiles: UInt8[Tensor, "tiles size size 3"] | None,
        attend: Attention,
    ) -> Float[Tensor, "tokens dim"]:
        """Hidden states of a stream whose pictures are `tiles`, in order."""
        visual = None
        if tiles is not None and len(tiles):
            visual = rearrange(self.encode_tiles(tiles), "tiles visual dim -> (tiles visual) dim")
        return self.decoder(self.embed(tokens, visual), positions, attend)

    def encode_tiles(
        self, tiles: UInt8[Tensor, "tiles size size 3"]
    ) -> Float[Tensor, "tiles visual dim"]:
        """Visual tokens of each tile, in the decoder's space."""
        return self.projector(self.tile_features(tiles))

    def tile_features(
        self, tiles: UInt8[Tensor, "tiles size size 3"]
    ) -> Float[Tensor, "tiles visual wide"]:
        """What the vision tower makes of each tile, as the projector reads it."""
        return self._pixel_features(normalize(tiles, self.vision.patch_embedding.weight.dtype))

    def encode_pixels(
        self, pixels: Float[Tensor, "tiles 3 size size"]
    ) -> Float[Tensor, "tiles visual dim"]:
        """Visual tokens of tiles that are already normalised (official `extract_feature`)."""
        return self.projector(self._pixel_features(pixels))

    def _pixel_features(
        self, pixels: Float[Tensor, "tiles 3 size size"]
    ) -> Float[Tensor, "tiles visual wide"]:
        config = self.config
        x = self.vision(pixels, config.used_vision_layers)
        side = pixels.shape[-1] // config.vision.patch_size
        x = rearrange(x[:, 1:], "tiles (h w) c -> tiles h w c", h=side)
        pattern = PIXEL_SHUFFLE[config.ps_version]
        return rearrange(x, pattern, a=config.shuffle, b=config.shuffle)

    def embed(
        self,
        tokens: Int[Tensor, " tokens"],
        visual: Float[Tensor, "visual dim"] | None = None,
        rows: Int[Tensor, " places"] | None = None,
    ) -> Float[Tensor, "tokens dim"]:
        """Embeddings of a stream, its `<IMG_CONTEXT>` tokens replaced by `visual`, in order.

        `rows` are those tokens' places, where they are known: looking for them makes the host wait.
        """
        x = self.decoder.embedding(tokens)
        if visual is None:
            return x
        if rows is None:
            rows = self._visual_rows(tokens)
        if len(rows) != len(visual):
            raise ValueError(f"{len(rows)} <IMG_CONTEXT> tokens but {len(visual)} visual tokens")
        return x.index_copy(0, rows, visual.to(x.dtype))

    def logits(self, hidden: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows vocab"]:
        """Scores of every token of the vocabulary, in fp32."""
        return self.decoder.scores(hidden).float()

    def _visual_rows(self, tokens: Int[Tensor, " tokens"]) -> Int[Tensor, " places"]:
        if self.config.image_token_id is None:
            raise ValueError("this model's config has no image_token_id; it cannot place pictures")
        return (tokens == self.config.image_token_id).nonzero()[:, 0]


class Projector(nn.Module):
    """From shuffled patch features to the decoder's space (`mlp1` of the official code)."""

    def __init__(self, vision_width: int, decoder_width: int):
        super().__init__()
        self.norm = nn.LayerNorm(vision_width)
        self.linear1 = nn.Linear(vision_width, decoder_width)
        self.linear2 = nn.Linear(decoder_width, decoder_width)

    def forward(self, x: Float[Tensor, "tiles visual wide"]) -> Float[Tensor, "tiles visual dim"]:
        """Norm, then two linear maps with an exact GELU between them."""
        return self.linear2(F.gelu(self.linear1(self.norm(x))))


def random_model(
    config: InternVLConfig, seed: int = 0, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> InternVL:
    """A member with random weights, for tests and benchmarks: real shapes, meaningless answers."""
    torch.manual_seed(seed)
    with torch.device(device):
        return InternVL(config).to(dtype).eval()
