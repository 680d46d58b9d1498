"""One engine of the speed benchmark in a process of its own: `python speed_sides.py JOB FOUND`.

Ours answers conversations, pictures and all; so does vLLM. transformers gets token ids and
normalised pixels, so that its figures leave out preprocessing.
"""

import gc
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from peers import Answer, Transformers
from speed_vllm import measure_vllm
from speed_work import MANY, Job, Notebook

from internvl2 import device as devices
from internvl2.bench.latency import ALONE, decode, first_token, resizing
from internvl2.bench.rows import Row
from internvl2.bench.subjects import Subject
from internvl2.bench.throughput import Work, measure, together
from internvl2.bench.timing import Arrivals, ask
from internvl2.checkpoint.config_files import read_config
from internvl2.checkpoint.store import load_model
from internvl2.engine.engine import Engine, EngineOptions
from internvl2.model.low_bit import stored_bytes
from internvl2.processing.processor import Processor
from internvl2.processing.prompt import Prompt


def main() -> None:
    """Measure one job."""
    job, book = Job.read(Path(sys.argv[1])), Notebook(Path(sys.argv[2]))
    sides: dict[str, Callable[[Job, Notebook], None]] = {
        "ours": measure_ours,
        "transformers": measure_transformers,
        "vllm": measure_vllm,
    }
    sides[job.side](job, book)


def measure_ours(job: Job, book: Notebook) -> None:
    """One request at a time, or many, in an engine made for it."""
    if job.verbose:
        logging.basicConfig()
        logging.getLogger("internvl2").setLevel(logging.DEBUG)
    if set(job.parts) & set(MANY):
        with start_ours(job, book, together(job.sizes.requests)) as engine:
            measure_many(engine, job, book)
        return
    if "start" in job.parts and job.has_compiled:
        time_weights(job, book)
    with start_ours(job, book, ALONE) as engine:
        measure_alone(engine, job, book)


def time_weights(job: Job, book: Notebook) -> None:
    """How fast weights come from files that were just written to a device that is awake."""
    device = devices.pick(job.device)
    dtype = devices.choose_dtype(device, "bfloat16", job.dtype)
    torch.zeros(1, device=device)
    devices.synchronize(device)
    started = time.perf_counter()
    model = load_model(job.model, device=device, dtype=dtype)
    devices.synchronize(device)
    taken = time.perf_counter() - started
    book.write("start s", [taken])
    book.write("weights GB/s", [stored_bytes(model) / 1e9 / taken])
    del model
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def start_ours(job: Job, book: Notebook, options: EngineOptions) -> Engine:
    """An engine, with how long a first answer and all its graphs took, imports left out."""
    if not job.graphs:
        options = replace(options, graphs=False)
    started = time.perf_counter()
    engine = Engine.load(
        job.model, device=job.device, dtype=job.dtype, quantize=job.quantize, options=options
    )
    conversation = job.sizes.text.conversation(engine.processor.tokenizer, 0)
    ask(engine, conversation, 1)
    answered = time.perf_counter() - started
    engine.warm_up()
    ready = time.perf_counter() - started
    if "start" in job.parts:
        kind = "" if job.has_compiled else ", nothing compiled"
        book.write(f"first answer s{kind}", [answered])
        book.write(f"ready s{kind}", [ready])
    return engine


def measure_alone(engine: Engine, job: Job, book: Notebook) -> None:
    """What one request takes."""
    sizes = job.sizes
    if "first-token" in job.parts:
        for arithmetic in ("fast", "exact"):
            with resizing(engine, arithmetic):
                row = first_token(engine, sizes.one_picture, sizes.rounds, arithmetic)
            note(book, f"first token {arithmetic}", row)
    if "decode" in job.parts or job.quantize is not None:
        row = decode(engine, sizes.text, sizes.rounds, sizes.decoded)
        note(book, f"decode {job.quantize}" if job.quantize else "decode", row)
    if "video" in job.parts:
        with resizing(engine, "fast"):
            note(book, "video", first_token(engine, sizes.video, sizes.rounds, "video"))


def measure_many(engine: Engine, job: Job, book: Notebook) -> None:
    """What many requests at once take."""
    sizes = job.sizes
    kinds = (
        ("pictures", sizes.many_pictures, sizes.after_pictures, "requests/s"),
        ("texts", sizes.text, sizes.after_texts, "tokens/s"),
    )
    for name, subject, tokens, unit in kinds:
        if name in job.parts:
            work = Work(subject, sizes.requests, tokens, sizes.many_rounds)
            with resizing(engine, "fast"):
                rows = list(measure(engine, work))
            note(book, name, next(row for row in rows if row.unit == unit))


def note(book: Notebook, name: str, row: Row) -> None:
    """Writes a row down."""
    book.write(name, list(row.spread.every), row.limit)


def measure_transformers(job: Job, book: Notebook) -> None:
    """The same prompts; the better of two ways to decode is there beside the usual one."""
    device = devices.pick(job.device)
    config = read_config(job.model)
    processor = Processor.from_directory(job.model, config)
    started = time.perf_counter()
    peer = Transformers.load(job.model, device, devices.choose_dtype(device, "bfloat16", job.dtype))
    devices.synchronize(device)
    book.note(
        f"transformers {version('transformers')}: attention by {peer.attention}, "
        "pixels prepared beforehand"
    )
    if "start" in job.parts:
        book.write("start s", [time.perf_counter() - started])
    sizes = job.sizes
    if "first-token" in job.parts:
        times = first_tokens(peer.answer, prompts(processor, sizes.one_picture, 1 + sizes.rounds))
        book.write("first token fast", times)
        book.write("first token exact", times)
    if "video" in job.parts:
        videos = prompts(processor, sizes.video, 1 + sizes.rounds)
        book.write("video", first_tokens(peer.answer, videos))
    measure_peer_many(peer, processor, job, book)
    if "decode" in job.parts:
        # One prompt: for each new length a static cache would be compiled for anew.
        asked = prompts(processor, sizes.text, 1) * (1 + min(2, sizes.rounds))
        book.write("decode", rates(peer.answer, asked, sizes.decoded))
        if device.type == "cuda":
            book.write("decode compiled", rates(peer.answer_compiled, asked, sizes.decoded))


def measure_peer_many(peer: Transformers, processor: Processor, job: Job, book: Notebook) -> None:
    """Batches of transformers, one after the other."""
    sizes = job.sizes
    kinds = (
        ("pictures", sizes.many_pictures, sizes.after_pictures, sizes.peer_batch, 1),
        ("texts", sizes.text, sizes.after_texts, sizes.requests, sizes.after_texts),
    )
    for name, subject, tokens, batch, each in kinds:
        if name not in job.parts:
            continue
        asked = prompts(processor, subject, sizes.requests)
        peer.seconds_for(asked[:batch], 2)
        starts = range(0, len(asked), batch)
        taken = sum(peer.seconds_for(asked[i : i + batch], tokens) for i in starts)
        book.write(name, [len(asked) * each / taken])


def prompts(processor: Processor, subject: Subject, count: int) -> list[Prompt]:
    """So many of a kind, encoded."""
    tokenizer = processor.tokenizer
    return [processor.encode(subject.conversation(tokenizer, number)) for number in range(count)]


def first_tokens(answer: Answer, asked: list[Prompt]) -> list[float]:
    """Milliseconds; the first prompt warms up."""
    found: list[Arrivals] = [answer(prompt, 1) for prompt in asked]
    return [arrivals.first_ms for arrivals in found[1:]]


def rates(answer: Answer, asked: list[Prompt], tokens: int) -> list[float]:
    """Tokens per second after the first; the first prompt warms up."""
    return [answer(prompt, 1 + tokens).tokens_per_s for prompt in asked][1:]


if __name__ == "__main__":
    main()
