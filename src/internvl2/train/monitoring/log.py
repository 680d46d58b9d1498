"""What a run tells: a line and a record per step, and in the end a picture of its curves."""

import json
import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from internvl2 import console

if TYPE_CHECKING:
    from matplotlib.axes import Axes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepRecord:
    """One change of the weights, over all processes."""

    step: int
    loss: float
    """Weighted mean over the step's learned tokens."""
    learning_rate: float
    grad_norm: dict[str, float]
    """Before clipping, per part and in `total`."""
    tokens: int
    """Real ones, without padding."""
    tiles: int
    samples: int
    seconds: float
    """From asking for data to changed weights; measuring and saving come after it."""
    tokens_per_second: float
    tiles_per_second: float
    data_wait: float
    """Seconds of those that the first process waited for data."""
    memory_gib: float
    """Highest memory that the first process reserved on its device, or took of a CPU's."""
    tflops_vision: float
    """Arithmetic per second and process, in 10^12."""
    tflops_decoder: float
    mfu: float | None = None
    """Share of the measured speed of large matrix products; None where that is not measured."""
    mfu_vision: float | None = None
    """What of that share the vision tower and the projector have."""
    mfu_decoder: float | None = None
    """The rest of it."""

    def line(self, total: int | None, left: float | None = None) -> str:
        """The record for people, with the seconds that the rest of the run takes."""
        parts = ", ".join(
            f"{name} {norm:.3g}" for name, norm in self.grad_norm.items() if name != "total"
        )
        mfu = "" if self.mfu is None else f"  mfu {self.mfu:.1%}"
        if self.mfu_vision is not None and self.mfu_decoder is not None:
            mfu += f" (vision {self.mfu_vision:.1%}, decoder {self.mfu_decoder:.1%})"
        return (
            f"step {self.step}{'' if total is None else f'/{total}'}  loss {self.loss:.4f}  "
            f"rate {self.learning_rate:.3g}  gradient {self.grad_norm['total']:.3g} ({parts})  "
            f"{self.tokens_per_second:.0f} tokens/s  {self.tiles_per_second:.1f} tiles/s{mfu}  "
            f"{self.memory_gib:.1f} GiB  waited {self.data_wait:.2f} s"
            f"{'' if left is None else f'  {_interval(left)} left'}"
        )

    def brief(self) -> str:
        """What of it fits beside a progress bar."""
        mfu = "" if self.mfu is None else f", mfu {self.mfu:.0%}"
        return (
            f"loss {self.loss:.4f}, gradient {self.grad_norm['total']:.2g}, "
            f"{self.tokens_per_second:.0f} tokens/s{mfu}"
        )


@dataclass(frozen=True)
class ValidationRecord:
    """What was measured on data that is not trained on."""

    step: int
    scores: dict[str, float] = field(default_factory=dict)
    """`loss`, and whatever else was asked for."""


@runtime_checkable
class Sink(Protocol):
    """Somewhere that records go."""

    def step(self, record: StepRecord) -> None:
        """Takes the record of a step."""
        ...

    def validation(self, record: ValidationRecord) -> None:
        """Takes a validation of the last step."""
        ...

    def close(self, *, failed: bool) -> None:
        """Is called once, when the run has ended, well or by an error."""
        ...


class JsonLines:
    """metrics.jsonl: a record per line, each on disk at once."""

    def __init__(self, path: Path, done: int) -> None:
        _drop_after(path, done)
        self._file = path.open("a", encoding="utf-8")

    def step(self, record: StepRecord) -> None:
        """Writes a step down."""
        self._write(record)

    def validation(self, record: ValidationRecord) -> None:
        """Writes a validation down."""
        self._write(record)

    def close(self, *, failed: bool) -> None:
        """Closes the file, however the run ended."""
        self._file.close()

    def _write(self, record: StepRecord | ValidationRecord) -> None:
        self._file.write(json.dumps(asdict(record)) + "\n")
        self._file.flush()


class RunLog:
    """Tells the records of a run, inside `with`; only the first of several processes has one."""

    def __init__(
        self, folder: Path, done: int, total: int | None, trackers: Sequence[Sink] = ()
    ) -> None:
        self.folder, self.done, self.total = folder, done, total
        self._sinks = (JsonLines(folder / "metrics.jsonl", done), *trackers)
        self._bar = console.progress(total, "training", unit="step", initial=done)
        self._started = time.monotonic()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends the bar and all that records go to, and draws the curves."""
        with ExitStack() as ends:
            if not isinstance(error, OSError):  # on a full disk it would hide the first complaint
                ends.callback(draw, self.folder)
            for sink in self._sinks:
                ends.callback(sink.close, failed=error is not None)
            ends.callback(self._bar.close)

    def step(self, record: StepRecord) -> None:
        """Tells a step."""
        for sink in self._sinks:
            sink.step(record)
        if self._bar.disable:
            logger.info("%s", record.line(self.total, self._left(record.step)))
        else:
            self._bar.set_postfix_str(record.brief(), refresh=False)
            self._bar.update(1)

    def validation(self, record: ValidationRecord) -> None:
        """Tells a validation."""
        for sink in self._sinks:
            sink.validation(record)
        scores = "  ".join(f"{name} {score:.4f}" for name, score in record.scores.items())
        logger.info("validation after step %d: %s", record.step, scores)

    def _left(self, step: int) -> float | None:
        """Seconds that the other steps take if they go as those since the start or the resume."""
        if self.total is None:
            return None
        per_step = (time.monotonic() - self._started) / (step - self.done)
        return per_step * max(self.total - step, 0)


def read_records(path: Path) -> tuple[list[StepRecord], list[ValidationRecord]]:
    """The records of a metrics.jsonl, each kind in its order."""
    steps: list[StepRecord] = []
    validations: list[ValidationRecord] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        if "scores" in values:
            validations.append(ValidationRecord(**values))
        else:
            steps.append(StepRecord(**values))
    return steps, validations


def draw(folder: Path) -> Path | None:
    """A PNG of the run's losses, rates and scores.

    None where there is no step, or, with a line that says so, no matplotlib.
    """
    steps, validations = read_records(folder / "metrics.jsonl")
    if not steps:
        return None
    if find_spec("matplotlib") is None:
        logger.info("matplotlib is not installed, so there is no picture of the losses")
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    scores = _series(validations)
    heights = [4.0, 1.5] + [2.5] * any(name != "loss" for name in scores)
    figure = Figure(figsize=(8, sum(heights)), layout="constrained")
    panels = figure.subplots(len(heights), sharex=True, height_ratios=heights)
    _draw_losses(panels[0], steps, scores.pop("loss", []))
    rates = [(record.step, record.learning_rate) for record in steps]
    panels[1].plot(*zip(*rates, strict=True), _style(steps), label="learning rate")
    for name, points in scores.items():
        panels[2].plot(*zip(*points, strict=True), "o-", label=f"validation {name}")
    panels[-1].set_xlabel("step")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in panels:
        axes.legend()
        axes.grid(alpha=0.3)
    FigureCanvasAgg(figure).print_png(str(folder / "loss.png"))
    return folder / "loss.png"


def smoothed(values: Sequence[float]) -> list[float]:
    """A running mean in which older values fade, right from the first one on.

    It lags behind by a twentieth of all values, so that it follows short runs as it does long ones.
    """
    keep = 1 - 1 / max(2.0, len(values) / 20)
    smooth: list[float] = []
    total = weight = 0.0
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        smooth.append(total / weight)
    return smooth


def _draw_losses(
    axes: "Axes", steps: Sequence[StepRecord], measured: Sequence[tuple[int, float]]
) -> None:
    where, losses = [record.step for record in steps], [record.loss for record in steps]
    axes.plot(where, losses, alpha=0.3, label="loss of each step")
    axes.plot(where, smoothed(losses), _style(steps), label="loss, smoothed")
    if measured:
        axes.plot(*zip(*measured, strict=True), "o-", label="validation loss")
    axes.set_ylabel("loss")


def _style(steps: Sequence[StepRecord]) -> str:
    """A line, or the dot of a single step, of which there is no line."""
    return "-" if len(steps) > 1 else "o"


def _series(validations: Sequence[ValidationRecord]) -> dict[str, list[tuple[int, float]]]:
    """Each score's steps and values."""
    series: dict[str, list[tuple[int, float]]] = {}
    for record in validations:
        for name, score in record.scores.items():
            series.setdefault(name, []).append((record.step, score))
    return series


def _interval(seconds: float) -> str:
    """Hours, minutes and seconds as progress bars write them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


def _drop_after(path: Path, done: int) -> None:
    """Takes out the records of steps that will be done again, and a line that was cut off."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            step = json.loads(line)["step"]
        except ValueError:
            continue
        if step <= done:
            kept.append(line + "\n")
    path.write_text("".join(kept), encoding="utf-8")
