"""Load a checkpoint into a model on its device, and save a model as a checkpoint."""

from pathlib import Path

import torch
from torch import Tensor

from internvl2.checkpoint.config_files import read_config
from internvl2.checkpoint.source import open_checkpoint
from internvl2.config import InternVLConfig
from internvl2.model.internvl import InternVL


def read_weights(directory: str | Path, config: InternVLConfig) -> dict[str, Tensor]:
    """Every parameter in a checkpoint under our names, in the stored type; views where possible."""
    return dict(open_checkpoint(Path(directory), config).parameters())


def load_model(
    directory: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> InternVL:
    """The model in a directory, on `device`, in `dtype` or else in the stored type.

    Tensors go to the device one by one; the host never holds a second copy of the model.
    """
    config = read_config(directory)
    checkpoint = open_checkpoint(Path(directory), config)
    dtype = dtype or checkpoint.dtype()
    with torch.device("meta"):
        model = InternVL(config)
    weights = {
        name: _placed(tensor, torch.device(device), dtype)
        for name, tensor in checkpoint.parameters()
    }
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval()


def _placed(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A contiguous copy on `device`: never a view of the file, which may change or go away."""
    return tensor.to(device, dtype, copy=True, memory_format=torch.contiguous_format)
