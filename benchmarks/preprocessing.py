"""Time from a picture or a video to tiles, against the pipeline of the official example.

The official pipeline is written out here as its README has it: Pillow, one tile after the other,
normalised to float on the processor; a video decoded from the beginning to the last frame
wanted. Ours gives uint8 tiles, which the device normalises. Both make the same pixels, which is
checked. Then `--preprocess fast` is compared with that, in time and in pixels, and many pictures
are prepared by threads, as an engine does. The inputs are made here, the same on every machine, and
kept in a temporary folder.

    python benchmarks/preprocessing.py [--rounds 7] [--skip-video]
"""

import argparse
import io
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from internvl2.processing.image import Grid, choose_grid, cut, open_picture
from internvl2.processing.resize import Arithmetic
from internvl2.processing.tile_cache import digest_of_bytes
from internvl2.processing.video import read_frames, sample_indices

TILE = 448
MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def official_tiles(image: Image.Image, max_tiles: int) -> list[Image.Image]:
    """Resize, crop one tile after the other, then the thumbnail."""
    grid = choose_grid(*image.size, TILE, 1, max_tiles)
    filled = image.resize((TILE * grid.columns, TILE * grid.rows))
    tiles = []
    for k in range(grid.tiles):
        x, y = k % grid.columns * TILE, k // grid.columns * TILE
        tiles.append(filled.crop((x, y, x + TILE, y + TILE)))
    if len(tiles) > 1:
        tiles.append(image.resize((TILE, TILE)))
    return tiles


def official_pixels(tiles: Sequence[Image.Image]) -> torch.Tensor:
    """ToTensor and Normalize per tile, then stack."""
    values = []
    for tile in tiles:
        array = np.array(tile.convert("RGB"), copy=True)
        tensor = torch.from_numpy(array).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
        values.append(tensor.sub(MEAN).div(STD))
    return torch.stack(values)


def official_picture(path: Path) -> torch.Tensor:
    """The official example's load_image."""
    return official_pixels(official_tiles(Image.open(path).convert("RGB"), 12))


def our_picture(
    source: Path | bytes | Image.Image, arithmetic: Arithmetic = "exact", threads: int = 1
) -> np.ndarray:
    """Tiles as the engine gets them."""
    image = open_picture(source)
    return cut(image, choose_grid(*image.size, TILE, 1, 12), TILE, True, arithmetic, threads)


def official_video(path: Path, num_frames: int, threads: str = "SLICE") -> torch.Tensor:
    """The official example's load_video: decoded in order, by one thread as it asks decord for."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.thread_count = threads, 1 if threads == "SLICE" else 0
        last = stream.frames - 1
        indices = sample_indices(None, float(stream.average_rate or 25), last, num_frames)
        images = {}
        for index, frame in enumerate(container.decode(stream)):
            if index in indices:
                images[index] = frame.to_image()
            if index == max(indices):
                break
    tiles = [tile for index in indices for tile in official_tiles(images[index], 1)]
    return official_pixels(tiles)


def our_video(path: Path, num_frames: int) -> np.ndarray:
    """One tile per frame, as the engine gets them."""
    frames = read_frames(path, num_frames, shrink_to=TILE)
    return np.concatenate([cut(image, Grid(1, 1), TILE) for image in frames.images])


def photo(width: int, height: int) -> Image.Image:
    """Smooth shapes, edges and grain."""
    rng = np.random.default_rng(2024)
    coarse = rng.integers(0, 256, (-(-height // 32), width // 32, 3), dtype=np.uint8)
    wide = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    grain = rng.integers(-12, 13, (height, width, 1), dtype=np.int16)
    return Image.fromarray(np.clip(np.asarray(wide) + grain, 0, 255).astype(np.uint8))


def page(width: int, height: int) -> Image.Image:
    """Black lines of text on white."""
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    for number, y in enumerate(range(20, height - 20, 20)):
        draw.text((20, y), f"{number}. A line of a page, to be read: {number * 7919}", fill="black")
    return image


def make_picture(path: Path) -> None:
    """A photo-like JPEG of 4000x3000."""
    photo(4000, 3000).save(path, quality=92)


def make_video(path: Path, seconds: int = 60) -> None:
    """1080p at 30 frames a second, H.264, a keyframe every 250 frames, drifting over a scene."""
    rng = np.random.default_rng(2025)
    coarse = Image.fromarray(rng.integers(0, 256, (60, 120, 3), dtype=np.uint8))
    scene = np.asarray(coarse.resize((3840, 2160), Image.Resampling.BICUBIC)).astype(np.int16)
    scene = np.clip(scene + rng.integers(-6, 7, (2160, 3840, 1)), 0, 255).astype(np.uint8)
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        stream.gop_size = 250
        stream.options = {"preset": "veryfast", "crf": "23", "sc_threshold": "0"}
        for index in range(seconds * 30):
            x, y = index % 1900, (index * 7 // 13) % 1070
            view = np.ascontiguousarray(scene[y : y + 1080, x : x + 1920])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(view, format="rgb24")))
        container.mux(stream.encode(None))


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """An input, made once and then kept."""
    path = Path(tempfile.gettempdir()) / "internvl2-benchmark" / name
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        unfinished = path.with_name(f"unfinished-{os.getpid()}-{name}")
        make(unfinished)
        unfinished.replace(path)
    return path


class Cost(NamedTuple):
    """Milliseconds of one call: by the clock, and of all processor cores together."""

    wall: float
    cpu: float


def cost(work: Callable[[], object]) -> Cost:
    """What one call costs."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Cost((time.perf_counter() - wall) * 1000, (time.process_time() - cpu) * 1000)


def median(costs: Sequence[Cost]) -> Cost:
    """Medians of clock and processor time."""
    return Cost(statistics.median(c.wall for c in costs), statistics.median(c.cpu for c in costs))


def compare(
    label: str, official: Callable[[], torch.Tensor], ours: Callable[[], np.ndarray], rounds: int
) -> None:
    """Both in turns, so that a busy machine slows both alike; medians and their ratio."""
    tiles = torch.from_numpy(ours()).permute(0, 3, 1, 2).float().div(255).sub(MEAN).div(STD)
    same = torch.equal(tiles, official())
    pairs = [(cost(official), cost(ours)) for _ in range(rounds)]
    slow, fast = (median(column) for column in zip(*pairs, strict=True))
    verdict = "pixels identical" if same else "PIXELS DIFFER"
    print(
        f"{label:<34} {slow.wall:9.0f} {fast.wall:7.0f} {slow.wall / fast.wall:6.2f}x"
        f" {slow.cpu:9.0f} {fast.cpu:7.0f}   {verdict}",
        flush=True,
    )
    if not same:
        raise SystemExit(1)


def compare_fast(label: str, source: bytes | Image.Image, rounds: int) -> None:
    """Both arithmetics in turns, and how far apart their pixels are."""
    exact, fast = our_picture(source), our_picture(source, "fast")
    difference = np.abs(exact.astype(np.int16) - fast)
    pairs = [
        (cost(lambda: our_picture(source)), cost(lambda: our_picture(source, "fast")))
        for _ in range(rounds)
    ]
    slow, quick = (median(column) for column in zip(*pairs, strict=True))
    print(
        f"{label:<34} {slow.wall:9.1f} {quick.wall:7.1f} {slow.wall / quick.wall:6.2f}x"
        f"   at most {difference.max()} of 255; {(difference > 0).mean():.2%} of values differ,"
        f" {(difference > 1).mean() * 1e6:.1f} of a million by more than 1",
        flush=True,
    )


def report_fast(rounds: int) -> None:
    """The fast arithmetic against the exact one, from JPEG bytes and from decoded pictures.

    Both with one thread; an engine shares a picture among several.
    """
    title = "milliseconds of one thread, median"
    print(f"\n{title:<34} {'exact':>9} {'fast':>7} {'ratio':>7}")
    for width, height in ((4000, 3000), (1600, 1200), (1024, 768)):
        image, file = photo(width, height), io.BytesIO()
        image.save(file, "JPEG", quality=92)
        compare_fast(f"JPEG {width}x{height} to 12+1 tiles", file.getvalue(), rounds)
        compare_fast("  decoded before", image, rounds)
    compare_fast("page of 1240x1754, decoded", page(1240, 1754), rounds)
    compare_fast("photo of 224x160, decoded", photo(224, 160), rounds)
    compare_fast("page of 300x220, decoded", page(300, 220), rounds)
    known = cost(lambda: digest_of_bytes(file.getvalue()))
    print(f"known by its {len(file.getvalue()) / 1000:.0f} kB: {known.wall:.2f} ms")


def report_shares(rounds: int) -> None:
    """How long one picture takes that threads share."""
    image = photo(1600, 1200)
    print("\n1600x1200, decoded, to 12+1 tiles, milliseconds by threads that share the picture")
    for arithmetic in ("exact", "fast"):
        times = [
            median([cost(partial(our_picture, image, arithmetic, n)) for _ in range(rounds)]).wall
            for n in (1, 2, 4, 8, 16)
        ]
        print(f"  {arithmetic:<6} " + "   ".join(f"{time:6.1f}" for time in times), flush=True)


def report_threads(pictures: int = 32) -> None:
    """Pictures of 1024x768 a second, by how many threads prepare them."""
    file = io.BytesIO()
    photo(1024, 768).save(file, "JPEG", quality=92)
    content = file.getvalue()
    print("\nJPEG 1024x768 to 12+1 tiles, pictures a second")
    for arithmetic in ("exact", "fast"):
        rates: list[str] = []
        for threads in (1, 2, 4, 8):
            with ThreadPoolExecutor(threads) as pool:
                work = [content] * pictures
                spent = cost(
                    lambda w=work, p=pool, a=arithmetic: list(
                        p.map(lambda one: our_picture(one, a), w)
                    )
                )
            rates.append(f"{threads} threads {pictures / spent.wall * 1000:6.1f}")
        print(f"  {arithmetic:<6} {'   '.join(rates)}", flush=True)


def peak_memory() -> float:
    """Largest resident size of this process so far, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1000
    return float("nan")


def report_memory(path: Path, num_frames: int) -> None:
    """By how much reading the frames raises the peak of a process that has its imports done."""
    before = peak_memory()
    our_video(path, num_frames)
    print(f"{peak_memory() - before:.0f}")


def machine() -> str:
    """Processor and cores, so that figures can be placed."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores; Pillow {Image.__version__}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="timed repetitions for the picture")
    parser.add_argument("--skip-video", action="store_true", help="only the picture")
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        return report_memory(arguments.memory_of, 32)
    print(machine())
    print(f"{'milliseconds, median':<34} {'official':>9} {'ours':>7} {'ratio':>7} ", end="")
    print(f"{'CPU off.':>9} {'ours':>7}")
    picture = cached("photo-4000x3000.jpg", make_picture)
    compare(
        "JPEG 4000x3000 to 12+1 tiles",
        lambda: official_picture(picture),
        lambda: our_picture(picture),
        arguments.rounds,
    )
    report_fast(arguments.rounds)
    report_shares(arguments.rounds)
    report_threads()
    if arguments.skip_video:
        return None
    print()
    video = cached("video-1080p30-60s.mp4", make_video)
    for num_frames in (8, 32):
        compare(
            f"H.264 1080p 60 s, {num_frames} frames",
            lambda n=num_frames: official_video(video, n),
            lambda n=num_frames: our_video(video, n),
            max(arguments.rounds // 2, 1),
        )
        compare(
            f"  against all cores, {num_frames} frames",
            lambda n=num_frames: official_video(video, n, "AUTO"),
            lambda n=num_frames: our_video(video, n),
            max(arguments.rounds // 2, 1),
        )
    command = [sys.executable, __file__, "--memory-of", str(video)]
    grown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    print(f"peak memory grows by {grown} MB for 32 frames (aim: under 200 MB)")
    return None


if __name__ == "__main__":
    main()
