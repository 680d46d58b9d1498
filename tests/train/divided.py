"""One of several processes: runs recipes, then checks weights of which some process has no row.

`python divided.py PORT,PORT,... FOLDER RECIPE...`; a port for every recipe and one more.
"""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from internvl2 import device as devices
from internvl2.train import step_loss
from internvl2.train.checkpointer import Checkpointer, Progress
from internvl2.train.optimizers.adamw import ExactAdamW
from internvl2.train.parallel import World
from internvl2.train.recipe import Recipe
from internvl2.train.sharding import (
    divided,
    empty_rows,
    gather,
    local,
    own_parts,
    require_room,
    shard,
    squared_lengths,
)
from internvl2.train.trainer import Trainer


def total(model: nn.Module, processor: object, step: int) -> dict[str, float]:
    """Stands for answers: tells whether it was given whole weights."""
    return {"total": sum(p.detach().double().abs().sum().item() for p in model.parameters())}


def run(recipe: Recipe) -> list[list[int]]:
    """What each pack had: tiles, tiles of pictures, tokens, tiles of pictures to be encoded."""
    plain, seen = step_loss.pack_loss, []

    def watched(model, batch, scale):
        seen.append([len(batch.tiles), batch.num_tiles, batch.num_tokens, batch.num_encoded])
        return plain(model, batch, scale)

    step_loss.pack_loss = watched
    Trainer(recipe, total).run()
    step_loss.pack_loss = plain
    return seen


class Few(nn.Module):
    """Tensors of 1 and 3 rows, named as a model's parts."""

    def __init__(self):
        super().__init__()
        self.model = nn.ModuleDict()
        self.model.vision = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(128, 1)])})
        self.model.decoder = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(1, 3)])})
        self.model.decoder.layers = self.model.decoder["layers"]
        self.model.vision.layers = self.model.vision["layers"]

    def read(self, x):
        return self.forward(x)

    def tile_features(self, x):
        return self.forward(x)

    def forward(self, x):
        return self.model.decoder.layers[0](self.model.vision.layers[0](x)).square().sum()


def check_room(model: nn.Module, world: World) -> None:
    """All processes end when the first has no room for the whole model."""
    require_room(model, world)
    devices.free_memory = lambda device: 535 if world.is_first else 10**9
    with pytest.raises(ValueError, match=r"need the whole model, 540 bytes.* has 535 free"):
        require_room(model, world)


def check_few_rows(folder: Path) -> None:
    """A step, whole weights again, and a checkpoint there and back."""
    world = World.join("cpu")
    torch.manual_seed(0)
    alone, parts = Few(), Few()
    weights = {name: p.detach().clone() for name, p in alone.named_parameters()}
    shard(parts, world)
    for (_, rows), p in zip(own_parts(parts, weights.items()), parts.parameters(), strict=True):
        local(p).copy_(rows)
    x = torch.randn(world.size, 4, 128)
    sum(alone(part) for part in x).backward()
    parts(x[world.rank]).backward()
    lengths = [squared_lengths([p.grad for p in m.parameters()]) for m in (alone, parts)]
    torch.testing.assert_close(*lengths)
    optimizers = [ExactAdamW(m.parameters(), moments="8bit") for m in (alone, parts)]
    for optimizer in optimizers:
        optimizer.step()
    gathered = gather(parts.named_parameters(), "cpu", keep=True)
    for name, p in alone.named_parameters():
        torch.testing.assert_close(gathered[name], p.detach())
    state = {
        f"{i}:{key}": (value, p)
        for i, (p, state) in enumerate(optimizers[1].state.items())
        for key, value in state.items()
    }
    checkpointer = Checkpointer(folder, world, 1)
    checkpointer.save(Progress(1, {}), {name: divided(t, p) for name, (t, p) in state.items()})
    checkpointer.finish()
    back = {}

    def places(stored):
        for name, t in stored.items():
            back[name] = empty_rows(t.shape, t.dtype, state[name][1])
        return {name: divided(t, state[name][1]) for name, t in back.items()}

    assert checkpointer.load(places) == Progress(1, {})
    assert all(torch.equal(back[name], t) for name, (t, _) in state.items())
    checkpointer.close()
    check_room(parts, world)
    world.leave()


if __name__ == "__main__":
    *ports, last = sys.argv[1].split(",")
    for port, file in zip(ports, sys.argv[3:], strict=True):
        os.environ["MASTER_PORT"] = port
        seen = run(Recipe.read(file))
        Path(f"{file}.{os.environ['RANK']}").write_text(json.dumps(seen))
    os.environ["MASTER_PORT"] = last
    check_few_rows(Path(sys.argv[2]) / "few")
