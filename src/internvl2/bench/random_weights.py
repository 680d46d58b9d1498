"""Engines with random weights in the shape of a released model, as fast as it, loaded from nowhere.

Their answers mean nothing. The tokenizer and the template are nano's, whose ids are a part of every
member's vocabulary.
"""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from internvl2 import device as devices
from internvl2.checkpoint.config_files import Layout, read_config
from internvl2.checkpoint.hub import EMBEDDED, resolve
from internvl2.checkpoint.store import require_memory, save
from internvl2.config import InternVLConfig, Quantization
from internvl2.engine.engine import Engine, EngineOptions
from internvl2.engine.opening import Planned, open_divided
from internvl2.engine.prepared import prepare
from internvl2.engine.tensor_parallel import choose_places
from internvl2.family import find, parameters
from internvl2.model.internvl import random_model
from internvl2.model.low_bit import quantize_for_answers, require_quantization
from internvl2.model.tensor_parallel import DividedInternVL, Share
from internvl2.processing.pixels import PictureOptions
from internvl2.processing.processor import Processor


def shape_of(name: str) -> InternVLConfig:
    """The config of nano, or of a member by hub id or short name (`internvl2-2b`, or `2b`)."""
    if name == EMBEDDED:
        return read_config(resolve(EMBEDDED))
    return find(f"internvl2-{name}" if name[:1].isdigit() else name).config


def random_processor(config: InternVLConfig) -> Processor:
    """What encodes for a model of that shape, in nano's tokens."""
    nano = resolve(EMBEDDED)
    config = replace(config, image_token_id=None, template=read_config(nano).template)
    return Processor.from_directory(nano, config)


def save_random(
    name: str, directory: Path, layout: Layout, *, device: torch.device, dtype: torch.dtype
) -> None:
    """Writes a checkpoint of that shape, its random numbers made on `device`."""
    processor = random_processor(shape_of(name))
    model = random_model(processor.config, device=str(device), dtype=dtype)
    save(model.cpu(), processor, directory, layout)


def random_engine(
    name: str,
    *,
    device: str | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    options: EngineOptions | None = None,
    pictures: PictureOptions | None = None,
    tensor_parallel: int = 1,
) -> Engine:
    """An engine for a shape, on the devices and in the numbers that `Engine.load` would take."""
    places = choose_places(tensor_parallel, device)
    place = places[0]
    processor = random_processor(shape_of(name))
    if pictures is not None:
        processor = processor.changed(processor.config, pictures)
    number_format = devices.choose_dtype(place, "bfloat16", dtype)
    held = None if quantize is None else require_quantization(quantize, place, number_format)
    if len(places) > 1:
        return _divided(
            RandomModel(processor.config, number_format, held), places, processor, options
        )
    numbers = parameters(processor.config).total
    require_memory(f"random weights in the shape of {name}", numbers, number_format, place)
    model = random_model(processor.config, device=str(place), dtype=number_format)
    if held is not None:
        quantize_for_answers(model, held)
    return Engine(prepare(model), processor, options)


@dataclass(frozen=True, slots=True)
class RandomModel:
    """Random weights that each process makes for itself; what all hold is the same in all."""

    config: InternVLConfig
    dtype: torch.dtype
    quantization: Quantization | None

    def load_share(self, share: Share, device: torch.device) -> DividedInternVL:
        """One process's share of them, on its device."""
        with torch.device("meta"):
            model = DividedInternVL(self.config, share).to(self.dtype)
        noise = torch.Generator(device).manual_seed(0)
        weights = {
            name: _random(name, torch.empty(x.shape, dtype=self.dtype, device=device), noise)
            for name, x in model.state_dict().items()
        }
        model.load_state_dict(weights, strict=True, assign=True)
        if self.quantization is not None:
            quantize_for_answers(model, self.quantization)
        return model


def _divided(
    source: RandomModel,
    places: list[torch.device],
    processor: Processor,
    options: EngineOptions | None,
) -> Engine:
    options = options or EngineOptions()
    request = options.memory_request(places[0])
    planned = Planned(source.config, source.dtype, source.quantization, request)
    with ExitStack() as on_error:
        opened = open_divided(source, places, planned)
        on_error.callback(opened.close)
        engine = Engine(opened.model, processor, options, team=opened.team)
        on_error.pop_all()
    return engine


def _random(name: str, weight: Tensor, noise: torch.Generator) -> Tensor:
    """Matrices that keep the size of what they multiply, norms that do nothing, biases of 0."""
    if weight.dim() > 1:
        return weight.normal_(0, weight[0].numel() ** -0.5, generator=noise)
    return weight.fill_(0.0 if name.endswith("bias") else 1.0)
