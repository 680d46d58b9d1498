"""How long one product of a decoder takes, in bf16 and in fewer bits, when a token is written.

Weights are read anew for every product, as in a model: there are so many copies of them that the
device's cache cannot hold them all, and each is used in turn. The share is that of the bytes of
weights and scales in what the device copies in the same time, measured in the same run.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from internvl2 import device as devices
from internvl2.config import DecoderConfig, Quantization
from internvl2.engine.graphs import CallAgain, CudaRecorder, Graphs
from internvl2.family import find
from internvl2.model.kernel_choice import KernelChoice
from internvl2.model.low_bit import LINEARS, require_quantization, stored_bytes
from internvl2.model.low_bit_plans import plan_products
from internvl2.model.packed import can_pack, pack_linears

ROWS = (1, 8, 64)
COPIED_BYTES = {"cuda": 2**30, "cpu": 2**26}
CACHES = 4
"""So many times the device's cache is what the copies of weights take."""
MOST_COPIES = 64
HEADER = """\
| member | product | outputs x inputs | tokens | numbers | us | share of bandwidth | times plain |
|---|---|---|---|---|---|---|---|"""


@dataclass(frozen=True)
class Shape:
    """One matrix of a decoder's layers, maps of the same states joined."""

    name: str
    outputs: int
    inputs: int
    has_bias: bool


@dataclass(frozen=True)
class Product:
    """How fast one product was."""

    member: str
    shape: Shape
    rows: int
    scheme: str
    us: float
    share: float
    """Of the device's bandwidth, 0 to 1."""
    ratio: float
    """Of the plain product's time to this one's."""

    def row(self) -> str:
        """A line of the table."""
        size = f"{self.shape.outputs} x {self.shape.inputs}"
        cells = [self.member, self.shape.name, size, str(self.rows), self.scheme]
        cells += [f"{self.us:.1f}", f"{self.share:.0%}", f"{self.ratio:.2f}"]
        return f"| {' | '.join(cells)} |"


@dataclass(frozen=True)
class Bench:
    """Where and how often products are timed."""

    device: torch.device
    dtype: torch.dtype
    rounds: int
    choice: KernelChoice

    def products(
        self, members: Sequence[str], schemes: Sequence[Quantization]
    ) -> Iterator[Product]:
        """Every product of the members, plain first, as each is known."""
        bandwidth = self.bandwidth()
        for member in members:
            for shape in shapes(find(member).config.decoder):
                yield from self._compared(member, shape, schemes, bandwidth)

    def bandwidth(self) -> float:
        """Bytes a second that a large copy reads and writes."""
        size = COPIED_BYTES.get(self.device.type, COPIED_BYTES["cpu"])
        source, target = torch.ones(2, size, dtype=torch.uint8, device=self.device)
        return 2 * size / self._seconds("a copy", lambda: target.copy_(source))

    @torch.inference_mode()
    def _compared(
        self, member: str, shape: Shape, schemes: Sequence[Quantization], bandwidth: float
    ) -> Iterator[Product]:
        plain = str(self.dtype).removeprefix("torch.")
        seconds: dict[tuple[str, int], float] = {}
        for scheme in (None, *schemes):
            if scheme is not None and not self._has(scheme):
                continue
            name = scheme or plain
            maps, size = self._maps(shape, scheme)
            for rows in ROWS:
                x = torch.randn(rows, shape.inputs, dtype=self.dtype, device=self.device)
                took = self._seconds(f"{shape.name} in {name}", lambda m=maps, x=x: each(m, x))
                seconds[name, rows] = took / len(maps)
                share = size / seconds[name, rows] / bandwidth
                ratio = seconds[plain, rows] / seconds[name, rows]
                us = 1e6 * seconds[name, rows]
                yield Product(member, shape, rows, name, us, share, ratio)

    def _maps(self, shape: Shape, scheme: Quantization | None) -> tuple[nn.ModuleList, int]:
        """Copies of a map, each with random weights of its own, and the bytes of one."""
        maps = nn.ModuleList([self._map(shape, scheme)])
        size = stored_bytes(maps)
        maps += [self._map(shape, scheme) for _ in range(self._copies(size) - 1)]
        if can_pack(self.device, self.dtype):
            pack_linears(maps)
        plan_products(maps, self.choice)
        return maps, size

    def _map(self, shape: Shape, scheme: Quantization | None) -> nn.Module:
        size = {"bias": shape.has_bias, "device": self.device, "dtype": self.dtype}
        linear = nn.Linear(shape.inputs, shape.outputs, **size).requires_grad_(False)
        return linear if scheme is None else LINEARS[scheme](linear.weight, linear.bias)

    def _copies(self, size: int) -> int:
        if self.device.type != "cuda":
            return 1
        cache = torch.cuda.get_device_properties(self.device).L2_cache_size
        return min(MOST_COPIES, 1 + CACHES * cache // size)

    def _has(self, scheme: Quantization) -> bool:
        try:
            require_quantization(scheme, self.device, self.dtype)
        except ValueError:
            return False
        return True

    def _seconds(self, name: str, work: Callable[[], object]) -> float:
        return 1e-3 * milliseconds(repeated(name, work, self.device), self.device, self.rounds)


def shapes(config: DecoderConfig) -> list[Shape]:
    """The products of one layer, as they are computed on a CUDA device."""
    dim, inner = config.hidden_size, config.intermediate_size
    width, kv_width = (n * config.head_dim for n in (config.num_heads, config.num_kv_heads))
    return [
        Shape("queries, keys, values", width + 2 * kv_width, dim, config.qkv_bias),
        Shape("attention's output", dim, width, has_bias=False),
        Shape("gate and up", 2 * inner, dim, has_bias=False),
        Shape("down", dim, inner, has_bias=False),
    ]


def each(maps: nn.ModuleList, x: Tensor) -> None:
    """The same product with every copy."""
    for one in maps:
        one(x)


def repeated(name: str, work: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """What repeats the work: a CUDA graph where there is one, as when an answer is written."""

    def run() -> None:
        work()

    recorder = CudaRecorder(device) if device.type == "cuda" else CallAgain()
    return Graphs(recorder).ready(name, run)


def milliseconds(work: Callable[[], object], device: torch.device, rounds: int) -> float:
    """The median time."""
    times = []
    work()
    for _ in range(rounds):
        devices.synchronize(device)
        started = time.perf_counter()
        work()
        devices.synchronize(device)
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)
