"""The engine that a command asked for, and how long it took to load."""

import gc
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from internvl2.cli.options import LoadOptions, MediaOptions

if TYPE_CHECKING:
    from internvl2.checkpoint.hub import Located
    from internvl2.engine.data_parallel import DataParallel
    from internvl2.engine.engine import Engine, EngineOptions
    from internvl2.engine.engine_facts import EngineFacts


@dataclass(frozen=True)
class LoadedEngine:
    """An engine, what is in it, and its price."""

    engine: "Engine"
    origin: str
    load_s: float

    def introduce(self) -> None:
        """Names the model on standard error, once all is known to be well."""
        from internvl2.engine.engine_facts import EngineFacts

        _introduce(self.origin, [EngineFacts.of(self.engine)])


@dataclass(frozen=True)
class LoadedEngines:
    """Engines of one model that share the work."""

    engines: "DataParallel"
    origin: str

    def introduce(self) -> None:
        """Names the model and its devices on standard error."""
        _introduce(self.origin, self.engines.facts)


def load_engine(
    model: str, options: LoadOptions, media: MediaOptions, sizes: "EngineOptions | None" = None
) -> LoadedEngine:
    """Loads a model by name or path; `sizes` is what a command asks of the engine."""
    name = require_model(model)
    started = time.perf_counter()
    found = find_model(name, options.adapter, options.revision, offline=options.offline)
    with _lasting_imports():
        from internvl2.engine.engine import Engine

        engine = Engine.load(
            found.directory,
            adapter=found.adapter,
            device=options.device,
            dtype=options.dtype,
            quantize=options.quantize,
            options=engine_options(options, sizes),
            pictures=media.picture_options(),
            tensor_parallel=options.tensor_parallel,
        )
    return LoadedEngine(engine, found.origin, time.perf_counter() - started)


def load_engines(
    model: str, count: int, options: LoadOptions, media: MediaOptions
) -> LoadedEngines:
    """Loads a model once for each of `count` engines, which are processes of their own."""
    from internvl2.engine.data_parallel import DataParallel, replica_devices

    replica_devices(count, options.device)  # before anything is downloaded
    name = require_model(model)
    found = find_model(name, options.adapter, options.revision, offline=options.offline)
    engines = DataParallel.load(
        found.directory,
        count=count,
        adapter=found.adapter,
        device=options.device,
        dtype=options.dtype,
        quantize=options.quantize,
        options=engine_options(options),
        pictures=media.picture_options(),
    )
    return LoadedEngines(engines, found.origin)


def engine_options(options: LoadOptions, sizes: "EngineOptions | None" = None) -> "EngineOptions":
    """What a user asks of an engine; `sizes` is what a command asks of it."""
    from internvl2.engine.engine import EngineOptions

    return replace(
        sizes or EngineOptions(),
        max_context=options.max_context,
        graphs=False if options.no_graphs else None,
    )


def find_model(
    model: str, adapter: str | None, revision: str | None, *, offline: bool
) -> "Located":
    """The directories of a model and its adapter; downloads what only the hub has."""
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is first imported
    from internvl2.checkpoint.hub import locate

    return locate(model, adapter, revision=revision)


def require_model(model: str) -> str:
    """The model that was asked for; of an empty name, the error says which there are."""
    from internvl2.checkpoint.hub import EMBEDDED
    from internvl2.family import MEMBERS

    if model:
        return model
    raise ValueError(
        "the name of the model is empty: give a directory that holds a checkpoint (config.json and "
        "weights), a hub id such as OpenGVLab/InternVL2-2B, or a short name: "
        f"{', '.join([EMBEDDED, *MEMBERS])}"
    )


def _introduce(origin: str, facts: "Sequence[EngineFacts]") -> None:
    devices = Counter(each.device for each in facts)
    places = ", ".join(
        device if count == 1 else f"{count} x {device}" for device, count in devices.items()
    )
    print(f"model: {origin}, {facts[0].describe()}, {places}", file=sys.stderr, flush=True)


@contextmanager
def _lasting_imports() -> Iterator[None]:
    """Leaves what torch's first import makes out of every search for garbage.

    These are half a million objects that live as long as the process; looking through them while
    they are made, and once more in the end, takes 0.4 s.
    """
    if "torch" in sys.modules:
        yield
        return
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
