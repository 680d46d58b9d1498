"""The keys and values of all blocks, on the device."""

from collections.abc import Sequence as Rows

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from internvl2 import device as devices
from internvl2.config import DecoderConfig
from internvl2.engine.scheduler import Chunk


class KVTensors:
    """Cache tensors; the last block is scratch that padding writes to."""

    def __init__(
        self,
        decoder: DecoderConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (
            decoder.num_layers,
            num_blocks + 1,
            block_size,
            decoder.num_kv_heads,
            decoder.head_dim,
        )
        self.block_size = block_size
        self.scratch_block = num_blocks
        self.keys: Float[Tensor, "layers blocks block_size kv_heads head_dim"] = torch.zeros(
            shape, dtype=dtype, device=device
        )
        self.values: Float[Tensor, "layers blocks block_size kv_heads head_dim"] = torch.zeros_like(
            self.keys
        )

    def clear_begun(self, chunks: Rows[Chunk]) -> None:
        """Empties the blocks that these chunks begin and do not fill.

        Attention multiplies what lies behind a sequence's end by 0, which leaves what an earlier
        sequence wrote there without effect unless that has overflowed.
        """
        size = self.block_size
        lasts = [(chunk, chunk.stop // size) for chunk in chunks if chunk.stop % size]
        begun = [c.sequence.blocks[last] for c, last in lasts if last * size >= c.start]
        if begun:
            blocks = devices.upload(torch.from_numpy(np.array(begun, np.int64)), self.keys.device)
            self.keys.index_fill_(1, blocks, 0.0)
            self.values.index_fill_(1, blocks, 0.0)
