"""How fast a run is: tokens, tiles and arithmetic per second, memory, and waiting for data."""

import resource
import sys

import torch

from internvl2.config import InternVLConfig
from internvl2.train.data.loader import Step
from internvl2.train.data.packing import TrainBatch
from internvl2.train.monitoring.flops import NO_ADAPTERS, Flops, pack_flops
from internvl2.train.monitoring.log import StepRecord
from internvl2.train.optimization import Moved
from internvl2.train.parallel import World
from internvl2.train.recipe import Freeze, Lora


class Meter:
    """Makes the records of a run's steps."""

    def __init__(
        self, config: InternVLConfig, freeze: Freeze, world: World, lora: Lora = NO_ADAPTERS
    ) -> None:
        self.config, self.freeze, self.world, self.lora = config, freeze, world, lora
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
        seen, learned = (flops / (seconds * self.world.size) for flops in (vision, decoder))
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
            tflops_vision=seen / 1e12,
            tflops_decoder=learned / 1e12,
            mfu=self._share(seen + learned),
            mfu_vision=self._share(seen),
            mfu_decoder=self._share(learned),
        )

    def _share(self, speed: float) -> float | None:
        """Of the measured speed; None where there is none."""
        return None if self._peak is None else speed / self._peak

    def _flops(self, pack: TrainBatch) -> Flops:
        labelled = len(pack.learned_rows)
        lengths = pack.lengths[: pack.num_samples]
        tiles, known = pack.num_tiles, pack.num_tiles - pack.num_encoded
        return pack_flops(self.config, self.freeze, lengths, tiles, labelled, self.lora, known)


def _memory(device: torch.device) -> int:
    """Most bytes that this process has taken of the device's memory, or of the host's."""
    if device.type == "cpu":
        unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if device.type == "mps":  # tells what is taken now; the allocator gives nothing back on its own
        return torch.mps.driver_allocated_memory()
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
