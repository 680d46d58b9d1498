"""A run's records for TensorBoard and Weights & Biases, where a recipe asks for them."""

from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from internvl2.train.monitoring.log import Sink, StepRecord, ValidationRecord
from internvl2.train.recipe import Recipe


def require_trackers(recipe: Recipe) -> None:
    """Finds out, before anything is loaded, whether the packages are there."""
    wanted = {"tensorboard": recipe.tensorboard, "wandb": recipe.wandb is not None}
    for package in (package for package, asked in wanted.items() if asked):
        spec = find_spec(package)
        if spec is None or spec.origin is None:  # a mere folder of that name has no origin
            raise ValueError(
                f"the recipe asks for {package}, which is not installed: "
                f"pip install 'internvl2[{package}]'"
            )


def open_trackers(recipe: Recipe, folder: Path, done: int) -> tuple[Sink, ...]:
    """What the recipe asks for, for a run that goes on after `done` steps."""
    trackers: list[Sink] = []
    if recipe.tensorboard:
        trackers.append(TensorBoard(folder, done))
    if recipe.wandb is not None:
        trackers.append(Wandb(recipe, recipe.wandb, folder, done))
    return tuple(trackers)


class TensorBoard:
    """Event files in the run's folder."""

    def __init__(self, folder: Path, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Steps that are done again have their first values hidden.
        self._writer = SummaryWriter(folder / "tensorboard", purge_step=done + 1, flush_secs=10)

    def step(self, record: StepRecord) -> None:
        """Writes a step down."""
        self._write(_of_step(record), record.step)

    def validation(self, record: ValidationRecord) -> None:
        """Writes a validation down."""
        self._write(_of_validation(record), record.step)

    def close(self, *, failed: bool) -> None:
        """Writes the rest; how a run ended is nothing that TensorBoard knows."""
        self._writer.close()

    def _write(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)


class Wandb:
    """A run of Weights & Biases; online or offline as its own environment says (WANDB_MODE)."""

    def __init__(self, recipe: Recipe, project: str, folder: Path, done: int) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        kept = folder / "wandb-run-id"
        begun = kept.read_text(encoding="utf-8") if done and kept.exists() else None
        try:
            self._run = wandb.init(
                project=project,
                name=folder.resolve().name,
                id=begun,
                resume=None if begun is None else "allow",
                dir=folder,
                config=asdict(recipe),
                allow_val_change=True,  # a resumed run may have another learning rate, for example
            )
        except wandb.Error as error:
            raise ValueError(f"wandb did not begin: {error}") from error
        kept.write_text(self._run.id, encoding="utf-8")

    def step(self, record: StepRecord) -> None:
        """Sends a step; one that was sent before a resume stays as it is there."""
        self._send(_of_step(record), record.step)

    def validation(self, record: ValidationRecord) -> None:
        """Sends a validation, beside its step."""
        self._send(_of_validation(record), record.step)

    def close(self, *, failed: bool) -> None:
        """Waits until everything is sent; the run is finished or failed there."""
        self._run.finish(exit_code=int(failed))

    def _send(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)


def _of_step(record: StepRecord) -> dict[str, float]:
    """Each number of a step under a name of its own."""
    values = asdict(record)
    norms = values.pop("grad_norm")
    values |= {f"grad_norm/{part}": norm for part, norm in norms.items()}
    return {
        f"train/{name}": value
        for name, value in values.items()
        if name != "step" and value is not None
    }


def _of_validation(record: ValidationRecord) -> dict[str, float]:
    return {f"validation/{name}": score for name, score in record.scores.items()}
