"""How long the vision tower and projector take for so many tiles: plain, fused, and recorded.

Plain is PyTorch call by call; fused has the kernels that pass their trials on this device; recorded
is what an engine does with a step's new pictures, tiles in the host's memory included. All three on
the same random weights, in turns, and compared: how far the largest numbers are apart.

    python benchmarks/vision.py --model 1b [--device cuda] [--tiles 1 4 13 16 32] [--rounds 10]
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from internvl2 import device as devices
from internvl2.bench.random_weights import shape_of
from internvl2.config import VisionConfig
from internvl2.engine.graphs import CallAgain, CudaRecorder, Graphs
from internvl2.engine.tile_encoder import TileEncoder
from internvl2.model.fused_vision import ATTENTIONS, fuse_vision
from internvl2.model.internvl import InternVL, random_model
from internvl2.model.kernel_choice import KernelChoice

COLUMNS = (
    "tiles",
    "plain, ms",
    "fused, ms",
    "recorded, ms",
    "tiles/s, recorded",
    "TFLOP/s",
    "fused differs by",
    "recorded by",
)


@dataclass(frozen=True)
class Subjects:
    """Three ways through the same tower."""

    plain: InternVL
    fused: InternVL
    recorded: TileEncoder
    device: torch.device

    @classmethod
    def of(cls, name: str, device: torch.device, dtype: torch.dtype, most: int) -> "Subjects":
        """Random weights of a member's tower and projector; of its decoder a single layer."""
        config = shape_of(name)
        config = replace(config, decoder=replace(config.decoder, num_layers=1))
        plain = random_model(config, device=str(device), dtype=dtype)
        fused = deepcopy(plain)
        if device.type == "cuda":
            fuse_vision(fused.vision, KernelChoice())
        recorder = CudaRecorder(device) if device.type == "cuda" else CallAgain()
        encoder = TileEncoder(fused, device, max_tiles=most, graphs=Graphs(recorder))
        return cls(plain, fused, encoder, device)

    def ways(self, tiles: np.ndarray) -> tuple[Callable[[], Tensor], ...]:
        """What is timed, in the order of the columns."""
        on_device = torch.from_numpy(tiles).to(self.device)
        return (
            lambda: self.plain.encode_tiles(on_device),
            lambda: self.fused.encode_tiles(on_device),
            lambda: torch.stack(self.recorded.encode([tiles])),
        )

    def kernels(self) -> str:
        """Which kernels are used."""
        chosen = self.fused.vision.kernels
        names = ("scaled_sum_norm", "biased_gelu", "norm_queries_and_keys")
        used = [name for name in names if getattr(chosen, name) is not None]
        used += [name for name, each in ATTENTIONS.items() if chosen.attend is each.attend]
        return ", ".join(used) or "none"


def milliseconds(work: Callable[[], Tensor], device: torch.device) -> float:
    """Time until the device is done."""
    devices.synchronize(device)
    started = time.perf_counter()
    work()
    devices.synchronize(device)
    return (time.perf_counter() - started) * 1000


def tflop(vision: VisionConfig, num_layers: int, tiles: int) -> float:
    """Of products in the tower's layers."""
    patches, dim = 1 + vision.patches_per_side**2, vision.hidden_size
    linear = 2 * patches * (4 * dim**2 + 2 * dim * vision.intermediate_size)
    return tiles * num_layers * (linear + 4 * patches**2 * dim) / 1e12


@torch.inference_mode()
def measure(subjects: Subjects, count: int, rounds: int) -> str:
    """A line of the table."""
    config = subjects.plain.config
    side = config.tile_size
    tiles = np.random.default_rng(count).integers(0, 256, (count, side, side, 3), np.uint8)
    ways = subjects.ways(tiles)
    for _ in range(2):  # the second run of a size is recorded
        results = [way().float() for way in ways]
    largest = float(results[0].abs().max())
    apart = [float((result - results[0]).abs().max()) / largest for result in results[1:]]
    times = [[milliseconds(way, subjects.device) for way in ways] for _ in range(rounds)]
    plain, fused, recorded = (statistics.median(column) for column in zip(*times, strict=True))
    work = tflop(config.vision, config.used_vision_layers, count)
    cells = [str(count), *(f"{ms:.2f}" for ms in (plain, fused, recorded))]
    cells += [f"{count / recorded * 1000:.0f}", f"{work / recorded * 1000:.1f}"]
    cells += [f"{share:.1e}" for share in apart]
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="1b", help="a short name, such as 1b or internvl2-8b")
    parser.add_argument("--device", help="cuda, cpu; the best there is unless given")
    parser.add_argument("--tiles", type=int, nargs="+", default=[1, 4, 7, 13, 16, 32])
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args(arguments)
    device = devices.pick(given.device)
    dtype = devices.choose_dtype(device, "bfloat16")
    subjects = Subjects.of(given.model, device, dtype, max(given.tiles))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    print(f"{given.model} on {name}, {dtype}, torch {torch.__version__}")
    print(f"kernels: {subjects.kernels()}\n")
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    for count in given.tiles:
        print(measure(subjects, count, given.rounds), flush=True)


if __name__ == "__main__":
    main()
