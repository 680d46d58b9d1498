"""What few bits cost and save: how predictions change, and how fast a decoder answers.

    python benchmarks/quantization.py --member internvl2-1b
    python benchmarks/quantization.py --model DIRECTORY --prompts questions.txt

Each scheme gets the same weights: those of a directory, or random ones in a member's shape, whose
speed means something but not what they predict. KL is the mean over all tokens of the prompts, in
nats, from the plain model's predictions; "same" is the share of tokens where both find the same
next one most probable. Speed is that of the decoder and its head without a cache: one token, as
when an answer is written, and a prompt of 512. Decoders are prepared as the engine prepares them,
and on a CUDA device the single token is a CUDA graph. fp8 is emulated where the device has none,
and then has no times.

On a CUDA device the products that a token is made of are timed one by one besides, in the shapes of
2B and 8B (`products.py`); `--products MEMBER ...` chooses other members, on any device.
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
sys.path.insert(0, str(Path(__file__).parent))

import products

from internvl2 import device as devices
from internvl2.checkpoint.config_files import read_config
from internvl2.checkpoint.store import load_model
from internvl2.config import Quantization
from internvl2.engine.prepared import prepare
from internvl2.family import find
from internvl2.model.attention import PackedAttention
from internvl2.model.internvl import InternVL, random_model
from internvl2.model.kernel_choice import KernelChoice
from internvl2.model.low_bit import quantize_for_answers, require_quantization, stored_bytes
from internvl2.model.rotary import Positions
from internvl2.processing.conversation import Message
from internvl2.processing.processor import Processor

PROMPT = 512
HEADER = """\
| decoder | MiB | KL, nats | same | token, ms | tokens/s | ratio | prompt of 512, ms |
|---|---|---|---|---|---|---|---|"""


@dataclass(frozen=True)
class Measured:
    """One scheme; times are 0 where the device cannot compute it."""

    scheme: str
    mib: float
    """Of embedding, layers and head."""
    divergence: float
    same: float
    token_ms: float
    prompt_ms: float

    def row(self, plain: "Measured") -> str:
        """A line of the table."""
        cells = [self.scheme, f"{self.mib:.1f}", f"{self.divergence:.4f}", f"{self.same:.3f}"]
        if self.token_ms:
            ratio = plain.token_ms / self.token_ms
            cells += [f"{self.token_ms:.2f}", f"{1000 / self.token_ms:.1f}", f"{ratio:.2f}"]
            cells += [f"{self.prompt_ms:.0f}"]
        else:
            cells += ["-"] * 4
        return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure and print."""
    options = parse()
    torch.set_num_threads(options.threads)
    device = devices.pick(options.device)
    dtype = devices.choose_dtype(device, "bfloat16", options.dtype)
    name = str(dtype).removeprefix("torch.")
    print(f"{device}, {platform.machine()}, torch {torch.__version__}, {name}, "
          f"{options.threads} threads, {options.model or options.member}\n\n{HEADER}")  # fmt: skip
    prompts = read_prompts(options)
    found: list[Measured] = []
    wanted: Tensor | None = None
    for scheme in (None, *options.schemes):
        model = plain_model(options, device, dtype)
        if scheme is not None:
            quantize_for_answers(model, scheme)
        predictions = predict(model, prompts)
        wanted = predictions if wanted is None else wanted
        found.append(measure(model, scheme or name, wanted, predictions, options))
        print(found[-1].row(found[0]), flush=True)
        write(options, found, [])
        del model  # before the next one takes its memory
    timed = []
    for product in time_products(options, device, dtype):
        timed.append(product)
        print(product.row(), flush=True)
        write(options, found, timed)


def write(
    options: argparse.Namespace, found: list[Measured], timed: list[products.Product]
) -> None:
    """Everything that is known so far, where a file is asked for."""
    if options.json:
        values = {"decoders": [*map(asdict, found)], "products": [*map(asdict, timed)]}
        options.json.write_text(json.dumps(values, indent=1), encoding="utf-8")


def time_products(
    options: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> Iterator[products.Product]:
    """Every product by itself."""
    members = options.products
    if members is None:
        members = ["internvl2-2b", "internvl2-8b"] if device.type == "cuda" else []
    if not members:
        return
    print(f"\n{products.HEADER}", flush=True)
    bench = products.Bench(device, dtype, options.rounds, KernelChoice())
    yield from bench.products(members, options.schemes)


def parse() -> argparse.Namespace:
    """The command line."""
    schemes = get_args(Quantization)
    parser = argparse.ArgumentParser(description="What few bits cost and save.")
    parser.add_argument("--member", default="internvl2-1b", help="shape of random weights")
    parser.add_argument("--model", type=Path, help="directory of a checkpoint instead")
    parser.add_argument("--prompts", type=Path, help="questions for it, one a line")
    parser.add_argument("--schemes", nargs="+", choices=schemes, default=schemes)
    parser.add_argument("--products", nargs="*", metavar="MEMBER", help="time their products")
    parser.add_argument("--device", help="the best there is unless given")
    parser.add_argument("--dtype", help="bfloat16 where the device is good at it")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15, help="times are medians of so many")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    if options.prompts and not options.model:
        parser.error("--prompts needs --model: random weights have no tokenizer")
    return options


def plain_model(options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> InternVL:
    """The weights that all schemes start from, of the vision tower no more than one layer."""
    if options.model:
        return load_model(options.model, device=device, dtype=dtype)
    config = find(options.member).config
    small = replace(config.vision, num_layers=1)
    return random_model(replace(config, vision=small), device=str(device), dtype=dtype)


def read_prompts(options: argparse.Namespace) -> list[list[int]]:
    """Token ids of each prompt; random ones where no texts are given."""
    config = read_config(options.model) if options.model else find(options.member).config
    if options.prompts is None:
        drawn = torch.Generator().manual_seed(0)
        return torch.randint(0, config.decoder.vocab_size, (4, 64), generator=drawn).tolist()
    processor = Processor.from_directory(options.model, config)
    lines = options.prompts.read_text(encoding="utf-8").splitlines()
    return [list(processor.encode([Message.user(line)]).token_ids) for line in lines if line]


@torch.inference_mode()
def predict(model: InternVL, prompts: Sequence[list[int]]) -> Tensor:
    """Log-probabilities of the next token behind each token."""
    device = model.decoder.embedding.weight.device
    tokens = torch.tensor([token for prompt in prompts for token in prompt], device=device)
    return run(model, tokens, [len(prompt) for prompt in prompts]).log_softmax(dim=-1)


def run(model: InternVL, tokens: Tensor, lengths: Sequence[int]) -> Tensor:
    """Logits behind every token of sequences of these lengths."""
    attend = PackedAttention.of(lengths, tokens.device)
    positions = Positions.packed(lengths, tokens.device)
    return model.logits(model.decoder(model.embed(tokens), positions, attend))


def measure(
    model: InternVL, scheme: str, wanted: Tensor, found: Tensor, options: argparse.Namespace
) -> Measured:
    """What a scheme changes, weighs and takes."""
    mib = stored_bytes(model.decoder) / 2**20
    divergence = (wanted.exp() * (wanted - found)).sum(dim=-1).mean().item()
    same = (wanted.argmax(dim=-1) == found.argmax(dim=-1)).float().mean().item()
    weight = model.decoder.embedding.weight
    if not is_computed(scheme, weight):
        return Measured(scheme, mib, divergence, same, 0.0, 0.0)
    prepare(model)
    device = weight.device
    token = products.repeated("one token", step(model, 1), device)
    token_ms = products.milliseconds(token, device, options.rounds)
    prompt_ms = products.milliseconds(step(model, PROMPT), device, max(1, options.rounds // 5))
    return Measured(scheme, mib, divergence, same, token_ms, prompt_ms)


def is_computed(scheme: str, weight: Tensor) -> bool:
    """Whether the device multiplies such numbers, rather than emulate it."""
    if scheme not in get_args(Quantization):
        return True
    try:
        require_quantization(scheme, weight.device, weight.dtype)
    except ValueError:
        return False
    return True


def step(model: InternVL, count: int) -> Callable[[], Tensor]:
    """So many tokens through the decoder, and the scores of the last one."""
    tokens = torch.arange(count, device=model.decoder.embedding.weight.device)
    attend = PackedAttention.of([count], tokens.device)
    positions = Positions.packed([count], tokens.device)

    @torch.inference_mode()
    def run() -> Tensor:
        return model.logits(model.decoder(model.embed(tokens), positions, attend)[-1:])

    return run


if __name__ == "__main__":
    main()
