"""What a device allows at best: weights read once a token, arithmetic at the maker's speed.

Speeds are those of the makers' data sheets, where the device is known; real programs reach 80 to 90
per cent of them at most.
"""

from dataclasses import dataclass

import torch

from internvl2.engine.engine import Engine
from internvl2.model.low_bit import quantization_of, stored_bytes
from internvl2.processing.prompt import Prompt
from internvl2.train.monitoring.flops import pack_flops
from internvl2.train.planning.machine import Speeds, here
from internvl2.train.recipe import Freeze

FORWARD = Freeze(vision=True, projector=True, decoder=True)


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one engine; None where the device's speeds are not known."""

    weight_bytes: int
    """What a device reads of the decoder for each step of written tokens: all but the embedding."""
    token_bytes: int
    """Keys and values of a token in the cache of a device."""
    num_devices: int
    speeds: Speeds | None
    """Of one device."""
    multiplies_bf16: bool
    """Whether arithmetic is bf16, of which `speeds` tells."""

    @classmethod
    def of(cls, engine: Engine) -> "Limits":
        """Those of an engine on its device."""
        decoder = engine.model.decoder
        embedding = decoder.embedding.weight
        return cls(
            weight_bytes=stored_bytes(decoder) - embedding.nbytes,
            token_bytes=engine.plan.bytes_per_token,
            num_devices=engine.num_processes,
            speeds=here(embedding.device).speeds,
            multiplies_bf16=embedding.dtype in (torch.bfloat16, torch.float16)
            and quantization_of(engine.model) != "fp8",
        )

    def tokens_per_s(self) -> float | None:
        """Of one answer: the weights, once a token."""
        return None if self.speeds is None else self.speeds.bandwidth * 1e9 / self.weight_bytes

    def first_token_ms(self, engine: Engine, prompt: Prompt) -> float | None:
        """The arithmetic of tower, projector and decoder over a prompt."""
        if self.speeds is None or not self.multiplies_bf16:
            return None
        return 1000 * forward_flops(engine, [prompt]) / self._flops_per_s(self.speeds)

    def batch_s(self, engine: Engine, prompts: list[Prompt], num_tokens: int) -> float | None:
        """For answers of so many tokens to all prompts at once.

        The longer of two: all arithmetic, and all weights and cached tokens that each step reads.
        """
        if self.speeds is None or not self.multiplies_bf16:
            return None
        written = num_tokens * len(prompts)
        flops = forward_flops(engine, prompts) + 2.0 * written * _matrix_numbers(engine)
        context = sum(len(prompt.token_ids) + num_tokens / 2 for prompt in prompts)
        read = num_tokens * (self.weight_bytes + context * self.token_bytes)
        return max(flops / self._flops_per_s(self.speeds), read / (self.speeds.bandwidth * 1e9))

    def _flops_per_s(self, speeds: Speeds) -> float:
        return self.num_devices * speeds.tflops * 1e12


def forward_flops(engine: Engine, prompts: list[Prompt]) -> float:
    """Floating point operations until each prompt has its first token."""
    lengths = [len(prompt.token_ids) for prompt in prompts]
    tiles = sum(len(prompt.tiles) for prompt in prompts)
    return pack_flops(engine.model.config, FORWARD, lengths, tiles, labelled=len(prompts)).total


def _matrix_numbers(engine: Engine) -> int:
    """Weights that each written token is multiplied with."""
    decoder = engine.model.config.decoder
    width, inner = decoder.hidden_size, decoder.intermediate_size
    heads = (decoder.num_heads + decoder.num_kv_heads) * decoder.head_dim
    layer = 2 * width * heads + 3 * width * inner
    return decoder.num_layers * layer + width * decoder.vocab_size
