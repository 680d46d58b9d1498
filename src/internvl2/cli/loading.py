"""The engine that a command asked for, and how long it took to load."""

import gc
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from internvl2.cli.options import LoadOptions, MediaOptions

if TYPE_CHECKING:
    from internvl2.checkpoint.hub import Located
    from internvl2.engine.engine import Engine


@dataclass(frozen=True)
class LoadedEngine:
    """An engine, what is in it, and its price."""

    engine: "Engine"
    origin: str
    load_s: float

    def introduce(self) -> None:
        """Names the model on standard error, once all is known to be well."""
        from internvl2.family import parameters
        from internvl2.model.low_bit import quantization_of

        count = parameters(self.engine.model.config).total
        size = f"{count / 1e9:.3g}B" if count >= 1e9 else f"{count / 1e6:.3g}M"
        weight = self.engine.model.decoder.embedding.weight
        dtype = str(weight.dtype).removeprefix("torch.")
        held = quantization_of(self.engine.model)
        dtype += f" with a decoder in {held}" if held else ""
        words = f"model: {self.origin}, {size} weights, {dtype}, {weight.device}"
        print(words, file=sys.stderr, flush=True)


def load_engine(model: str, options: LoadOptions, media: MediaOptions) -> LoadedEngine:
    """Loads a model by name or path."""
    name = require_model(model)
    started = time.perf_counter()
    found = find_model(name, options.adapter, options.revision, offline=options.offline)
    with _lasting_imports():
        from internvl2.engine.engine import Engine, EngineOptions

        engine = Engine.load(
            found.directory,
            adapter=found.adapter,
            device=options.device,
            dtype=options.dtype,
            quantize=options.quantize,
            options=EngineOptions(max_context=options.max_context),
            pictures=media.picture_options(),
        )
    return LoadedEngine(engine, found.origin, time.perf_counter() - started)


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
