"""Weights divided over the processes of a run (FSDP2): each holds some rows of every tensor.

Gradients and optimizer state follow the weights. What works on rows works on `local` tensors;
what needs a whole tensor asks for it, in every process at the same place.
"""

from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from internvl2 import device as devices
from internvl2.train.parallel import World
from internvl2.train.step_loss import PackLoss


def shard(loss: PackLoss, world: World) -> None:
    """Divide a model, layer by layer; what no layer holds is gathered for a whole pack.

    Gradients are summed in fp32 and divided by nothing: the loss is a share of the mean over all
    processes already. Only sums travel, for not every backend has means.
    """
    mesh = init_device_mesh(world.device.type, (world.size,))
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for module in (*loss.model.vision.layers, *loss.model.decoder.layers, loss):
        divided = fully_shard(module, mesh=mesh, mp_policy=policy)
        assert isinstance(divided, FSDPModule)
        divided.set_gradient_divide_factor(1.0)
        divided.set_force_sum_reduction_for_comms(True)
    for method in ("read", "tile_features"):
        register_fsdp_forward_method(loss, method)


def is_divided(loss: nn.Module) -> bool:
    """Whether processes hold parts of the weights, so that all must run the same layers."""
    return isinstance(loss, FSDPModule)


def release(loss: PackLoss) -> None:
    """Let go of what was gathered for packs that no backward pass followed."""
    if isinstance(loss, FSDPModule):
        loss.reshard()


@torch.no_grad()
def local(tensor: Tensor) -> Tensor:
    """The rows that this process holds: a view, and all of them where nothing is divided."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """All rows; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def own_rows(tensor: Tensor, like: Tensor) -> Tensor:
    """Of a whole tensor, the rows that this process holds of `like`."""
    if not isinstance(like, DTensor):
        return tensor
    size = like.device_mesh.size()
    rows = -(-len(like) // size)  # as `torch.chunk` divides: the last ones may have fewer or none
    return tensor[like.device_mesh.get_local_rank() * rows :][:rows]


def divided(rows: Tensor, like: Tensor) -> Tensor:
    """Rows of this process as part of a whole that is divided as `like` is."""
    if not isinstance(like, DTensor) or not rows.ndim:
        return rows
    shape = torch.Size((len(like), *rows.shape[1:]))
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        rows, like.device_mesh, like.placements, run_check=False, shape=shape, stride=stride
    )


def empty_rows(shape: torch.Size, dtype: torch.dtype, like: Tensor) -> Tensor:
    """Room for what this process holds of a tensor that has as many rows as `like`.

    A single number is no part of a device's work and stays on the host.
    """
    if not shape:
        return torch.empty((), dtype=dtype)
    return torch.empty((len(local(like)), *shape[1:]), dtype=dtype, device=like.device)


def own_parts(
    model: nn.Module, weights: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """Of whole weights, what this process holds of each."""
    parameters = dict(model.named_parameters())
    return ((name, own_rows(tensor, parameters[name])) for name, tensor in weights)


def squared_lengths(tensors: list[Tensor]) -> Tensor:
    """Sum of each tensor's squares, in fp32 on the device; every process must ask."""
    rows = [local(tensor) for tensor in tensors]
    lengths = torch._foreach_norm(rows, 2, torch.float32)  # pyright: ignore[reportPrivateImportUsage]
    squares = torch.stack(lengths).square()
    if isinstance(tensors[0], DTensor):
        dist.all_reduce(squares, group=tensors[0].device_mesh.get_group())
    return squares


def gather(
    tensors: Iterable[tuple[str, Tensor]], device: torch.device | str, *, keep: bool
) -> dict[str, Tensor]:
    """Whole weights by name in the processes that `keep` them.

    Divided ones are gathered onto `device` one after the other, the others stay as they are.
    """
    kept = {}
    for name, part in tensors:
        tensor = whole(part)
        if keep:
            kept[name] = tensor.to(device) if isinstance(part, DTensor) else tensor
    return kept


def require_room(model: nn.Module, world: World) -> None:
    """Raise, in every process, when the whole model would not fit on the first one's device."""
    needed = sum(p.numel() * p.element_size() for p in model.parameters())
    free = devices.free_memory(world.device) if world.is_first else 0
    free = int(world.sum([free])[0])
    if needed > free:
        raise ValueError(
            f"answers in validation need the whole model, {needed} bytes, on the first process's "
            f"device, which has {free} free; leave out validation.questions"
        )
