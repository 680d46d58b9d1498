"""The engine that a command asked for, and how long it took to load."""

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from internvl2.cli.options import LoadOptions, MediaOptions

if TYPE_CHECKING:
    from internvl2.checkpoint.hub import Located
    from internvl2.engine.engine import Engine


@dataclass(frozen=True)
class LoadedEngine:
    """An engine and its price."""

    engine: "Engine"
    load_s: float


def load_engine(model: str | None, options: LoadOptions, media: MediaOptions) -> LoadedEngine:
    """Loads a model by name or path."""
    name = require_model(model)
    started = time.perf_counter()
    found = find_model(name, options.adapter, options.revision, offline=options.offline)
    from internvl2.engine.engine import Engine, EngineOptions
    from internvl2.processing.pixels import PictureOptions

    engine = Engine.load(
        found.directory,
        adapter=found.adapter,
        device=options.device,
        dtype=options.dtype,
        options=EngineOptions(max_context=options.max_context),
    )
    engine.processor.pictures = PictureOptions(official=media.official_pictures)
    return LoadedEngine(engine, time.perf_counter() - started)


def find_model(
    model: str, adapter: str | None, revision: str | None, *, offline: bool
) -> "Located":
    """The directories of a model and its adapter; downloads what only the hub has."""
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is first imported
    from internvl2.checkpoint.hub import locate

    return locate(model, adapter, revision=revision)


def require_model(model: str | None) -> str:
    """The model that was asked for; without one, the error says what names and paths there are."""
    from internvl2.family import MEMBERS

    if model:
        return model
    raise ValueError(
        "no model: give --model with a directory that holds a checkpoint (config.json and "
        f"weights), a hub id such as OpenGVLab/InternVL2-2B, or a short name: {', '.join(MEMBERS)}"
    )
