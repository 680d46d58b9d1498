"""What a training run is: the dataclass tree that a TOML file fills, read strictly."""

import difflib
import tomllib
from dataclasses import dataclass, field, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Literal

from internvl2.config import DTypeName
from internvl2.train.recipe_data import DataSource, Packing, Synthetic, require, require_from
from internvl2.train.recipe_file import fill, lines

MOST_VALIDATED = 1_000_000
"""All samples of a validation are looked at each time."""


@dataclass(frozen=True, slots=True)
class Freeze:
    """Which parts keep their weights; one with adapters keeps them whatever is said here."""

    vision: bool = True
    """The vision tower."""
    projector: bool = False
    """What joins the vision tower to the decoder."""
    decoder: bool = False
    """Embedding and layers of the language model."""
    head: bool | None = None
    """The last linear map of the language model; frozen with the decoder, also with one that has
    adapters, unless given."""
    vision_last: int = 0
    """So many last layers of a frozen vision tower are trained all the same."""

    def __post_init__(self) -> None:
        require_from(0, "freeze.vision_last", self.vision_last)

    @property
    def freezes_head(self) -> bool:
        """Whether the head keeps its weights."""
        return self.decoder if self.head is None else self.head


@dataclass(frozen=True, slots=True)
class Lora:
    """Adapters: products of two narrow matrices, learned beside the matrices of frozen layers."""

    decoder_rank: int = 0
    """Width of the decoder's adapters; 0 for none. The decoder then trains nothing else."""
    vision_rank: int = 0
    """The same for the vision tower."""
    alpha: float | None = None
    """Adapters count alpha / rank times; twice the rank unless given."""
    dropout: float = 0.05
    """Share of an adapter's inputs that a training step leaves out."""
    dora: bool = False
    """Also learn the length of every row of the adapted matrices (DoRA, 2402.09353)."""
    rslora: bool = False
    """Adapters count alpha / root of rank times (2312.03732)."""

    def __post_init__(self) -> None:
        require_from(0, "lora.decoder_rank", self.decoder_rank)
        require_from(0, "lora.vision_rank", self.vision_rank)
        above = self.alpha is None or self.alpha > 0
        require(above, "lora.alpha", self.alpha, "above 0")
        require(0 <= self.dropout < 1, "lora.dropout", self.dropout, "from 0 to below 1")
        if not self.is_used and any(getattr(self, f.name) != f.default for f in fields(self)):
            raise ValueError(
                "lora has values but no adapters; give lora.decoder_rank or lora.vision_rank"
            )

    @property
    def is_used(self) -> bool:
        """Whether any part has adapters."""
        return self.decoder_rank + self.vision_rank > 0


@dataclass(frozen=True, slots=True)
class Optimizer:
    """How gradients change weights."""

    name: Literal["adamw", "muon"] = "adamw"
    """muon: orthogonalised momentum for the layers' matrices, AdamW for everything else."""
    learning_rate: float = 4e-5
    """The highest rate of the schedule."""
    weight_decay: float = 0.01
    """Pull towards 0; norms, biases and position embeddings have none."""
    betas: tuple[float, float] = (0.9, 0.999)
    """How slowly the averages of the gradient and of its square forget."""
    eps: float = 1e-8
    """Added to the root of the squares' average."""
    moments: Literal["fp32", "8bit"] = "fp32"
    """Format of AdamW's averages; 8bit takes a quarter of the memory."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm."""
    vision_rate: float = 1.0
    """Factor on the learning rate of the vision tower."""
    projector_rate: float = 1.0
    """Factor on the learning rate of the projector."""
    decoder_rate: float = 1.0
    """Factor on the learning rate of the decoder."""
    layer_decay: float = 1.0
    """Factor on the learning rate per vision layer, counted down from the last one."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "eps", "max_grad_norm", "layer_decay"):
            require(getattr(self, name) > 0, f"optimizer.{name}", getattr(self, name), "above 0")
        for name in ("weight_decay", "vision_rate", "projector_rate", "decoder_rate"):
            require_from(0, f"optimizer.{name}", getattr(self, name))
        require(len(self.betas) == 2, "optimizer.betas", self.betas, "two numbers")
        for beta in self.betas:
            require(0 <= beta < 1, "optimizer.betas", self.betas, "from 0 to below 1")


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long a run is, and how its learning rate goes."""

    kind: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the way from the highest rate to 0 (constant: it stays)."""
    warmup_ratio: float = 0.03
    """Share of the steps in which the rate rises from 0."""
    epochs: float = 1.0
    """Passes through the data."""
    max_steps: int | None = None
    """So many steps instead, whatever the passes."""

    def __post_init__(self) -> None:
        require(
            0 <= self.warmup_ratio < 1, "schedule.warmup_ratio", self.warmup_ratio, "from 0 to 1"
        )
        require(self.epochs > 0, "schedule.epochs", self.epochs, "above 0")
        require_from(1, "schedule.max_steps", self.max_steps)


@dataclass(frozen=True, slots=True)
class Recompute:
    """Share of the layers whose activations are computed again going back: memory for time."""

    vision: float = 1.0
    """Of the vision tower, where it is trained."""
    decoder: float = 1.0
    """Of the language model."""

    def __post_init__(self) -> None:
        for name in ("vision", "decoder"):
            share = getattr(self, name)
            require(0 <= share <= 1, f"recompute.{name}", share, "from 0 to 1")


@dataclass(frozen=True, slots=True)
class Validation:
    """What is measured while training, on data that is not trained on."""

    data: tuple[DataSource, ...] = ()
    """Sets whose loss is measured."""
    synthetic: tuple[Synthetic, ...] = ()
    """Drawn samples whose loss is measured, of words and faces that training never has; give
    `samples`."""
    questions: str | None = None
    """A file as for `internvl2 eval`, whose questions the model answers."""
    metrics: tuple[str, ...] = ("exact_match",)
    """How those answers are scored."""
    every: int = 200
    """Steps between two measurements; one more at the end."""
    stop_metric: str = "loss"
    """What `best` and `stop_after` go by: loss, or one of `metrics`."""
    stop_after: int | None = None
    """End the run after so many measurements in a row without a better value."""

    def __post_init__(self) -> None:
        require_from(1, "validation.every", self.every)
        require_from(1, "validation.stop_after", self.stop_after)
        measured = ("loss",) * self.is_measured
        measured += self.metrics if self.questions else ()
        if self.stop_after is not None or self.stop_metric != "loss":
            what = f"one of {', '.join(measured)}" if measured else "measured: give validation.data"
            require(self.stop_metric in measured, "validation.stop_metric", self.stop_metric, what)
        for drawn in self.synthetic:
            few = drawn.samples <= MOST_VALIDATED
            require(few, "validation.synthetic.samples", drawn.samples, f"<= {MOST_VALIDATED}")

    @property
    def is_measured(self) -> bool:
        """Whether there is data whose loss is measured."""
        return bool(self.data or self.synthetic)


@dataclass(frozen=True, slots=True)
class Guard:
    """How far answers may move away from those of the model that the run began with."""

    data: tuple[DataSource, ...] = ()
    """Sets on which both models are compared; without any nothing is."""
    every: int = 200
    """Steps between two comparisons; one more at the end."""
    top_k: int = 64
    """So many of the likeliest tokens at each place are kept of the first model."""
    max_kl: float | None = None
    """End the run when the divergence passes this; None only tells it."""

    def __post_init__(self) -> None:
        require_from(1, "guard.every", self.every)
        require_from(1, "guard.top_k", self.top_k)
        require(self.max_kl is None or self.max_kl > 0, "guard.max_kl", self.max_kl, "above 0")
        if self.max_kl is not None and not self.data:
            raise ValueError(f"guard.max_kl is {self.max_kl}, but there is no guard.data to ask")


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole training run."""

    model: str
    """Directory of a checkpoint, hub id or short name."""
    output: str = "runs/train"
    """Folder of the run: metrics, checkpoints, and in the end the trained model."""
    data: tuple[DataSource, ...] = ()
    """The mixture to train on."""
    synthetic: tuple[Synthetic, ...] = ()
    """Drawn samples that join it."""
    freeze: Freeze = field(default_factory=Freeze)
    lora: Lora = field(default_factory=Lora)
    quantize: Literal["nf4"] | None = None
    """Keep the decoder's frozen matrices in 4 bits (QLoRA, 2305.14314); beside adapters alone."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    packing: Packing = field(default_factory=Packing)
    validation: Validation = field(default_factory=Validation)
    guard: Guard = field(default_factory=Guard)
    feature_cache: str | None = None
    """Folder in which what a frozen vision tower makes of each tile is kept, so that later epochs
    and runs do not run it; about 2 MB a tile, 6.5 MB with the 6B tower."""
    packs_per_step: int = 32
    """Packs between two changes of the weights, over all processes together."""
    max_tiles: int = 6
    """Most tiles that the pictures of a sample are cut into, thumbnails not counted."""
    min_tiles: int | None = None
    """Fewest tiles that a picture is cut into, also for who uses the trained model; the
    checkpoint's unless given. A picture whose share of the most is smaller has that."""
    tile_size: int | None = None
    """Side of a tile in pixels, also for who uses the trained model; the checkpoint's unless given.
    Position embeddings are interpolated where it is not the vision tower's own."""
    preprocess: Literal["exact", "fast", "rough"] = "exact"
    """How pictures are resized: as Pillow does it, or faster, with nearly all or most values equal;
    rough is for drawn pictures, of which a core then makes twice as many as with exact."""
    drop_path: float = 0.0
    """Stochastic depth of the last vision layer, where vision layers are trained."""
    from_scratch: bool = False
    """Random weights in the model's shape instead of the checkpoint's."""
    shard: bool = False
    """Weights, gradients and optimizer state are divided over the processes (FSDP2)."""
    recompute: Recompute = field(default_factory=Recompute)
    compile: bool | None = None
    """Compile layers and optimizer, which takes half a minute; CUDA devices do unless told."""
    dtype: DTypeName | None = None
    """Number format of weights and arithmetic; the checkpoint's where the device is good at it."""
    device: str | None = None
    """cpu, cuda, npu or mps; the best one there is unless given."""
    seed: int = 0
    """Decides order, packs, random weights and stochastic depth."""
    deterministic: bool = False
    """Only kernels that give the same bits each time."""
    workers: int = 4
    """Processes per GPU that decode and encode samples; 0 does it between the steps."""
    skip_bad_samples: int = 0
    """So many unreadable samples are left out and written down before the run stops."""
    save_every: int = 200
    """Steps between two checkpoints; one more at the end."""
    keep: int = 2
    """How many of the last checkpoints stay."""
    layout: Literal["opengvlab", "hf", "paddlemix"] = "opengvlab"
    """Layout of the trained model."""
    tensorboard: bool = False
    """Also write the records for TensorBoard, into the folder `tensorboard` of the run."""
    wandb: str | None = None
    """Project of Weights & Biases that the records are also sent to."""

    def __post_init__(self) -> None:
        require(self.wandb != "", "wandb", '""', "the name of a project")
        for name in ("packs_per_step", "max_tiles", "min_tiles", "tile_size", "save_every", "keep"):
            require_from(1, name, getattr(self, name))
        least = f"at most max_tiles, which is {self.max_tiles}"
        require((self.min_tiles or 1) <= self.max_tiles, "min_tiles", self.min_tiles, least)
        for name in ("workers", "skip_bad_samples"):
            require_from(0, name, getattr(self, name))
        require(0 <= self.drop_path < 1, "drop_path", self.drop_path, "from 0 to below 1")
        _require_sound_adapters(self)
        _require_tiles_that_come_again(self)

    @property
    def kept(self) -> Freeze:
        """Which parts' own weights stay as they are: those of `freeze`, and the adapted ones."""
        return replace(
            self.freeze,
            vision=self.freeze.vision or self.lora.vision_rank > 0,
            decoder=self.freeze.decoder or self.lora.decoder_rank > 0,
        )

    @classmethod
    def read(cls, name: str | Path) -> "Recipe":
        """The recipe in a file, or the package's own of that name."""
        path = _find(str(name))
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: {error}") from None
        return fill(cls, table, str(path))

    def write(self, path: Path) -> None:
        """Every value of the recipe as a TOML file that `read` gives back."""
        path.write_text("\n".join(lines(self)) + "\n", encoding="utf-8")


def names() -> list[str]:
    """The package's own recipes."""
    folder = files("internvl2").joinpath("recipes")
    return sorted(
        file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml")
    )


def _find(name: str) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    if path.suffix == ".toml" or len(path.parts) > 1:
        raise FileNotFoundError(f"there is no recipe file {name}")
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"unknown recipe {name!r};{hint} known: {', '.join(known)}, or the path of a TOML file"
        )
    return Path(str(files("internvl2").joinpath("recipes", f"{name}.toml")))


def _require_tiles_that_come_again(recipe: Recipe) -> None:
    """Features can be kept where the same tower sees the same tiles."""
    if recipe.feature_cache is None:
        return
    freeze, lora = recipe.freeze, recipe.lora
    reasons = {
        "an empty name": recipe.feature_cache == "",
        "freeze.vision = false": not freeze.vision,
        f"freeze.vision_last = {freeze.vision_last}": freeze.vision_last > 0,
        f"lora.vision_rank = {lora.vision_rank}": lora.vision_rank > 0,
        "[[synthetic]] data": bool(recipe.synthetic),
        "data.augment = true": any(source.augment for source in recipe.data),
    }
    if wrong := [name for name, is_so in reasons.items() if is_so]:
        raise ValueError(
            f"feature_cache does not go with {wrong[0]}: it keeps in a folder what a frozen "
            "vision tower makes of pictures that come again pixel by pixel"
        )


def _require_sound_adapters(recipe: Recipe) -> None:
    """Adapters have a stored base, and nothing is both quantised and trained."""
    lora, freeze = recipe.lora, recipe.freeze
    if lora.is_used and recipe.from_scratch:
        raise ValueError("lora and from_scratch exclude each other: adapters need a stored model")
    if lora.is_used and recipe.layout != "opengvlab":
        raise ValueError(
            f"layout is {recipe.layout!r}, but a run with adapters stores these alone; "
            "`internvl2 convert` writes the whole model in any layout"
        )
    for name in ("tile_size", "min_tiles"):
        if lora.is_used and getattr(recipe, name) is not None:
            raise ValueError(
                f"{name} is {getattr(recipe, name)}, but a run with adapters stores these alone, "
                f"and who uses them cuts pictures as the base says: leave {name} out"
            )
    if lora.vision_rank and freeze.vision_last:
        raise ValueError(
            f"lora.vision_rank is {lora.vision_rank} and freeze.vision_last is "
            f"{freeze.vision_last}; a tower with adapters trains nothing else: give one of them"
        )
    if recipe.quantize and not recipe.kept.decoder:
        raise ValueError(
            f"quantize is {recipe.quantize!r}, but the decoder's own weights are trained; give "
            "lora.decoder_rank, or freeze.decoder = true"
        )
    if recipe.quantize and not lora.is_used:
        raise ValueError(
            f"quantize is {recipe.quantize!r}, but nothing has adapters; a model trained without "
            "them is stored whole: give lora.decoder_rank or lora.vision_rank, or leave it out"
        )
