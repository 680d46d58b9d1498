"""vLLM's side of the speed benchmark: its offline engine, pictures prepared by itself.

It reads the `hf` layout, and a directory of the official layout that brings its own code.
"""

import json
import time
from pathlib import Path
from typing import Any

from speed_work import Job, Notebook

from internvl2.bench.subjects import Subject, draw, question
from internvl2.processing.tokenizer import Tokenizer

CONTEXT = 8192
BATCHES = [1, 2, 4, 8, 16, 32, 64, 128]
"""For which it records graphs."""


def measure_vllm(job: Job, book: Notebook) -> None:
    """All parts that it has: videos of InternVL2 it has not."""
    from vllm import LLM, __version__  # pyright: ignore[reportMissingImports]

    started = time.perf_counter()
    is_official = json.loads((job.model / "config.json").read_text())["model_type"] != "internvl"
    engine = LLM(
        model=str(job.model),
        trust_remote_code=is_official,
        dtype=job.dtype,
        max_model_len=CONTEXT,
        gpu_memory_utilization=0.85,
        limit_mm_per_prompt={"image": 1},
        max_num_seqs=max(BATCHES),
        enable_prefix_caching=False,
        mm_processor_cache_gb=0,
        compilation_config={"cudagraph_capture_sizes": BATCHES},
    )
    asking = _Asking(engine, job.model, "<image>" if is_official else "<IMG_CONTEXT>")
    if "start" in job.parts:
        book.write("ready s", [time.perf_counter() - started])
    book.note(f"vLLM {__version__}: prefix and processor caches off, pictures prepared by itself")
    _measure_alone(asking, job, book)
    _measure_many(asking, job, book)


def _measure_alone(asking: "_Asking", job: Job, book: Notebook) -> None:
    sizes = job.sizes
    if "first-token" in job.parts:
        pictures = [[asking.request(sizes.one_picture, n)] for n in range(1 + sizes.rounds)]
        times = [1000 * asking.seconds_for(each, 1) for each in pictures][1:]
        book.write("first token fast", times)
        book.write("first token exact", times)
    if "decode" in job.parts:
        texts = [[asking.request(sizes.text, number)] for number in range(1 + sizes.rounds)]
        first = [asking.seconds_for(each, 1) for each in texts][1:]
        whole = [asking.seconds_for(each, 1 + sizes.decoded) for each in texts][1:]
        rates = [sizes.decoded / (b - a) for a, b in zip(first, whole, strict=True)]
        book.write("decode", rates)


def _measure_many(asking: "_Asking", job: Job, book: Notebook) -> None:
    sizes = job.sizes
    kinds = (
        ("pictures", sizes.many_pictures, sizes.after_pictures, 1),
        ("texts", sizes.text, sizes.after_texts, sizes.after_texts),
    )
    for name, subject, tokens, each in kinds:
        if name not in job.parts:
            continue
        asked = [asking.request(subject, number) for number in range(sizes.requests)]
        asking.seconds_for(asked, 4)
        rounds = [asking.seconds_for(asked, tokens) for _ in range(sizes.many_rounds)]
        book.write(name, [len(asked) * each / taken for taken in rounds])


class _Asking:
    """Requests in vLLM's form."""

    def __init__(self, engine: Any, model: Path, placeholder: str) -> None:
        self._engine = engine
        self._tokenizer = Tokenizer.from_directory(model)
        self._placeholder = placeholder

    def request(self, subject: Subject, number: int) -> dict[str, Any]:
        """The same picture and question that the others get."""
        text = question(self._tokenizer, subject.text_tokens, number)
        if subject.picture is None:
            return {"prompt": _turn(text)}
        picture = draw(subject.picture, number).convert("RGB")
        prompt = _turn(f"{self._placeholder}\n{text}")
        return {"prompt": prompt, "multi_modal_data": {"image": picture}}

    def seconds_for(self, requests: list[dict[str, Any]], tokens: int) -> float:
        """Until all answers have so many tokens."""
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

        # Random weights choose ids that the small tokenizer has no text for.
        params = SamplingParams(
            temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False
        )
        started = time.perf_counter()
        outputs = self._engine.generate(requests, params, use_tqdm=False)
        taken = time.perf_counter() - started
        written = sum(len(output.outputs[0].token_ids) for output in outputs)
        if written != tokens * len(requests):
            raise ValueError(f"vLLM wrote {written} tokens, not {tokens} for {len(requests)}")
        return taken


def _turn(text: str) -> str:
    """As our template has it, without instructions."""
    opening = "<|im_start|>system\n<|im_end|><|im_start|>user\n"
    return f"{opening}{text}<|im_end|><|im_start|>assistant\n"
