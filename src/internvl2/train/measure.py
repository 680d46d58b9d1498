"""How fast a run is: tokens, tiles and arithmetic per second, memory, and waiting for data."""

import resource

import torch

from internvl2.config import InternVLConfig
from internvl2.train.flops import Flops, pack_flops
from internvl2.train.loader import Step
from internvl2.train.log import StepRecord
from internvl2.train.optimization import Moved
from internvl2.train.packing import IGNORED, TrainBatch
from internvl2.train.parallel import World
from internvl2.train.recipe import Freeze


class Meter:
    """Makes the records of a run's steps."""

    def __init__(self, config: InternVLConfig, freeze: Freeze, world: World) -> None:
        self.config, self.freeze, self.world = config, freeze, world
        self._peak = _matmul_speed(world.device) if world.device.type == "cuda" else None

    def record(
        self, step: int, loss: float, moved: Moved, packs: Step, seconds: float, waited: float
    ) -> StepRecord:
        """The record of a step that took so many seconds in this process."""
        flops = sum((self._flops(pack) for pack in packs.batches), Flops())
        mine = [
            float(sum(pack.num_tokens for pack in packs.batches)),
            float(sum(pack.num_tiles for pack in packs.batches)),
            float(sum(pack.num_samples for pack in packs.batches)),
            flops.vision,
            flops.decoder,
        ]
        tokens, tiles, samples, vision, decoder = self.world.sum(mine)
        per_second = 1 / (seconds * self.world.size * 1e12)
        speed = (vision + decoder) * per_second
        return StepRecord(
            step=step,
            loss=loss,
            learning_rate=moved.learning_rate,
            grad_norm=moved.norms,
            tokens=int(tokens),
            tiles=int(tiles),
            samples=int(samples),
            seconds=seconds,
            tokens_per_second=tokens / seconds,
            tiles_per_second=tiles / seconds,
            data_wait=waited,
            memory_gib=_memory(self.world.device) / 2**30,
            tflops_vision=vision * per_second,
            tflops_decoder=decoder * per_second,
            mfu=None if self._peak is None else speed * 1e12 / self._peak,
        )

    def _flops(self, pack: TrainBatch) -> Flops:
        labelled = int((pack.labels != IGNORED).sum())
        lengths = pack.lengths[: pack.num_samples]
        return pack_flops(self.config, self.freeze, lengths, pack.num_tiles, labelled)


def _memory(device: torch.device) -> int:
    """Most bytes that the process has taken of the device's memory, or of the host's."""
    if device.type == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return torch.get_device_module(device).max_memory_reserved(device)


def _matmul_speed(device: torch.device) -> float:
    """Operations per second of a large bf16 matrix product: what MFU is a share of."""
    size = 8192
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    times = []
    for _ in range(8):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        torch.mm(a, a)
        end.record()
        torch.cuda.synchronize(device)
        times.append(start.elapsed_time(end) / 1e3)
    del a
    torch.cuda.empty_cache()
    return 2 * size**3 / sorted(times)[len(times) // 2]
