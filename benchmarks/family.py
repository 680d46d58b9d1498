"""Every member of the family up to a size, with random weights: does it answer, and how fast?

Answers a picture of 12 tiles and a thumbnail and a video of 8 frames. The weights are random, so
the words mean nothing; shapes, memory and time are those of the released models.

    python benchmarks/family.py --device cuda --up-to 8.6
"""

import argparse
import platform
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from internvl2 import device as devices
from internvl2.bench.random_weights import random_engine
from internvl2.bench.timing import ask
from internvl2.engine.engine import Engine, EngineOptions
from internvl2.engine.sequence import SamplingParams
from internvl2.family import MEMBERS, Member, parameters
from internvl2.processing.conversation import Message, Picture, Video

NEW_TOKENS = 64
OPTIONS = EngineOptions(
    max_context=8192,
    max_sequences=4,
    cache_tokens=16384,
    prefix_reuse=False,
    vision_cache_bytes=0,
)
"""Nothing is reused, so that a second answer costs what the first did."""


@dataclass(frozen=True)
class Timing:
    """One answer."""

    prompt_tokens: int
    first_token_ms: float
    tokens_per_s: float


def main() -> None:
    """Run every member and print a table."""
    arguments = parse()
    device = devices.pick(arguments.device)
    print(f"{machine(device)}, torch {torch.__version__}, {arguments.dtype}, random weights")
    print(f"{'member':<22}{'params':>8}{'peak GiB':>10}", end="")
    for kind in ("picture", "video"):
        print(f"{kind + ' tokens':>16}{'first ms':>10}{'tokens/s':>10}", end="")
    print()
    for member in MEMBERS.values():
        if parameters(member.config).total <= arguments.up_to * 1e9:
            run(member, device, arguments.dtype)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--up-to", type=float, default=8.6, help="largest member, in 1e9 weights")
    return parser.parse_args()


def run(member: Member, device: torch.device, dtype: str) -> None:
    """Build one member, let it answer, and print its row."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.empty_cache()
    with random_engine(member.name, device=str(device), dtype=dtype, options=OPTIONS) as engine:
        timings = [measure(engine, message) for message in (picture(), video())]
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else float("nan")
    print(f"{member.name:<22}{parameters(member.config).total / 1e9:>7.2f}B{peak:>10.1f}", end="")
    for timing in timings:
        print(f"{timing.prompt_tokens:>16}{timing.first_token_ms:>10.0f}", end="")
        print(f"{timing.tokens_per_s:>10.0f}", end="")
    print(flush=True)


def measure(engine: Engine, message: Message) -> Timing:
    """The second of two answers, from the opened picture to the last token."""
    params = SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True)
    usage = engine.answer([message], params).usage
    arrivals = ask(engine, [message], NEW_TOKENS)
    assert len(arrivals.tokens) == NEW_TOKENS
    return Timing(usage.prompt_tokens, arrivals.first_ms, arrivals.tokens_per_s)


def picture() -> Message:
    """A question about 1600x1200 pixels: 4 x 3 tiles and a thumbnail."""
    return Message.user(Picture(noise(1600, 1200)), "What is the total price on the sign?")


def video() -> Message:
    """A question about 8 frames that are already decoded."""
    frames = tuple(noise(640, 360, seed) for seed in range(8))
    return Message.user(Video(frames, num_frames=8), "Describe the video.")


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture that no codec would like."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def machine(device: torch.device) -> str:
    """What the figures were measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
