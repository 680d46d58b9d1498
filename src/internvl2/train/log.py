"""What a run tells: a line and a record per step, and in the end a picture of its curves."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

from internvl2 import console

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
    tokens_per_second: float
    tiles_per_second: float
    data_wait: float
    """Seconds that the model waited for data."""
    memory_gib: float
    """Highest memory reserved on the device; of the process on a CPU."""
    tflops_vision: float
    """Arithmetic per second and process, in 10^12."""
    tflops_decoder: float
    mfu: float | None = None
    """Share of the device's measured speed of matrix products."""

    def line(self, total: int | None) -> str:
        """The record for people."""
        parts = ", ".join(
            f"{name} {norm:.3g}" for name, norm in self.grad_norm.items() if name != "total"
        )
        mfu = "" if self.mfu is None else f"  mfu {self.mfu:.1%}"
        return (
            f"step {self.step}{'' if total is None else f'/{total}'}  loss {self.loss:.4f}  "
            f"rate {self.learning_rate:.3g}  gradient {self.grad_norm['total']:.3g} ({parts})  "
            f"{self.tokens_per_second:.0f} tokens/s  {self.tiles_per_second:.1f} tiles/s{mfu}  "
            f"{self.memory_gib:.1f} GiB  waited {self.data_wait:.2f} s"
        )


@dataclass(frozen=True)
class ValidationRecord:
    """What was measured on data that is not trained on."""

    step: int
    scores: dict[str, float] = field(default_factory=dict)
    """`loss`, and whatever else was asked for."""


class RunLog:
    """Writes the records of a run; only the first of several processes has one."""

    def __init__(self, folder: Path, done: int, total: int | None) -> None:
        self.path, self.total = folder / "metrics.jsonl", total
        _drop_after(self.path, done)
        self._file = self.path.open("a", encoding="utf-8")
        self._bar = console.progress(total, "training", unit="step")
        self._bar.update(done)

    def step(self, record: StepRecord) -> None:
        """Writes a step down."""
        self._write(record)
        if self._bar.disable:
            logger.info("%s", record.line(self.total))
        else:
            self._bar.set_postfix_str(record.line(None).split("  ", 1)[1].split("  rate")[0])
            self._bar.update(1)

    def validation(self, record: ValidationRecord) -> None:
        """Writes a validation down."""
        self._write(record)
        scores = "  ".join(f"{name} {score:.4f}" for name, score in record.scores.items())
        logger.info("validation after step %d: %s", record.step, scores)

    def close(self) -> None:
        """Closes the file and the bar."""
        self._file.close()
        self._bar.close()

    def _write(self, record: StepRecord | ValidationRecord) -> None:
        self._file.write(json.dumps(asdict(record)) + "\n")
        self._file.flush()


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
    """A PNG of the run's losses; None, and a line that says so, where matplotlib is missing."""
    if find_spec("matplotlib") is None:
        logger.info("matplotlib is not installed, so there is no picture of the losses")
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps, validations = read_records(folder / "metrics.jsonl")
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    losses = [record.loss for record in steps]
    axes.plot([record.step for record in steps], losses, alpha=0.3, label="loss of each step")
    axes.plot([record.step for record in steps], _smoothed(losses), label="loss, smoothed")
    measured = [record for record in validations if "loss" in record.scores]
    if measured:
        where = [record.step for record in measured]
        axes.plot(where, [r.scores["loss"] for r in measured], "o-", label="validation loss")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend()
    axes.grid(alpha=0.3)
    FigureCanvasAgg(figure).print_png(str(folder / "loss.png"))
    return folder / "loss.png"


def _smoothed(values: Sequence[float], keep: float = 0.9) -> list[float]:
    """A running mean in which older values fade, right from the first one on."""
    smooth: list[float] = []
    total = weight = 0.0
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        smooth.append(total / weight)
    return smooth


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
