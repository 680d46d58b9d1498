"""Engines with random weights in the shape of a released model, as fast as it, loaded from nowhere.

Their answers mean nothing. The tokenizer and the template are nano's, whose ids are a part of every
member's vocabulary.
"""

from dataclasses import replace

from internvl2 import device as devices
from internvl2.checkpoint.config_files import read_config
from internvl2.checkpoint.hub import EMBEDDED, resolve
from internvl2.checkpoint.store import require_memory
from internvl2.config import InternVLConfig
from internvl2.engine.engine import Engine, EngineOptions
from internvl2.engine.prepared import prepare
from internvl2.family import find, parameters
from internvl2.model.internvl import random_model
from internvl2.model.low_bit import quantize_for_answers, require_quantization
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


def random_engine(
    name: str,
    *,
    device: str | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    options: EngineOptions | None = None,
    pictures: PictureOptions | None = None,
) -> Engine:
    """An engine for a shape, on the device and in the numbers that `Engine.load` would take."""
    place = devices.pick(device)
    processor = random_processor(shape_of(name))
    if pictures is not None:
        processor = processor.changed(processor.config, pictures)
    number_format = devices.choose_dtype(place, "bfloat16", dtype)
    held = None if quantize is None else require_quantization(quantize, place, number_format)
    numbers = parameters(processor.config).total
    require_memory(f"random weights in the shape of {name}", numbers, number_format, place)
    model = random_model(processor.config, device=str(place), dtype=number_format)
    if held is not None:
        quantize_for_answers(model, held)
    return Engine(prepare(model), processor, options)
