"""Whether a fused kernel is used: it must run, agree with plain PyTorch and, if asked, be faster.

That is found out on small examples before anything is answered: a choice made while a CUDA graph is
captured, or anew for each step, would cost what the kernel saves. Whoever owns a model on a device
keeps one `KernelChoice` for it. Where a kernel is passed over, one warning says which and why.
"""

import logging
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from internvl2.model.cuda_graphs import GraphStream

Outputs = Tensor | tuple[Tensor, ...]

TOLERANCE: Mapping[torch.dtype, float] = MappingProxyType(
    {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
)
"""Differences that a few roundings explain, as a share of the largest number of the plain path."""
FIRST_CAPABILITY = (8, 0)
"""Of the oldest GPUs that Triton supports; for others its compiler may end the whole process."""
CLEARLY_FASTER = 0.97
"""Share of the plain path's time that a fused kernel may take where it must be faster.

Times of one kernel differ by 1 or 2 % from trial to trial: equals would be chosen by chance.
"""
RUNS, REPEATS = 10, 8
"""Runs in one timed graph, and how often that is replayed."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trial:
    """A fused kernel, the plain path that it replaces, and what both are tried on."""

    name: str
    """What a warning calls the kernel."""
    fused: Callable[..., Outputs]
    """It imports and compiles what it needs when called: what fails then is reported, not raised.
    What it writes in place it must copy first and return."""
    plain: Callable[..., Outputs]
    inputs: tuple[Tensor, ...]
    """Small examples, in shape and type as they will come, on the device."""
    case: Hashable = ()
    """What beside the name and the inputs' types needs a choice of its own, such as a shape."""
    tolerance: float | None = None
    """Largest difference, as a share of the plain path's largest number; None goes by its type."""
    must_be_faster: bool = False
    """Whether it is taken only if clearly faster, both timed as they run within CUDA graphs."""
    other: str = "plain PyTorch"
    """What lines of the log call the plain path: it may be another kernel."""


class KernelChoice:
    """Which fused kernels a model uses, found out once for each."""

    def __init__(self, seconds: Callable[[Callable[[], object]], float] | None = None) -> None:
        self._seconds = seconds or GraphClock().seconds
        self._taken: dict[Hashable, bool] = {}
        self._reported: set[str] = set()

    def prepare(self, trial: Trial) -> bool:
        """Whether the kernel is to be used; tried when first asked, remembered after that.

        To be called before CUDA graphs are captured: a trial reads results back.
        """
        key = (trial.name, trial.case, *((x.device, x.dtype) for x in trial.inputs))
        if key not in self._taken:
            self._taken[key] = self._try(trial)
        return self._taken[key]

    @torch.no_grad()
    def _try(self, trial: Trial) -> bool:
        device = trial.inputs[0].device
        if device.type != "cuda":
            return self._decide(trial, device)
        assert not torch.cuda.is_current_stream_capturing(), f"{trial.name}: chosen too late"
        capability = torch.cuda.get_device_capability(device)
        if capability < FIRST_CAPABILITY:
            fault = (
                f"Triton needs compute capability 8.0 or later, not {capability[0]}.{capability[1]}"
            )
            self._report(trial, fault, device)
            return False
        with torch.cuda.device(device):
            return self._decide(trial, device)

    def _decide(self, trial: Trial, device: torch.device) -> bool:
        expected = trial.plain(*trial.inputs)
        try:
            fault = _difference(trial.fused(*trial.inputs), expected, trial.tolerance)
            if fault is None and trial.must_be_faster:
                return self._is_faster(trial, device)
        except Exception as error:
            # A compiler fails in many ways; none of them should keep a model from answering.
            fault = f"{type(error).__name__}: {error}"
        if fault is not None:
            self._report(trial, fault, device)
        return fault is None

    def _is_faster(self, trial: Trial, device: torch.device) -> bool:
        fused, plain = (
            self._seconds(lambda run=run: run(*trial.inputs)) for run in (trial.fused, trial.plain)
        )
        is_faster = fused <= CLEARLY_FASTER * plain
        taken = "fused" if is_faster else "plain"
        times = f"{fused * 1e6:.1f} us, {trial.other} {plain * 1e6:.1f} us"
        _logger.debug("%s on %s: fused %s; taking the %s path", trial.name, device, times, taken)
        return is_faster

    def _report(self, trial: Trial, fault: str, device: torch.device) -> None:
        """One warning for a kernel, and one alone for a reason that several share."""
        if not self._reported & {trial.name, fault}:
            _logger.warning(
                "the fused kernel for %s is not used on %s, %s computes it: %s",
                trial.name,
                device,
                trial.other,
                fault,
            )
        self._reported |= {trial.name, fault}


class GraphClock:
    """Times runs as they are within CUDA graphs."""

    def __init__(self) -> None:
        self._streams: dict[int, GraphStream] = {}

    def seconds(self, run: Callable[[], object]) -> float:
        """How long one of several runs takes, its operands no longer in the cache."""
        index = torch.cuda.current_device()
        device = torch.device("cuda", index)
        if index not in self._streams:
            self._streams[index] = GraphStream(device, shares_memory=False)
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        others = torch.empty(2 * cache, dtype=torch.uint8, device=device)

        def runs() -> None:
            for _ in range(RUNS):
                others.zero_()
                run()

        def pauses() -> None:
            for _ in range(RUNS):
                others.zero_()

        # What empties the cache takes longer than most kernels.
        whole, between = (self._streams[index].record(work).replay for work in (runs, pauses))
        return (_least_seconds(whole) - _least_seconds(between)) / RUNS


def _least_seconds(repeat: Callable[[], None]) -> float:
    """Of several times the shortest, since whoever else is on the device can but prolong them."""
    times: list[float] = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        repeat()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return min(times) / 1000


def _difference(found: Outputs, expected: Outputs, tolerance: float | None) -> str | None:
    """In what the outcomes differ, None where they agree."""
    pairs = list(zip(_tensors(found), _tensors(expected), strict=True))
    for index, (one, other) in enumerate(pairs):
        place = f"result {index + 1} of {len(pairs)}"
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            kinds = f"{tuple(one.shape)} {one.dtype}, not {tuple(other.shape)} {other.dtype}"
            return f"{place} is {kinds}"
        bound = TOLERANCE.get(other.dtype, 0.0) if tolerance is None else tolerance
        found_numbers, numbers = one.double(), other.double()
        limit = bound * float(numbers.abs().max()) if numbers.numel() else 0.0
        error = float((found_numbers - numbers).abs().max()) if numbers.numel() else 0.0
        if not error <= limit:  # so that NaN is a difference, too
            return f"{place} differs by {error:.3g}, more than the {limit:.3g} of rounding"
    return None


def _tensors(outputs: Outputs) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else outputs
