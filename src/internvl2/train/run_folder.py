"""The folder of a run: its recipe, metrics and checkpoints, in the end a model or adapters."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import reduce
from operator import getitem
from pathlib import Path

from torch import Tensor

from internvl2.checkpoint.lora_writing import Base, Parts, write_adapter
from internvl2.checkpoint.store import save_weights
from internvl2.processing.processor import Processor
from internvl2.train.preparation import adapter_settings
from internvl2.train.recipe import Freeze, Lora, Recipe

FIXED = (
    ("model",),
    ("data",),
    ("synthetic",),
    ("packing",),
    ("packs_per_step",),
    ("max_tiles",),
    ("min_tiles",),
    ("tile_size",),
    ("seed",),
    ("from_scratch",),
    ("quantize",),
    ("guard", "top_k"),
    ("optimizer", "name"),
    ("optimizer", "moments"),
    *(("freeze", f.name) for f in fields(Freeze)),
    *(("lora", f.name) for f in fields(Lora)),
)
"""What decides weights at the start, the order of samples, what is trained, the kind of the
optimizer's state and what the guard keeps; a resumed run must not change it."""
ENDS = ("config.json", "adapter_config.json")
"""Files that make a folder a model or an adapter."""


SCRATCH = ".best."
"""How folders begin in which a best model is written."""
UNFINISHED = ".model"
"""The folder in which the trained model is written."""


class RunFolder:
    """Where a run writes."""

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path, self.recipe = path, recipe

    @property
    def checkpoints(self) -> Path:
        """Everything that a resumed run needs."""
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        """The model with the lowest validation loss."""
        return self.path / "best"

    def open(self) -> None:
        """Makes the folder, or finds out that the run in it can go on; writes the recipe down."""
        written = self.path / "recipe.toml"
        if any((self.path / name).exists() for name in ENDS):
            raise ValueError(f"{self.path} holds a finished model; give another --output")
        if written.exists() and any(self.checkpoints.glob("step-*")):
            self._check(Recipe.read(written))
        elif not written.exists() and self.path.exists() and any(self.path.iterdir()):
            raise ValueError(f"{self.path} is not empty and no run; give another --output")
        self.path.mkdir(parents=True, exist_ok=True)
        self._tidy()
        self.recipe.write(written)

    def save_best(
        self, weights: Mapping[str, Tensor], processor: Processor, base: Base | None
    ) -> None:
        """Puts a model, or adapters of `base`, in the place of the best one."""
        with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=self.path) as scratch:
            fresh = Path(scratch) / "best"
            self._save(weights, processor, base, fresh)
            if self.best.exists():
                self.best.rename(Path(scratch) / "old")
            fresh.rename(self.best)

    def finish(
        self, weights: Mapping[str, Tensor], processor: Processor, base: Base | None
    ) -> None:
        """Puts the trained model, or adapters of `base`, there; what makes it one comes last."""
        partial = self.path / UNFINISHED
        self._save(weights, processor, base, partial)
        files = sorted(partial.iterdir(), key=lambda file: file.name in ENDS)
        for file in files:
            file.rename(self.path / file.name)
        partial.rmdir()

    def _save(
        self,
        weights: Mapping[str, Tensor],
        processor: Processor,
        base: Base | None,
        folder: Path,
    ) -> None:
        if not self.recipe.lora.is_used:
            save_weights(weights, processor.config, processor, folder, self.recipe.layout)
            return
        assert base is not None
        parts = Parts(**adapter_settings(self.recipe.lora))
        write_adapter(weights, processor.config, parts, base, folder)

    def _tidy(self) -> None:
        """Removes what a killed run was about to put in the place of a model."""
        for scratch in (*self.path.glob(UNFINISHED), *self.path.glob(f".{UNFINISHED}.*")):
            shutil.rmtree(scratch)
        for scratch in self.path.glob(f"{SCRATCH}*"):
            before = scratch / "old"
            if before.exists() and not self.best.exists():
                before.rename(self.best)
            shutil.rmtree(scratch)

    def _check(self, begun: Recipe) -> None:
        ours, theirs = json.loads(_text(self.recipe)), json.loads(_text(begun))
        for path in FIXED:
            now, before = reduce(getitem, path, ours), reduce(getitem, path, theirs)
            if now != before:
                raise ValueError(
                    f"the run in {self.path} was begun with {'.'.join(path)} = {before}, "
                    f"now it is {now}; give another --output, or delete the folder"
                )


def _text(recipe: Recipe) -> str:
    return json.dumps(asdict(recipe))
