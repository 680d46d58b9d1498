"""Time to the first token and speed of the next ones, against transformers in the same run.

    python benchmarks/latency.py --json latency.json

One question about one picture at a time, as a person asks it. Both sides read the same checkpoint
(random weights in a member's shape, in the `hf` layout), get the same token ids and the same tiles,
run in one process on as many threads, and take turns round after round.
Transformers' tiles are normalised before the time starts; ours are uint8, as the engine takes
them. Nothing is kept from one round to the next. Times are those at which tokens arrive: through a
streamer there, through `Engine.stream` here. Behind the rounds both sides write the answer once
more, untimed, with their logits: tokens that differ are said to be a matter of rounding only where
the logits explain that.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from peers import Transformers
from token_agreement import TOP, Agreement, agreement

from internvl2 import device as devices
from internvl2.bench.random_weights import save_random
from internvl2.bench.timing import Arrivals, Spread, ask
from internvl2.checkpoint.hub import EMBEDDED
from internvl2.engine.device_report import read_facts
from internvl2.engine.engine import Engine, EngineOptions
from internvl2.engine.sequence import SamplingParams
from internvl2.family import parameters
from internvl2.processing.conversation import Message, Picture
from internvl2.processing.processor import Processor
from internvl2.processing.prompt import Prompt

QUESTION = "What is written on the sign, and what is the total price? Answer in one sentence."
OPTIONS = EngineOptions(
    max_context=4096,
    max_sequences=1,
    cache_tokens=4096,
    prefix_reuse=False,
    vision_cache_bytes=0,
)


@dataclass(frozen=True)
class Speed:
    """One side over all rounds."""

    first_ms: Spread
    tokens_per_s: Spread

    @classmethod
    def of(cls, answers: Sequence[Arrivals]) -> "Speed":
        """That of some answers."""
        return cls(
            Spread.of(answer.first_ms for answer in answers),
            Spread.of(answer.tokens_per_s for answer in answers),
        )


@dataclass(frozen=True)
class Result:
    """One model and one picture, both sides."""

    model: str
    weights: int
    dtype: str
    tiles: int
    prompt_tokens: int
    answer_tokens: int
    rounds: int
    transformers: Speed
    ours: Speed
    prefill_ratio: float
    """Median over the rounds of their time by ours, each pair measured one after the other."""
    decode_ratio: float
    tokens: Agreement
    """Whether both sides wrote the same."""
    repeats: bool
    """Whether each side wrote the same in every round."""


@dataclass(frozen=True)
class Machine:
    """What it was measured on."""

    name: str
    threads: int
    torch: str
    transformers: str


def make_prompt(processor: Processor, tiles: int) -> Prompt:
    """A question about a picture of so many tiles, the thumbnail included."""
    size = processor.config.tile_size
    shape = (size, size * max(1, tiles - 1), 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    prompt = processor.encode([Message.user(Picture(Image.fromarray(pixels)), QUESTION)])
    if len(prompt.tiles) != tiles:
        raise ValueError(f"no picture has {tiles} tiles here; 1 and 3 to 7 are possible")
    return prompt


def measure(
    name: str, engine: Engine, theirs: Transformers, work: argparse.Namespace
) -> list[Result]:
    """Every picture, both sides taking turns; the first round warms up and does not count."""
    sides = (theirs.answer, partial(ask, engine))
    results = []
    for tiles in work.tiles:
        prompt = make_prompt(engine.processor, tiles)
        rounds = [[side(prompt, work.tokens) for side in sides] for _ in range(1 + work.rounds)]
        tokens = compare_tokens(engine, theirs, prompt, work)
        results.append(summarise(name, engine, prompt, rounds[1:], tokens))
        show(results[-1])
    return results


def compare_tokens(
    engine: Engine, theirs: Transformers, prompt: Prompt, work: argparse.Namespace
) -> Agreement:
    """Both answers once more, with what their tokens were chosen from."""
    params = SamplingParams(max_tokens=work.tokens, ignore_eos=True, logprobs=TOP)
    answer = engine.answer(prompt, params)
    dtype = str(theirs.dtype).removeprefix("torch.")
    written = theirs.written(prompt, work.tokens)
    return agreement(written, answer.token_ids, answer.logprobs, dtype)


def summarise(
    name: str, engine: Engine, prompt: Prompt, pairs: list[list[Arrivals]], tokens: Agreement
) -> Result:
    """What the rounds say, each of which has their answer and ours."""
    weight = engine.model.decoder.embedding.weight
    return Result(
        model=name,
        weights=parameters(engine.model.config).total,
        dtype=str(weight.dtype).removeprefix("torch."),
        tiles=len(prompt.tiles),
        prompt_tokens=len(prompt.token_ids),
        answer_tokens=len(pairs[0][1].ids),
        rounds=len(pairs),
        transformers=Speed.of([theirs for theirs, _ in pairs]),
        ours=Speed.of([mine for _, mine in pairs]),
        prefill_ratio=statistics.median(a.first_ms / b.first_ms for a, b in pairs),
        decode_ratio=statistics.median(b.tokens_per_s / a.tokens_per_s for a, b in pairs),
        tokens=tokens,
        repeats=all(
            answer.ids == first.ids
            for pair in pairs
            for answer, first in zip(pair, pairs[0], strict=True)
        ),
    )


def show(result: Result) -> None:
    """A row of the table."""
    theirs, mine = result.transformers, result.ours
    print(
        f"| {result.model} | {result.tiles} | {result.prompt_tokens} "
        f"| {theirs.first_ms.median:.0f} | {mine.first_ms.median:.0f} "
        f"| {result.prefill_ratio:.2f} | {theirs.tokens_per_s.median:.1f} "
        f"| {mine.tokens_per_s.median:.1f} | {result.decode_ratio:.2f} | {result.tokens}"
        f"{'' if result.repeats else ', not the same in every round'} |",
        flush=True,
    )


def describe_machine(device: torch.device) -> Machine:
    """The device, the threads beside it, and the versions of both sides."""
    name = read_facts(device).name
    return Machine(name, torch.get_num_threads(), torch.__version__, version("transformers"))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=[EMBEDDED, "internvl2-1b"])
    parser.add_argument("--tiles", nargs="+", type=int, default=[1, 3], help="1, or 3 to 7")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, help="threads of both sides; torch's number")
    parser.add_argument("--rounds", type=int, default=5, help="rounds after the first")
    parser.add_argument("--tokens", type=int, default=32, help="length of an answer")
    parser.add_argument("--json", type=Path, help="where to write every number")
    return parser.parse_args()


def main() -> None:
    """Measure every model and print a table."""
    work = parse()
    if work.threads is not None:
        torch.set_num_threads(work.threads)
    device = devices.pick(work.device)
    dtype = devices.choose_dtype(device, "bfloat16", work.dtype)
    machine = describe_machine(device)
    print(
        f"{machine.name}, {machine.threads} threads, torch {machine.torch}, "
        f"transformers {machine.transformers}, {work.dtype}, random weights, {work.rounds} rounds\n"
        "| model | tiles | prompt tokens | first token: transformers, ms | ours, ms | ratio "
        "| tokens/s: transformers | ours | ratio | equal tokens |\n"
        "|---|---|---|---|---|---|---|---|---|---|"
    )
    results: list[Result] = []
    for name in work.models:
        with TemporaryDirectory() as folder:
            model = Path(folder) / "model"
            save_random(name, model, "hf", device=device, dtype=dtype)
            theirs = Transformers.load(model, device, dtype)
            with Engine.load(
                model, device=str(device), dtype=work.dtype, options=OPTIONS
            ) as engine:
                results += measure(name, engine, theirs, work)
    if work.json is not None:
        found = {"machine": asdict(machine), "results": [asdict(result) for result in results]}
        work.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
