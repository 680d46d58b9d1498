"""What a measurement was made on: model, numbers, device, threads, versions."""

from dataclasses import dataclass

import torch

from internvl2.engine.device_report import read_facts
from internvl2.engine.engine import Engine
from internvl2.engine.engine_facts import EngineFacts, readable
from internvl2.model.low_bit import stored_bytes


@dataclass(frozen=True, slots=True)
class Conditions:
    """Those of an engine."""

    model: str
    weights: int
    weight_gb: float
    """All weights of a process, as they are held, in 1e9 bytes."""
    dtype: str
    quantization: str | None
    device: str
    name: str
    """The device's own name."""
    threads: int
    torch: str
    load_s: float | None = None
    """Until the weights were in place; None of random ones."""

    @classmethod
    def of(cls, engine: Engine, model: str, load_s: float | None = None) -> "Conditions":
        """Of an engine, and what its model is called."""
        facts = EngineFacts.of(engine)
        device = engine.model.decoder.embedding.weight.device
        return cls(
            model=model,
            weights=facts.weights,
            weight_gb=stored_bytes(engine.model) / 1e9,
            dtype=facts.dtype,
            quantization=facts.quantization,
            device=facts.device,
            name=read_facts(device).name,
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            load_s=load_s,
        )

    def lines(self) -> str:
        """For people, two lines or three."""
        held = f", decoder in {self.quantization}" if self.quantization else ""
        first = f"{self.model}: {readable(self.weights)} weights, {self.dtype}{held}"
        second = f"{self.name} ({self.device}), {self.threads} threads, torch {self.torch}"
        if self.load_s is None:
            return f"{first}\n{second}"
        rate = self.weight_gb / self.load_s
        third = f"loaded in {self.load_s:.1f} s, {rate:.2f} GB/s of weights"
        return f"{first}\n{second}\n{third}"
