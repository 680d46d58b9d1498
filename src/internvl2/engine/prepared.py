"""A filled model as an engine wants it: its matrices and kernels as its device is fastest with."""

from internvl2.model.fused import fuse
from internvl2.model.fused_vision import fuse_vision
from internvl2.model.internvl import InternVL
from internvl2.model.kernel_choice import KernelChoice
from internvl2.model.packed import can_pack, pack_linears


def prepare(model: InternVL) -> InternVL:
    """The model itself, changed in place; it can no longer be trained or saved."""
    weight = model.decoder.embedding.weight
    if can_pack(weight.device, weight.dtype):
        pack_linears(model)
    elif weight.device.type == "cuda":
        choice = KernelChoice()
        fuse(model.decoder, choice, is_whole=model.decoder.config == model.config.decoder)
        fuse_vision(model.vision, choice)
    return model
