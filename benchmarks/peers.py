"""transformers' InternVL, asked as our engine is: the same checkpoint, token ids and tiles.

Pixels are normalised before the time starts, ours are not. Tokens are timed by a streamer.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from token_agreement import Written
from torch import Tensor

from internvl2 import device as devices
from internvl2.bench.timing import Arrivals
from internvl2.model.internvl import normalize
from internvl2.processing.prompt import Prompt

Answer = Callable[[Prompt, int], Arrivals]


class Clock:
    """A streamer of transformers that notes when each token comes."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.ids: list[int] = []
        self._has_prompt = False

    def put(self, ids: Tensor) -> None:
        """Takes the prompt first, then one token after the other."""
        if not self._has_prompt:
            self._has_prompt = True
            return
        self.times.append(time.perf_counter())
        self.ids += ids.flatten().tolist()

    def end(self) -> None:
        """Nothing is left to do."""


@dataclass(frozen=True)
class Transformers:
    """A model of transformers on its device."""

    model: Any
    device: torch.device
    dtype: torch.dtype
    attention: str

    @classmethod
    def load(cls, directory: Path, device: torch.device, dtype: torch.dtype) -> "Transformers":
        """A checkpoint in the `hf` layout; with flash attention where it is installed."""
        from transformers import InternVLForConditionalGeneration

        flash = device.type == "cuda" and find_spec("flash_attn") is not None
        attention = "flash_attention_2" if flash else "sdpa"
        model: Any = InternVLForConditionalGeneration.from_pretrained(
            directory, dtype=dtype, attn_implementation=attention
        )
        model = model.to(device).eval()
        model.generation_config.eos_token_id = None
        return cls(model, device, dtype, attention)

    def answer(self, prompt: Prompt, num_tokens: int) -> Arrivals:
        """So many tokens, a growing cache behind them."""
        return self._timed(prompt, num_tokens, {})

    def answer_compiled(self, prompt: Prompt, num_tokens: int) -> Arrivals:
        """The same with a static cache, for which transformers compiles its steps on a GPU."""
        return self._timed(prompt, num_tokens, {"cache_implementation": "static"})

    def written(self, prompt: Prompt, num_tokens: int) -> Written:
        """So many tokens and what they were chosen from, not to be timed."""
        ids = torch.tensor([prompt.token_ids], device=self.device)
        found = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            **self._media([prompt]),
        )
        logits = torch.cat(found.logits).float().cpu()
        return Written(found.sequences[0, ids.shape[1] :].tolist(), logits.log_softmax(-1))

    def seconds_for(self, prompts: Sequence[Prompt], num_tokens: int) -> float:
        """For answers to all prompts in one batch, padded on the left."""
        longest = max(len(prompt.token_ids) for prompt in prompts)
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt.token_ids) :] = torch.tensor(prompt.token_ids)
            mask[row, longest - len(prompt.token_ids) :] = 1
        media = self._media(prompts)
        ids, mask = ids.to(self.device), mask.to(self.device)
        devices.synchronize(self.device)
        started = time.perf_counter()
        self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=num_tokens,
            do_sample=False,
            **media,
        )
        devices.synchronize(self.device)
        return time.perf_counter() - started

    def _timed(self, prompt: Prompt, num_tokens: int, options: dict[str, Any]) -> Arrivals:
        ids = torch.tensor([prompt.token_ids], device=self.device)
        media = self._media([prompt])
        clock = Clock()
        devices.synchronize(self.device)
        asked = time.perf_counter()
        self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_tokens,
            do_sample=False,
            streamer=clock,
            **media,
            **options,
        )
        return Arrivals(asked, clock.times, clock.ids)

    def _media(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        tiles = [torch.from_numpy(prompt.tiles) for prompt in prompts if len(prompt.tiles)]
        if not tiles:
            return {}
        return {"pixel_values": normalize(torch.cat(tiles).to(self.device), self.dtype)}
