"""Trains a toy in processes that share it by FSDP2 over `hccl`, and alone; prints both as JSON.

`python sharded.py FOLDER`: the shared one is saved there half-way and read again.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as multiprocessing
import torch_npu
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

PROCESSES, STEPS = 2, 4


def toy() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 33), nn.SiLU(), nn.Linear(33, 5))


def batch(step: int, rank: int) -> Tensor:
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(step * PROCESSES + rank))


def trained_alone() -> list[float]:
    model = toy()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    for step in range(STEPS):
        x = torch.cat([batch(step, rank) for rank in range(PROCESSES)])
        loss = model(x).pow(2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def shared(mesh: dist.DeviceMesh) -> nn.Module:
    model = toy().to("npu")
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for part in (model[0], model[2], model):
        fully_shard(part, mesh=mesh, mp_policy=policy)
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.set_force_sum_reduction_for_comms(True)
    return model


def trained_together(rank: int, folder: str) -> list[float]:
    mesh = init_device_mesh("npu", (PROCESSES,))
    model = shared(mesh)
    losses = []
    for step in range(STEPS):
        if step == STEPS // 2:
            dcp.save(get_model_state_dict(model), checkpoint_id=folder)
            model = shared(mesh)
            state = get_model_state_dict(model)
            dcp.load(state, checkpoint_id=folder)
            set_model_state_dict(model, state)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        loss = model(batch(step, rank).to("npu")).pow(2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        total = loss.detach().clone()
        dist.all_reduce(total)
        losses.append(total.item() / PROCESSES)
    return losses


def refused(reduction: dist.ReduceOp.RedOpType) -> str:
    try:
        dist.all_reduce(torch.ones(2, device="npu"), op=reduction)
    except RuntimeError as error:
        return str(error)
    return ""


def collectives(rank: int) -> dict[str, object]:
    own = torch.tensor([rank, rank + 10], device="npu")
    gathered = torch.empty(2 * PROCESSES, dtype=own.dtype, device="npu")
    dist.all_gather_into_tensor(gathered, own)
    part = torch.empty(1, dtype=own.dtype, device="npu")
    dist.reduce_scatter_tensor(part, own)
    on_host = torch.ones(1)
    dist.all_reduce(on_host)
    objects: list[object] = [None] * PROCESSES
    dist.all_gather_object(objects, {"rank": rank})
    dist.broadcast(own, src=1)
    return {
        "gathered": gathered.tolist(),
        "reduced": part.tolist(),
        "on_host": on_host.tolist(),
        "objects": objects,
        "broadcast": own.tolist(),
        "average": refused(dist.ReduceOp.AVG),
    }


def work(rank: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(PROCESSES)}
    torch.npu.set_device(rank)
    store = dist.FileStore(f"{folder}/store", PROCESSES)
    dist.init_process_group("cpu:gloo,npu:hccl", store=store, rank=rank, world_size=PROCESSES)
    found = {"together": trained_together(rank, f"{folder}/state"), "alone": trained_alone()}
    found |= collectives(rank) | {"devices": torch_npu.npu.device_count()}
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    multiprocessing.spawn(work, (sys.argv[1],), nprocs=PROCESSES)
    print(json.dumps([json.loads(Path(sys.argv[1], f"{i}.json").read_text()) for i in range(2)]))
