"""How fast one GPU answers: ours, transformers and vLLM on the same random weights, in one table.

    python benchmarks/speed.py --models 1b 2b 8b --json speed.json
    python benchmarks/speed.py --only first-token decode --models 8b --engines ours
    python benchmarks/speed.py --show first.json second.json

Random weights in each shape are written once (`hf` layout, nano's tokenizer), every engine reads
them in a process of its own, and gets the same pictures and questions. An engine that is not
installed is left out and named; one that fails is named with its last line, and the others go on.
Ours has a process for each way of asking, and starts twice: without compiled kernels, and with
those that the first process left. The file of `--json` is written anew after each process, and
with `--budget` no process goes on after so many seconds. Parts can be measured in several runs,
whose files `--show` joins into one table. `--tiny` is nano with small pictures, to see that
everything runs, on a CPU too.

Limits are the maker's: weights once a token, arithmetic at the speed of bf16.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Literal

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from speed_work import MANY, PARTS, Found, Job, Sizes

from internvl2 import device as devices
from internvl2.bench.random_weights import save_random
from internvl2.engine.device_report import read_facts

ENGINES = ("ours", "transformers", "vllm")
PEERS = ("transformers", "vllm")
SIDES = Path(__file__).parent / "speed_sides.py"
VLLM_SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "HF_HUB_OFFLINE": "1",
}
CACHES = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "CUDA_CACHE_PATH")
"""Where compiled kernels are kept."""


@dataclass(frozen=True)
class Line:
    """A line of the table."""

    figure: str
    part: str
    says: str
    better: Literal["less", "more"]
    aims: tuple[float | None, float | None, float | None] = (None, None, None)
    """For 1B, 2B and 8B."""


LINES = (
    Line("first token fast", "first-token", "first token, {picture}, fast, ms", "less",
         (45, 60, 110)),
    Line("first token exact", "first-token", "first token, {picture}, exact, ms", "less"),
    Line("decode", "decode", "decode, batch 1, tokens/s", "more", (1200, 650, 180)),
    Line("decode fp8", "quantized", "decode, batch 1, fp8, tokens/s", "more"),
    Line("decode int8", "quantized", "decode, batch 1, int8, tokens/s", "more"),
    Line("fp8 gain", "quantized", "fp8 by bf16", "more", (None, 1.4, 1.6)),
    Line("int8 gain", "quantized", "int8 by bf16", "more", (None, 1.4, 1.6)),
    Line("pictures", "pictures", "{requests} requests, {small}, {after_pictures} out, requests/s",
         "more", (20, 14, 8)),
    Line("texts", "texts", "{requests} texts, {after_texts} out, tokens/s", "more",
         (15000, 12000, 7000)),
    Line("video", "video", "video, {frames} decoded frames, first token, ms", "less",
         (60, 85, 200)),
    Line("start s", "start", "start: weights in place, s", "less"),
    Line("weights GB/s", "start", "start: weights, GB/s", "more", (2, 2, 2)),
    Line("first answer s", "start", "start: first token, s", "less"),
    Line("ready s", "start", "start: ready with graphs, s", "less", (None, None, 20)),
    Line("first answer s, nothing compiled", "start",
         "start, nothing compiled: first token, s", "less"),
    Line("ready s, nothing compiled", "start",
         "start, nothing compiled: ready with graphs, s", "less"),
)  # fmt: skip
MODELS = ("1b", "2b", "8b")


def main() -> None:
    """Measure, or show what was measured."""
    work = parse()
    if work.show:
        show(joined([json.loads(path.read_text()) for path in work.show]))
        return
    sizes = Sizes.tiny() if work.tiny else Sizes()
    if work.rounds is not None:
        sizes = replace(sizes, rounds=work.rounds)
    report = {"conditions": conditions(work), "sizes": texts_of(sizes), "models": {}}
    for name in ["nano"] if work.tiny else work.models:
        with checkpoint(name, work) as model:
            for engines in measure(model, sizes, work):
                report["models"][name] = engines
                if work.json is not None:
                    work.json.write_text(json.dumps(report, indent=1))
    show(report)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="short names")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, help="of one request at a time")
    parser.add_argument("--tiny", action="store_true", help="nano and small pictures")
    parser.add_argument("--folder", type=Path, help="where checkpoints stay for the next run")
    parser.add_argument("--vllm-path", type=Path, help="folder that vLLM is imported from")
    parser.add_argument("--vllm-models", type=Path, help="folder with NAME/ in the official layout")
    parser.add_argument("--limit", type=float, default=570, help="seconds for each process")
    parser.add_argument("--budget", type=float, default=math.inf, help="seconds for everything")
    parser.add_argument("--no-graphs", action="store_true", help="ours without CUDA graphs")
    parser.add_argument("--verbose", action="store_true", help="ours says which kernels it takes")
    parser.add_argument("--json", type=Path, help="where to write every number")
    parser.add_argument("--show", nargs="+", type=Path, help="files of --json, for one table")
    work = parser.parse_args()
    work.deadline = time.monotonic() + work.budget
    return work


def conditions(work: argparse.Namespace) -> dict[str, object]:
    """What it was measured on."""
    device = devices.pick(work.device)
    return {
        "device": str(device),
        "name": read_facts(device).name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": work.dtype,
    }


@contextmanager
def checkpoint(name: str, work: argparse.Namespace) -> Iterator[Path]:
    """Random weights in a shape, in the `hf` layout; those of `--folder` are used again."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) if work.folder is None else work.folder
        folder.mkdir(parents=True, exist_ok=True)
        directory = folder / name
        if not directory.exists():
            device = devices.pick(work.device)
            dtype = devices.choose_dtype(device, "bfloat16", work.dtype)
            started = time.perf_counter()
            save_random(name, directory, "hf", device=device, dtype=dtype)
            taken = time.perf_counter() - started
            print(f"random weights of {name}: {taken:.1f} s", file=sys.stderr, flush=True)
            if device.type == "cuda":
                torch.cuda.empty_cache()
        yield directory


def measure(model: Path, sizes: Sizes, work: argparse.Namespace) -> Iterator[dict[str, dict]]:
    """What the engines do with a checkpoint, again after each process."""
    found: dict[str, dict] = {}
    with TemporaryDirectory() as caches:
        for engine in work.engines:
            whole = Found()
            for job in jobs(engine, model, sizes, work):
                whole.join(run(job, work, Path(caches)))
                found[engine] = whole.as_json()
                yield found


def jobs(engine: str, model: Path, sizes: Sizes, work: argparse.Namespace) -> list[Job]:
    """The processes of one engine."""
    device = str(devices.pick(work.device))
    parts = tuple(part for part in work.only if part != "quantized")
    if engine == "vllm" and work.vllm_models is not None:
        model = work.vllm_models / model.name
    plain = Job(engine, model, parts, device, work.dtype, sizes)
    if engine != "ours":
        return [plain] if parts else []
    return our_jobs(replace(plain, graphs=not work.no_graphs, verbose=work.verbose), work)


def our_jobs(plain: Job, work: argparse.Namespace) -> list[Job]:
    """One for each engine that is made: from nothing, for one request, for many, in few bits."""
    found = []
    if "start" in plain.parts:
        found.append(replace(plain, parts=("start",), has_compiled=False))
    alone = tuple(part for part in plain.parts if part not in MANY)
    many = tuple(part for part in plain.parts if part in MANY)
    found += [replace(plain, parts=parts) for parts in (alone, many) if parts]
    if "quantized" in work.only:
        ways = ("fp8", "int8") if plain.device.startswith("cuda") else ("int8",)
        found += [replace(plain, parts=("quantized",), quantize=way) for way in ways]
    return found


def run(job: Job, work: argparse.Namespace, caches: Path) -> Found:
    """Measures a job in a process of its own; what it wrote before it failed counts."""
    if job.side != "ours" and not is_importable(job.side, work):
        return Found(notes=[f"{job.side} is not installed"])
    what = " ".join(filter(None, (job.side, job.quantize, *job.parts)))
    if time.monotonic() >= work.deadline:
        return Found(notes=[f"{what}: no time was left"])
    with TemporaryDirectory() as scratch:
        order, result = Path(scratch) / "job.json", Path(scratch) / "found.json"
        job.write(order)
        print(f"{job.model.name}: {what}", file=sys.stderr, flush=True)
        command = [sys.executable, str(SIDES), str(order), str(result)]
        started = time.perf_counter()
        failure = call(command, environment_of(job, work, caches), work)
        taken = time.perf_counter() - started
        print(f"{job.model.name}: {what}: {taken:.0f} s in all", file=sys.stderr, flush=True)
        raw = json.loads(result.read_text()) if result.exists() else Found().as_json()
    found = Found.of(raw)
    if failure is not None:
        held = f" {job.quantize}" if job.quantize else ""
        found.notes.append(f"{job.side}{held} failed: {failure}")
    return found


def environment_of(job: Job, work: argparse.Namespace, caches: Path) -> dict[str, str]:
    """Where a process finds its packages, and ours the kernels compiled so far."""
    own: dict[str, str] = {}
    if job.side == "ours" and "start" in work.only:
        own = {name: str(caches / name.lower()) for name in CACHES}
    if job.side == "vllm":
        own = dict(VLLM_SETTINGS)
        if work.vllm_path is not None:
            paths = [str(work.vllm_path), os.environ.get("PYTHONPATH", "")]
            own["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return os.environ | own


def call(
    command: list[str], environment: Mapping[str, str], work: argparse.Namespace
) -> str | None:
    """None where a process ended well, else its last words."""
    limit = min(work.limit, max(1.0, work.deadline - time.monotonic()))
    late = ""
    with TemporaryFile("w+", errors="replace") as errors:
        try:
            code = subprocess.run(command, env=environment, timeout=limit, stderr=errors).returncode
        except subprocess.TimeoutExpired:
            code, late = -1, f"it took longer than {limit:.0f} s"
        errors.seek(0)
        said = errors.read()
    sys.stderr.write(said)
    if code == 0:
        return None
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = lines[-1] if lines else f"exit code {code}"
    return f"{late}; its last words: {last}" if late and lines else late or last


def is_importable(name: str, work: argparse.Namespace) -> bool:
    """Whether a peer is there."""
    if name == "vllm" and work.vllm_path is not None:
        return (work.vllm_path / "vllm").is_dir()
    return find_spec(name) is not None


def texts_of(sizes: Sizes) -> dict[str, str]:
    """The sizes that lines of the table name."""
    names = ("picture", "small", "requests", "after_pictures", "after_texts", "frames")
    return {name: str(getattr(sizes, name)) for name in names}


def joined(reports: list[dict]) -> dict:
    """Several reports as one; of a figure that comes twice, the last counts."""
    whole = reports[0]
    for report in reports[1:]:
        if report["conditions"] != whole["conditions"] or report["sizes"] != whole["sizes"]:
            raise SystemExit("the reports are of different machines or sizes; show them one by one")
        for name, engines in report["models"].items():
            for engine, raw in engines.items():
                known = whole["models"].setdefault(name, {}).get(engine, Found().as_json())
                found = Found.of(known)
                found.join(Found.of(raw))
                whole["models"][name][engine] = found.as_json()
    return whole


def show(report: dict) -> None:
    """A table for each model."""
    about = report["conditions"]
    print(
        f"{about['name']} ({about['device']}), {about['threads']} threads, torch {about['torch']}, "
        f"{about['dtype']}, random weights"
    )
    for name, engines in report["models"].items():
        found = {engine: Found.of(raw) for engine, raw in engines.items()}
        print("\n" + "\n".join(table(name, found, report["sizes"])))
        for each in found.values():
            for text in dict.fromkeys(each.notes):
                print(f"* {text}")


def table(name: str, found: dict[str, Found], sizes: dict[str, str]) -> Iterator[str]:
    """Lines of one model: what was measured, of which limit, against whom."""
    peers = [engine for engine in PEERS if engine in found]
    heads = [name, "aim", "limit", "ours", "of the limit"]
    heads += [head for peer in peers for head in (peer, "ratio")]
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    ours = found.get("ours", Found())
    values = {engine: medians(each) for engine, each in found.items()}
    mine = values.get("ours", {})
    for line in LINES:
        if not any(line.figure in each for each in values.values()):
            continue
        value, limit = mine.get(line.figure), ours.limits.get(line.figure)
        cells = [line.says.format(**sizes), aim(line, name), text(limit), text(value)]
        cells.append("" if value is None or limit is None else f"{gain(line, value, limit):.0%}")
        for peer in peers:
            theirs = values[peer].get(line.figure)
            ratio = None if value is None or theirs is None else gain(line, value, theirs)
            cells += [text(theirs), "" if ratio is None else f"{ratio:.2f}"]
        yield f"| {' | '.join(cells)} |"


def medians(found: Found) -> dict[str, float]:
    """Of every figure; of the two ways in which transformers decodes, the faster one."""
    values = {figure: spread.median for figure, spread in found.figures.items()}
    if "decode compiled" in values:
        values["decode"] = max(values["decode"], values["decode compiled"])
    for way in ("fp8", "int8"):
        if f"decode {way}" in values and "decode" in values:
            values[f"{way} gain"] = values[f"decode {way}"] / values["decode"]
    return values


def gain(line: Line, value: float, other: float) -> float:
    """How many times better the first is."""
    return other / value if line.better == "less" else value / other


def aim(line: Line, name: str) -> str:
    """What is aimed at for a model."""
    wanted = line.aims[MODELS.index(name)] if name in MODELS else None
    if wanted is None:
        return ""
    return f"{'≤' if line.better == 'less' else '≥'} {wanted:,g}"


def text(number: float | None) -> str:
    """A figure in a cell."""
    if number is None:
        return ""
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"


if __name__ == "__main__":
    main()
