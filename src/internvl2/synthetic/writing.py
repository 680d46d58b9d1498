"""Writes samples as a data set: pictures, the official jsonl, and its meta.json.

An interrupted set goes on where it stopped: its request stands in request.json, a finished line in
samples.jsonl means that its pictures are there, and meta.json appears when all is written.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from internvl2.synthetic.catalogue import TASKS, find, mixture, sample
from internvl2.synthetic.sample import Sample
from internvl2.synthetic.words import Split

REQUEST, SAMPLES, META = "request.json", "samples.jsonl", "meta.json"
SEED_STEP = 10**9
"""Samples of one seed are numbered from its multiple on, so that no two seeds share one."""


@dataclass(frozen=True)
class Request:
    """What a data set is made of; the same request always makes the same set."""

    count: int
    tasks: tuple[str, ...]
    split: Split = "train"
    seed: int = 0
    difficulty: float = 1.0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count is {self.count}; give at least 1")
        if self.count >= SEED_STEP:
            raise ValueError(f"count is {self.count}; give less than {SEED_STEP}")
        if not 0 <= self.difficulty <= 1:
            raise ValueError(f"difficulty is {self.difficulty}; give 0 to 1")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; give 0 or more")
        for task in self.tasks:
            find(task)

    def sample(self, index: int) -> Sample:
        """The sample at a place in the set."""
        number = self.seed * SEED_STEP + index
        names = self.tasks or tuple(TASKS)
        if len(names) == 1:
            return sample(names[0], number, self.split, self.difficulty)
        weights = {name: find(name).weight for name in names}
        return mixture(number, self.split, weights, self.difficulty)


def write_set(folder: Path, request: Request, advance: Callable[[int], object]) -> int:
    """Writes what is missing of a set, and says of how many samples.

    `advance` is told how many more are there, first those of an earlier run.
    """
    done = _prepare(folder, request)
    advance(done)
    with (folder / SAMPLES).open("a", encoding="utf-8") as file:
        for index in range(done, request.count):
            record = _write_sample(folder, index, request.sample(index))
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            file.flush()
            advance(1)
    entry = {
        "root": "",
        "annotation": SAMPLES,
        "data_augment": False,
        "repeat_time": 1,
        "length": request.count,
    }
    _write_json(folder / META, {f"synthetic-{request.split}": entry})
    return request.count - done


def _prepare(folder: Path, request: Request) -> int:
    """Makes the folder, or finds how many samples of the same request are in it."""
    wanted = json.loads(json.dumps(asdict(request)))
    if folder.is_dir() and any(folder.iterdir()):
        _check_unfinished(folder, wanted)
        return _keep_whole_lines(folder / SAMPLES)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / REQUEST, wanted)
    return 0


def _check_unfinished(folder: Path, wanted: dict[str, Any]) -> None:
    """Refuses what is not an unfinished set of the same request."""
    if not (folder / REQUEST).is_file():
        raise ValueError(f"{folder} is not empty; give a new folder")
    if (folder / META).is_file():
        raise ValueError(f"{folder} holds a finished set; give a new folder")
    try:
        begun = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"{folder / REQUEST} is damaged; give a new folder") from None
    differing = [name for name in wanted if begun.get(name) != wanted[name]]
    if differing:
        name = differing[0]
        raise ValueError(
            f"{folder} holds an unfinished set with {name} {begun.get(name)}, not {wanted[name]}; "
            "ask for the same to go on, or give a new folder"
        )


def _keep_whole_lines(path: Path) -> int:
    """Cuts off a line that was not finished, and counts the others."""
    if not path.is_file():
        return 0
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        path.write_bytes(whole)
    return whole.count(b"\n")


def _write_sample(folder: Path, index: int, made: Sample) -> dict[str, Any]:
    """Stores the pictures and gives the record of the official format."""
    record: dict[str, Any] = {"id": index, "task": made.task}
    name = f"{index:08}"
    if made.is_video:
        record["video"] = f"videos/{name}"
        paths = [f"videos/{name}/{i:02}.png" for i in range(len(made.images))]
        opening = "<video>\n"
    elif len(made.images) > 1:
        paths = record["image"] = [f"images/{name}-{i + 1}.png" for i in range(len(made.images))]
        opening = "".join(f"Image-{i + 1}: <image>\n" for i in range(len(made.images)))
    else:
        paths = [f"images/{name}.png"] * len(made.images)
        opening = "<image>\n" * len(made.images)
        if paths:
            record["image"] = paths[0]
    for path, image in zip(paths, made.images, strict=True):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / path)
    if made.images and not made.is_video:
        sizes = [image.size for image in made.images]
        alone = len(sizes) == 1
        record["width"] = sizes[0][0] if alone else [width for width, _ in sizes]
        record["height"] = sizes[0][1] if alone else [height for _, height in sizes]
    turns: list[dict[str, str]] = []
    for turn in made.turns:
        turns.append({"from": "human", "value": opening + turn.question})
        turns.append({"from": "gpt", "value": turn.answer})
        opening = ""
    return record | {"conversations": turns}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """All of the file or none of it."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    part.replace(path)
