"""What `training.py` times: a step of our trainer, and a step of transformers' model."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from training_work import Work

from internvl2 import device as devices
from internvl2.checkpoint.config_files import write_config
from internvl2.checkpoint.store import fill
from internvl2.config import InternVLConfig
from internvl2.model.internvl import InternVL
from internvl2.model.lora import with_new_adapters
from internvl2.model.parallel import compile_layers, recompute_layers
from internvl2.model.quantize import store_quantized
from internvl2.model.vision import normalize
from internvl2.train.data.packing import IGNORED, PAD_TOKEN, Sample
from internvl2.train.optimization import Optimization
from internvl2.train.optimizers.groups import PARTS
from internvl2.train.parallel import World
from internvl2.train.preparation import random_weights, training, without_memory
from internvl2.train.recipe import Freeze, Recipe, Recompute
from internvl2.train.step_loss import pack_loss

RECOMPUTE = (Recompute(0.0, 0.0), Recompute(0.5, 0.5), Recompute(1.0, 1.0))
"""What our side tries until a step fits into memory."""


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
    warm_up: int = 2
    compile_ours: bool = True
    compile_theirs: bool = False
    recompute: tuple[Recompute, ...] = RECOMPUTE
    profile: bool = False


def time_ours(work: Work, recipe: Recipe, options: Options) -> Timing:
    """Our trainer's steps, with as little recomputation as fits."""
    tried: list[str] = []
    for recompute in options.recompute:
        setting = (
            f"packs of {work.limits.tokens}, {recipe.optimizer.moments} moments, "
            f"recompute {recompute.vision:g}/{recompute.decoder:g}"
        )
        try:
            step = our_step([work], replace(recipe, recompute=recompute), options)
            timing = replace(timed(step, setting, options), tried=tuple(tried))
            if options.profile:
                print(_profile(step, options.device), flush=True)
            return timing
        except torch.OutOfMemoryError:
            tried.append(f"{setting}: out of memory")
        step = None
        _free(options.device)
    raise MemoryError("; ".join(tried))


def our_step(works: Sequence[Work], recipe: Recipe, options: Options) -> Callable[[], Tensor]:
    """Our trainer's step, on each work in turn."""
    device = options.device
    model = _our_model(works[0].config, recipe, device)
    if options.compile_ours:
        compile_layers(model)
    recompute_layers(model, recipe.recompute.vision, recipe.recompute.decoder)
    optimization = Optimization(model, recipe, compiled=options.compile_ours)
    world = World(0, 1, device)
    batches = [work.batches() for work in works]
    if device.type == "cuda":
        batches = [[batch.pin() for batch in some] for some in batches]
    turns = cycle(batches)

    def step() -> Tensor:
        training(model)
        loss = torch.zeros((), device=device)
        packs = next(turns)
        weight = sum(batch.weight_sum for batch in packs)
        for batch in packs:
            share = pack_loss(model, batch.to(device), 1 / weight)
            share.backward()
            loss += share.detach()
        optimization.step(world, 1.0, PARTS)
        return loss

    return step


def _our_model(config: InternVLConfig, recipe: Recipe, device: torch.device) -> InternVL:
    """Filled with random weights one by one, as the trainer fills it, and quantised on the way."""
    model = without_memory(recipe, config, torch.bfloat16)
    with torch.device("meta"):
        plain = InternVL(config)
    weights = random_weights(plain, 0, device, torch.bfloat16)
    model.to_empty(device=device)
    weights = store_quantized(with_new_adapters(weights, model, seed=0), model)
    fill(dict(model.named_parameters()), weights)
    return model.eval()


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
    """transformers' model, and PyTorch's fused AdamW, which rounds small steps of bf16 away."""

    def __init__(self, work: Work, recipe: Recipe, options: Options) -> None:
        self.work, self.options = work, options
        self.model = transformers_model(work.config, options.device, torch.bfloat16).train()
        self.model.model.vision_tower.requires_grad_(not recipe.freeze.vision)
        if recipe.lora.is_used:
            self.model = peft_model(self.model, recipe)
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
        self._allocate_state()

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
        timing = timed(self._step(fastest), str(fastest), replace(self.options, warm_up=1))
        compiled = ", compiled" if self.options.compile_theirs else ""
        return replace(timing, setting=timing.setting + compiled, tried=tuple(tried))

    def _allocate_state(self) -> None:
        """Moments first, since an optimizer that runs out of memory half-way is of no more use."""
        for parameter in self.trained:
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _try(self, share: float, found: dict[_Setting, float], tried: list[str]) -> None:
        """One step without checkpointing, or with it where memory does not suffice."""
        for checkpointing in (False, True):
            setting = _Setting(share, checkpointing)
            try:
                step = self._step(setting)
                found[setting] = _probed(step, self.options)
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
        elif self.model.is_gradient_checkpointing:
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


def peft_model(model: Any, recipe: Recipe) -> Any:
    """A model of transformers with PEFT's adapters of a recipe, which are all that it then trains.

    They are in bf16, as ours: PEFT's default of fp32 is exacter, but casts all their inputs.
    """
    from peft import LoraConfig, get_peft_model

    lora = recipe.lora
    assert lora.vision_rank == 0
    assert recipe.kept == Freeze(vision=True, projector=True, decoder=True)
    settings = LoraConfig(
        r=lora.decoder_rank,
        lora_alpha=round(2 * lora.decoder_rank if lora.alpha is None else lora.alpha),
        lora_dropout=lora.dropout,
        target_modules=r".*language_model\.layers\..*_proj",
        use_dora=lora.dora,
        use_rslora=lora.rslora,
    )
    return get_peft_model(model, settings, autocast_adapter_dtype=False)


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


def timed(step: Callable[[], Tensor], setting: str, options: Options) -> Timing:
    """The median of some steps after a few others, and the most memory that all of them take."""
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


def _probed(step: Callable[[], Tensor], options: Options) -> float:
    """Seconds of a second step: a first one compiles and takes memory besides."""
    step()
    devices.synchronize(options.device)
    started = time.perf_counter()
    step()
    devices.synchronize(options.device)
    return time.perf_counter() - started


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
