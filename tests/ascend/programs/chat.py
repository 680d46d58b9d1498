"""Answers of small models on the CPU and on the NPU, and how often the host waited for the NPU.

`python chat.py CHECKPOINT...`; prints JSON.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from engine.conftest import LetterProcessor, prompt_of, tiny_config
from PIL import Image
from torch import nn

from internvl2 import device as devices
from internvl2.checkpoint.store import load_model
from internvl2.config import InternVLConfig, RotaryConfig
from internvl2.engine.engine import Engine, EngineOptions
from internvl2.engine.sequence import SamplingParams
from internvl2.model.internvl import InternVL, random_model
from internvl2.processing.conversation import Message, Picture
from internvl2.processing.processor import Processor

PLAIN = RotaryConfig(theta=1e4)
DYNAMIC = RotaryConfig(theta=1e4, kind="dynamic", limit=20, factor=2.0)
FACTORS = tuple(1.0 + i / 4 for i in range(8))
LONG = RotaryConfig(
    theta=1e4,
    kind="long",
    limit=20,
    short_factors=FACTORS,
    long_factors=tuple(2 * factor for factor in FACTORS),
    scale=1.19,
)
DECODERS = {
    "internlm2": {"rotary": DYNAMIC},
    "llama": {"kind": "llama"},
    "qwen2": {"kind": "qwen2", "qkv_bias": True},
    "qwen3": {"kind": "qwen3", "qk_norm": True},
    "phi3": {"kind": "phi3", "num_kv_heads": 4, "rotary": LONG},
}
TIGHT = EngineOptions(cache_tokens=1024, max_context=400, max_batch_tokens=24, max_sequences=4)
GREEDY = SamplingParams(max_tokens=12, ignore_eos=True, logprobs=1)


class Words(LetterProcessor):
    def __init__(self, config: InternVLConfig) -> None:
        super().__init__(config)
        self.tokenizer.id_of = lambda text: None


def answers(model: InternVL, processor: Processor, requests: list, options: EngineOptions) -> list:
    """The tokens of each answer, and what the model gave their logarithms as."""
    with Engine(model, processor, options) as engine:
        found = engine.generate(requests, GREEDY)
    return [[a.token_ids, [one.chosen.logprob for one in a.logprobs]] for a in found]


def of_decoders(device: torch.device) -> dict[str, list]:
    """Prompts in chunks, some with pictures, and more of them than are answered at a time."""
    prompts = [prompt_of(range(5 + 7 * i, 12 + 9 * i), [(i, 2)] if i % 2 else []) for i in range(6)]
    found = {}
    for name, changes in DECODERS.items():
        config = tiny_config(PLAIN)
        decoder = replace(config.decoder, **{"head_dim": 16, **changes})
        model = random_model(replace(config, decoder=decoder)).to(device)
        found[name] = answers(model, Words(model.config), prompts, TIGHT)
    return found


def of_checkpoints(directories: list[Path], device: torch.device) -> dict[str, list]:
    """Text alone, pictures, and several turns."""
    requests = [
        [Message.user("How many people are there?")],
        [Message.user(picture(0, 300, 200), "Describe the picture.")],
        [Message.user(picture(1, 100, 400), picture(2, 90, 90), "Compare them.")],
    ]
    options = EngineOptions(max_context=1024, cache_tokens=4096, max_sequences=8)
    found = {}
    for directory in directories:
        model = load_model(directory, device=device, dtype=torch.float32)
        processor = Processor.from_directory(directory, model.config)
        found[str(directory)] = answers(model, processor, requests, options)
    return found


def picture(seed: int, width: int, height: int) -> Picture:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Picture(Image.fromarray(pixels))


def waits(dtype: torch.dtype, device: torch.device) -> dict:
    """How often the host waits in each step of written tokens, and in all layers of all steps."""
    from torch_npu import testing

    in_layers = [0]
    model = random_model(replace_head(tiny_config(PLAIN))).to(device, dtype)
    for layer in (*model.vision.layers, *model.decoder.layers):
        watch(layer, in_layers, testing.synchronizations)
    prompts = [prompt_of(range(5 + i, 20 + i), [(i, 1)]) for i in range(3)]
    with Engine(model, Words(model.config), TIGHT) as engine:
        for prompt in prompts:
            engine.add(prompt, SamplingParams(max_tokens=20, ignore_eos=True))
        return {"steps": list(steps(engine, testing)), "layers": in_layers[0]}


def steps(engine: Engine, testing) -> Iterator[dict[str, int]]:
    """The waits of each step after the last that read a prompt."""
    while engine.has_work:
        reads = any(s.num_computed < s.prompt_length for s in engine.scheduler.running)
        reads = reads or bool(engine.scheduler.waiting)
        testing.forget_synchronizations()
        engine.step()
        if not reads:
            yield {kind: n for kind, n in testing.synchronizations_by_kind().items() if n}


def watch(layer: nn.Module, total: list[int], count) -> None:
    before: list[int] = []
    layer.register_forward_pre_hook(lambda *_: before.append(count()))
    layer.register_forward_hook(lambda *_: total.append(count() - before.pop()))


def replace_head(config: InternVLConfig) -> InternVLConfig:
    return replace(config, decoder=replace(config.decoder, head_dim=16))


def main() -> None:
    npu, cpu = devices.pick(), torch.device("cpu")
    directories = [Path(name) for name in sys.argv[1:]]
    told = {
        "picked": npu.type,
        "decoders": {d.type: of_decoders(d) for d in (cpu, npu)},
        "checkpoints": {d.type: of_checkpoints(directories, d) for d in (cpu, npu)},
        "waits": {str(t): waits(t, npu) for t in (torch.float32, torch.bfloat16)},
    }
    print(json.dumps(told))


main()
