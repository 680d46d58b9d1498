"""What `training.py` measures: one list of samples, our trainer's step, and transformers' step."""

import gc
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from internvl2 import device as devices
from internvl2.checkpoint.config_files import write_config
from internvl2.checkpoint.layouts import rules
from internvl2.config import InternVLConfig
from internvl2.family import find
from internvl2.model.internvl import InternVL, random_model
from internvl2.model.parallel import compile_layers, recompute_layers
from internvl2.model.vision import normalize
from internvl2.processing.prompt import MediaSpan, Prompt
from internvl2.train.flops import Flops, pack_flops
from internvl2.train.optimization import Optimization
from internvl2.train.optimizer import PARTS, freeze_parts
from internvl2.train.packing import (
    IGNORED,
    PAD_TOKEN,
    Costs,
    Limits,
    Sample,
    TrainBatch,
    Waiting,
    pack_samples,
    plan_packs,
    tile_buckets,
    with_tile_bucket,
)
from internvl2.train.parallel import World
from internvl2.train.preparation import training
from internvl2.train.recipe import Freeze, Recipe, Recompute
from internvl2.train.step_loss import pack_loss

Trained = Literal["all", "frozen"]
"""Everything, or everything but the vision tower."""
TILES_PER_SAMPLE = (1, 3, 4, 5, 6, 7)
TEXT_TOKENS = (60, 260)
LEARNED_SHARE = 0.8
"""Of a sample's text; a tenth of its tokens, since most of them are visual."""
RECOMPUTE = (Recompute(0.0, 0.0), Recompute(0.5, 0.5), Recompute(1.0, 1.0))
"""What our side tries until a step fits into memory."""


def shape(member: str, tiny: bool) -> InternVLConfig:
    """A released shape of InternVL2, or one of its kind for machines without a GPU."""
    config = find(f"internvl2-{member}").config
    if not tiny:
        return config
    vision = replace(
        config.vision,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        intermediate_size=64,
        image_size=64,
        patch_size=8,
    )
    decoder = replace(
        config.decoder,
        vocab_size=512,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        intermediate_size=64,
    )
    return replace(config, vision=vision, decoder=decoder, tile_size=64, image_token_id=500)


@dataclass(frozen=True)
class Work:
    """The samples of one optimizer step, in the packs that our planner made of them."""

    config: InternVLConfig
    limits: Limits
    packs: tuple[tuple[Sample, ...], ...]

    @classmethod
    def make(cls, config: InternVLConfig, packs: int, seed: int = 0) -> "Work":
        """The first packs of a long list of samples, as a run in full swing meets them."""
        smaller = 256 // config.tokens_per_tile
        limits = Limits(tokens=8192 // smaller, tiles=30)
        random = np.random.default_rng(seed)
        tiles = random.choice(TILES_PER_SAMPLE, 32 * packs)
        text = random.integers(*TEXT_TOKENS, 32 * packs) // smaller
        lengths = tiles * config.tokens_per_tile + text
        sizes = [Waiting(i, int(lengths[i]), int(tiles[i])) for i in range(len(tiles))]
        plans = plan_packs(sizes, limits, Costs.of(config))[:packs]
        made = (tuple(_sample(config, sizes[i], seed) for i in plan.samples) for plan in plans)
        return cls(config, limits, tuple(made))

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Of all packs."""
        return tuple(sample for pack in self.packs for sample in pack)

    @property
    def tokens(self) -> int:
        """Tokens of the samples; padding does not count."""
        return sum(len(sample.prompt.token_ids) for sample in self.samples)

    @property
    def tiles(self) -> int:
        """Tiles of the samples."""
        return sum(len(sample.prompt.tiles) for sample in self.samples)

    @property
    def learned(self) -> int:
        """Labelled tokens."""
        return sum(sum(sample.prompt.is_target) for sample in self.samples)

    def flops(self, freeze: Freeze) -> Flops:
        """What a step takes, whoever does it: no padding, no recomputation, labelled rows only."""
        lengths = [len(sample.prompt.token_ids) for sample in self.samples]
        return pack_flops(self.config, freeze, lengths, self.tiles, self.learned)

    def batches(self) -> list[TrainBatch]:
        """The packs as our trainer's loader gives them."""
        buckets = tile_buckets(self.limits.tiles)
        found = []
        for samples in self.packs:
            pack = pack_samples(samples, self.limits.tokens)
            bucket = next(size for size in buckets if size >= pack.num_tiles)
            found.append(TrainBatch.of(with_tile_bucket(pack, self.config.tile_size, bucket)))
        return found


def _sample(config: InternVLConfig, size: Waiting, seed: int) -> Sample:
    """Random words and pixels: a few words, a picture, a question and an answer."""
    image = config.image_token_id
    assert image is not None
    random = np.random.default_rng((seed, size.sample))
    visual = size.tiles * config.tokens_per_tile
    words = random.integers(1, image - 10, size.tokens - visual).tolist()
    ids = [*words[:2], *([image] * visual), *words[2:]]
    learned = int(LEARNED_SHARE * len(words))
    targets = [False] * (len(ids) - learned) + [True] * learned
    side = config.tile_size
    tiles = random.integers(0, 256, (size.tiles, side, side, 3), dtype=np.uint8)
    thumbnail = size.tiles > 1
    span = MediaSpan(2, 2 + visual, 0, size.tiles, size.tiles - thumbnail, 1, thumbnail, b"")
    return Sample(Prompt(ids, targets, tiles, (span,)), f"sample {size.sample}")


@dataclass(frozen=True)
class Timing:
    """Steps of one side at its best setting."""

    setting: str
    seconds: float
    """Median of the timed steps."""
    peak_gib: float
    """Most memory reserved on the GPU, from the optimizer's first step on; 0 without one."""
    loss: float
    """Mean over the labelled tokens in the last step."""
    tried: tuple[str, ...] = ()
    """Other settings, and how they did."""


@dataclass(frozen=True)
class Options:
    """How long to measure, and with what."""

    device: torch.device
    steps: int
    warm_up: int = 3
    compile_ours: bool = True
    compile_theirs: bool = False
    recompute: tuple[Recompute, ...] = RECOMPUTE
    profile: bool = False


def time_ours(work: Work, recipe: Recipe, options: Options) -> Timing:
    """Our trainer's steps, with as little recomputation as fits."""
    tried: list[str] = []
    for recompute in options.recompute:
        setting = (
            f"{recipe.optimizer.moments} moments, "
            f"recompute {recompute.vision:g}/{recompute.decoder:g}"
        )
        try:
            step = _our_step(work, replace(recipe, recompute=recompute), options)
            timing = replace(_timed(step, setting, options), tried=tuple(tried))
            if options.profile:
                print(_profile(step, options.device), flush=True)
            return timing
        except torch.OutOfMemoryError:
            tried.append(f"{setting}: out of memory")
        step = None
        _free(options.device)
    raise MemoryError("; ".join(tried))


def _our_step(work: Work, recipe: Recipe, options: Options) -> Callable[[], Tensor]:
    device = options.device
    model = random_model(work.config, device=str(device), dtype=torch.bfloat16)
    freeze_parts(model, recipe.freeze)
    if options.compile_ours:
        compile_layers(model)
    recompute_layers(model, recipe.recompute.vision, recipe.recompute.decoder)
    optimization = Optimization(model, recipe, compiled=options.compile_ours)
    world = World(0, 1, device)
    batches = work.batches()
    if device.type == "cuda":
        batches = [batch.pin() for batch in batches]
    weight = sum(batch.weight_sum for batch in batches)

    def step() -> Tensor:
        training(model)
        loss = torch.zeros((), device=device)
        for batch in batches:
            share = pack_loss(model, batch.to(device), 1 / weight)
            share.backward()
            loss += share.detach()
        optimization.step(world, 1.0, PARTS)
        return loss

    return step


def time_theirs(work: Work, recipe: Recipe, options: Options) -> Timing:
    """Steps of transformers' model at the fastest of a few settings."""
    side = _Theirs(work, recipe, options)
    return side.best()


@dataclass(frozen=True)
class PaddedBatch:
    """Samples side by side, padded on the right, as transformers' model takes them."""

    arguments: dict[str, Tensor]
    learned: int

    @classmethod
    def of(
        cls, samples: list[Sample], device: torch.device, dtype: torch.dtype = torch.bfloat16
    ) -> "PaddedBatch":
        """Tiles are normalised here, outside of what is timed."""
        longest = max(len(sample.prompt.token_ids) for sample in samples)
        tokens = torch.full((len(samples), longest), PAD_TOKEN)
        labels = torch.full((len(samples), longest), IGNORED)
        for row, sample in enumerate(samples):
            ids = torch.tensor(sample.prompt.token_ids)
            learned = torch.tensor(sample.prompt.is_target)
            tokens[row, : len(ids)] = ids
            labels[row, : len(ids)] = ids.where(learned, IGNORED)
        tiles = np.concatenate([sample.prompt.tiles for sample in samples])
        pixels = normalize(torch.from_numpy(tiles).to(device), dtype)
        # No attention mask: with the padding on the right a causal one is enough, and SDPA then
        # takes its flash kernel. The same numbers, faster than with the mask.
        arguments = {
            "input_ids": tokens.to(device),
            "labels": labels.to(device),
            "pixel_values": pixels,
        }
        return cls(arguments, int((labels != IGNORED).sum()))


def padded_batches(samples: tuple[Sample, ...], tokens: int) -> list[list[Sample]]:
    """Samples from the longest to the shortest, so many in a batch as `tokens` allow, padded."""
    batches: list[list[Sample]] = []
    room = 0
    for sample in sorted(samples, key=lambda s: -len(s.prompt.token_ids)):
        if room < 1:
            batches.append([])
            room = max(1, tokens // len(sample.prompt.token_ids))
        batches[-1].append(sample)
        room -= 1
    return batches


@dataclass(frozen=True, order=True)
class _Setting:
    share: float
    """Tokens of a micro-batch, of a pack's."""
    checkpointing: bool

    def __str__(self) -> str:
        kept = "checkpointing" if self.checkpointing else "no checkpointing"
        return f"micro-batches of {self.share:g} pack, {kept}"


class _Theirs:
    """transformers' model with PyTorch's fused AdamW on bf16 weights, which rounds ours away."""

    def __init__(self, work: Work, recipe: Recipe, options: Options) -> None:
        self.work, self.options = work, options
        self.model = transformers_model(work.config, options.device, torch.bfloat16).train()
        self.model.model.vision_tower.requires_grad_(not recipe.freeze.vision)
        if options.compile_theirs:
            self.model.compile()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        settings = recipe.optimizer
        self.optimizer = torch.optim.AdamW(
            self.trained,
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.max_norm = settings.max_grad_norm

    def best(self) -> Timing:
        """One step of a whole pack's and half a pack's tokens a batch, and of what then beckons."""
        found: dict[_Setting, float] = {}
        tried: list[str] = []
        for share in (1.0, 0.5):
            self._try(share, found, tried)
        fastest = min(found, key=found.__getitem__, default=None)
        self._try(2.0 if fastest and fastest.share == 1.0 else 0.25, found, tried)
        if not found:
            raise MemoryError("; ".join(tried))
        fastest = min(found, key=found.__getitem__)
        timing = _timed(self._step(fastest), str(fastest), replace(self.options, warm_up=1))
        return replace(timing, tried=tuple(tried))

    def _try(self, share: float, found: dict[_Setting, float], tried: list[str]) -> None:
        """One step without checkpointing, or with it where memory does not suffice."""
        for checkpointing in (False, True):
            setting = _Setting(share, checkpointing)
            try:
                step = self._step(setting)
                found[setting] = _timed(step, "", replace(self.options, warm_up=1, steps=1)).seconds
                tried.append(f"{setting}: {found[setting]:.2f} s")
                return
            except torch.OutOfMemoryError:
                tried.append(f"{setting}: out of memory")
            step = None
            self.optimizer.zero_grad()
            _free(self.options.device)

    def _step(self, setting: _Setting) -> Callable[[], Tensor]:
        if setting.checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            self.model.gradient_checkpointing_disable()
        budget = round(self.work.limits.tokens * setting.share)
        device = self.options.device
        batches = [
            PaddedBatch.of(samples, device) for samples in padded_batches(self.work.samples, budget)
        ]
        learned = sum(batch.learned for batch in batches)

        def step() -> Tensor:
            loss = torch.zeros((), device=device)
            for batch in batches:
                mean = self.model(**batch.arguments, use_cache=False).loss
                share = mean * (batch.learned / learned)
                share.backward()
                loss += share.detach()
            nn.utils.clip_grad_norm_(self.trained, self.max_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
            return loss

        return step


def transformers_model(config: InternVLConfig, device: torch.device, dtype: torch.dtype) -> Any:
    """transformers' InternVL of a shape, from the config.json that our `hf` layout writes for it.

    InternLM2 becomes Llama there, of which it is a renaming.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    with TemporaryDirectory() as folder:
        write_config(config, folder, "hf")
        theirs = AutoConfig.from_pretrained(folder)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(
            theirs, dtype=dtype, attn_implementation="sdpa"
        )
    return model.to(device)


@dataclass(frozen=True)
class Agreement:
    """Whether both sides compute the same loss from the same weights and samples."""

    ours: float
    """Mean over the labelled tokens of one pack."""
    theirs: float
    """The same of padded batches."""
    per_sample: float
    """Largest difference between the two means of one sample."""
    spread: float
    """Standard deviation of the samples' means: what a mix-up of samples would come to."""
    black: float
    """How far black tiles move a sample's mean: what pictures in the wrong place would come to."""

    def __str__(self) -> str:
        return (
            f"Mean loss of one pack with the same weights: ours {self.ours:.4f}, transformers "
            f"{self.theirs:.4f}; the means of a sample differ by at most {self.per_sample:.4f} "
            f"(they spread by {self.spread:.3f}, and black tiles move them by {self.black:.3f})"
        )


@torch.no_grad()
def agreement(work: Work, device: torch.device, dtype: torch.dtype) -> Agreement:
    """The losses of one pack, once packed by us and once padded by transformers."""
    model = random_model(work.config, device=str(device), dtype=dtype)
    # Larger scores make the loss depend on what the model makes of its input.
    model.decoder.head.weight.mul_(8)
    model.projector.linear2.weight.mul_(8)
    theirs = transformers_model(work.config, device, dtype).eval()
    load_ours(theirs, model)
    samples = work.packs[0]
    batch = replace(work, packs=(samples,)).batches()[0].to(device)
    ours = float(pack_loss(model, batch, 1 / batch.weight_sum))
    padded = [PaddedBatch.of([sample], device, dtype) for sample in samples]
    means = [float(theirs(**one.arguments, use_cache=False).loss) for one in padded]
    counts = [one.learned for one in padded]
    alone = [_alone(work, model, sample, device) for sample in samples]
    dark = [replace(s, prompt=replace(s.prompt, tiles=s.prompt.tiles * 0)) for s in samples]
    black = [_alone(work, model, sample, device) for sample in dark]
    return Agreement(
        ours=ours,
        theirs=float(np.average(means, weights=counts)),
        per_sample=max(abs(a - b) for a, b in zip(alone, means, strict=True)),
        spread=float(np.std(means)),
        black=max(abs(a - b) for a, b in zip(alone, black, strict=True)),
    )


def _alone(work: Work, model: InternVL, sample: Sample, device: torch.device) -> float:
    batch = replace(work, packs=((sample,),)).batches()[0].to(device)
    return float(pack_loss(model, batch, 1 / batch.weight_sum))


def load_ours(theirs: nn.Module, model: InternVL) -> None:
    """Give transformers' model the weights of ours, through the `hf` layout."""
    weights = model.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    renamed: dict[str, Tensor] = {}
    for rule in rules("hf", model.config, shapes):
        tensors = rule.write([weights[name] for name in rule.ours])
        renamed |= dict(zip(rule.theirs, tensors, strict=True))
    theirs.load_state_dict(renamed)


def matmul_speed(device: torch.device) -> float:
    """Operations per second of a large bf16 product of matrices."""
    size = 8192 if device.type == "cuda" else 256
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)

    times = []
    for _ in range(8):
        devices.synchronize(device)
        started = time.perf_counter()
        for _ in range(4):
            torch.mm(a, a)
        devices.synchronize(device)
        times.append(time.perf_counter() - started)
    return 4 * 2 * size**3 / statistics.median(times)


def _timed(step: Callable[[], Tensor], setting: str, options: Options) -> Timing:
    device = options.device
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    losses = [float(step()) for _ in range(options.warm_up)]
    times = []
    for _ in range(options.steps):
        started = time.perf_counter()
        losses.append(float(step()))
        devices.synchronize(device)
        times.append(time.perf_counter() - started)
    if not all(map(math.isfinite, losses)):
        raise ValueError(f"the losses of {setting} are {losses}")
    peak = torch.cuda.max_memory_reserved(device) / 2**30 if device.type == "cuda" else 0.0
    return Timing(setting, statistics.median(times), peak, losses[-1])


def _profile(step: Callable[[], Tensor], device: torch.device) -> str:
    """The 25 kernels of a step that take longest."""
    from torch.profiler import ProfilerActivity, profile

    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as found:
        step()
        devices.synchronize(device)
    order = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    return found.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=90)


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
