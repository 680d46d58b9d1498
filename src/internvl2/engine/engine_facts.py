"""What an engine is, in few words: how many weights, in which numbers, where."""

from dataclasses import dataclass

from internvl2.config import Quantization
from internvl2.engine.engine import Engine
from internvl2.family import parameters
from internvl2.model.low_bit import quantization_of


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What is told of an engine before its first answer."""

    weights: int
    dtype: str
    quantization: Quantization | None
    device: str
    max_sequences: int

    @classmethod
    def of(cls, engine: Engine) -> "EngineFacts":
        """Those of an engine."""
        weight = engine.model.decoder.embedding.weight
        return cls(
            weights=parameters(engine.model.config).total,
            dtype=str(weight.dtype).removeprefix("torch."),
            quantization=quantization_of(engine.model),
            device=engine.place,
            max_sequences=engine.scheduler.max_sequences,
        )

    def describe(self) -> str:
        """All but the device, for people."""
        held = f" with a decoder in {self.quantization}" if self.quantization else ""
        return f"{readable(self.weights)} weights, {self.dtype}{held}"


def readable(count: int) -> str:
    """Three digits of a number of weights."""
    return f"{count / 1e9:.3g}B" if count >= 1e9 else f"{count / 1e6:.3g}M"
