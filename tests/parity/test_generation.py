"""Answers of the engine equal those that the official chat and batch_chat gave, token by token."""

import itertools
import re
from functools import lru_cache

import numpy as np
import pytest

from internvl2.engine.engine import Engine, EngineOptions
from internvl2.engine.sequence import SamplingParams
from internvl2.processing.image import choose_grid, cut
from internvl2.processing.official_text import official_text
from internvl2.processing.pixels import PictureOptions, open_picture
from internvl2.processing.prompt import MediaSpan, Prompt

pytestmark = pytest.mark.parity

CASES = (
    "A_internlm2",
    "A_internlm2_ntk",
    "B_qwen2",
    "C_phi3",
    "D_llama3_vit6b",
    "D2_llama3_ntk",
    "E_qwen25_internvl2_5",
    "E2_internlm2_internvl2_5",
    "F_qwen3",
)
LENGTH_DEPENDENT = ("A_internlm2_ntk", "C_phi3", "D2_llama3_ntk")
"""Official batches differ from official single runs here: padding counts as length."""
ERROR = 1e-4
"""Runs whose two best tokens come closer than this are left out."""
TIGHT = EngineOptions(
    max_context=2048, cache_tokens=2048, max_batch_tokens=29, max_sequences=3, prefix_reuse=False
)
ROOMY = EngineOptions(max_context=2048, cache_tokens=16384)


@lru_cache
def engine_of(checkpoint, options: EngineOptions) -> Engine:
    return Engine.load(checkpoint, device="cpu", dtype="float32", options=options)


class Case:
    """One recording's runs as prompts and parameters."""

    def __init__(self, record, data, expand) -> None:
        self.record, self.data, self.expand = record, data, expand
        self.expected = record.expected
        self.processor = engine_of(record.checkpoint, ROOMY).processor

    def runs(self) -> list[dict]:
        greedy = [r for r in self.expected["runs"] if "num_beams" not in r["generation_kwargs"]]
        return [run for run in greedy if run["min_margin"] > ERROR]

    def prompt(self, run) -> Prompt:
        count = run["num_tiles"]
        parts = run["num_patches_list"] or ([count] if count else [])
        return self.make(self.expand(run["input_ids_rle"]), self.tiles(str(count or 0)), parts)

    def make(self, ids, tiles, parts) -> Prompt:
        meta, media, position, first = self.expected["meta"], [], 0, 0
        for count in parts:
            start = ids.index(self.processor.config.image_token_id, position)
            position = start + count * meta["num_image_token"]
            digest = tiles[first : first + count].tobytes()
            media.append(MediaSpan(start, position, first, count, count, 1, False, digest))
            first += count
        return Prompt(ids, [False] * len(ids), tiles, tuple(media))

    def params(self, **wishes) -> SamplingParams:
        stop = (self.expected["special_ids"]["generation_eos"],)
        return SamplingParams(
            max_tokens=wishes.get("max_new_tokens", 24),
            min_tokens=wishes.get("min_new_tokens", 0),
            repetition_penalty=wishes.get("repetition_penalty", 1.0),
            no_repeat_ngram_size=wishes.get("no_repeat_ngram_size", 0),
            stop_token_ids=stop,
        )

    def tiles(self, name: str) -> np.ndarray:
        """Recorded tiles, or the same cut again from the pictures where they were not kept."""
        stored = self.record.arrays.get(f"tiles_u8_{name}")
        if stored is not None:
            return stored.numpy()
        size = self.expected["meta"]["image_size"]
        if name == "0":
            return np.zeros((0, size, size, 3), np.uint8)
        if "tiles" not in self.expected:
            return np.concatenate([self.tiles("1"), self.tiles("2")])
        pool = np.concatenate([self.cut(*entry) for entry in self.expected["tiles"]["pool"]])
        if name == "batch":
            return np.concatenate([self.tiles("1"), self.tiles("2"), pool[-2:]])
        start, stop = re.fullmatch(
            r"\[(-?\d*):(-?\d*)\]", self.expected["tiles"]["slices"][name]
        ).groups()
        return pool[int(start or 0) : int(stop) if stop else None]

    def cut(self, picture: str, options: dict) -> np.ndarray:
        size = self.expected["meta"]["image_size"]
        source = self.data("official", "pictures", picture)
        image = open_picture(source, PictureOptions(official=True))
        grid = choose_grid(*image.size, size, 1, options["max_num"])
        return cut(image, grid, size, options["use_thumbnail"] and grid.tiles > 1)

    def batch(self, batch) -> list[Prompt]:
        parts = batch["num_patches_list"] or [0] * len(batch["input_ids_rle"])
        tiles = self.tiles("batch" if batch["num_patches_list"] else "0")
        ends = list(itertools.accumulate(parts))
        prompts = []
        for ids, mask, end, count in zip(
            batch["input_ids_rle"], batch["attention_mask_rle"], ends, parts, strict=True
        ):
            kept = itertools.compress(self.expand(ids), self.expand(mask))
            own = tiles[end - count : end]
            prompts.append(self.make(list(kept), own, [count] if count else []))
        return prompts


@pytest.fixture(params=CASES)
def case(request, recording, data, expand):
    return Case(recording(request.param), data, expand)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(ROOMY, id="whole", marks=pytest.mark.slow),
        pytest.param(TIGHT, id="chunked"),
    ],
)
def test_every_greedy_run_gives_the_official_tokens(case, options):
    runs = case.runs()
    assert len(runs) >= 5
    answers = engine_of(case.record.checkpoint, options).generate(
        [case.prompt(run) for run in runs],
        [case.params(**run["generation_kwargs"]) for run in runs],
    )
    found = {run["name"]: list(a.token_ids) for run, a in zip(runs, answers, strict=True)}
    assert found == {run["name"]: run["new_ids"] for run in runs}


def test_tokens_become_the_official_raw_text(case):
    for run in case.expected["runs"]:
        if "raw_text" in run:
            assert official_text(case.processor.tokenizer, run["new_ids"]) == run["raw_text"]


@pytest.mark.slow
def test_batches_equal_single_runs_ours_and_the_official_ones(case):
    engine = engine_of(case.record.checkpoint, ROOMY)
    for batch in case.expected["batch_chat"]:
        prompts, params = case.batch(batch), case.params()
        together = [list(answer.token_ids) for answer in engine.generate(prompts, params)]
        fresh = engine_of(case.record.checkpoint, TIGHT)
        assert together == [list(fresh.answer(prompt, params).token_ids) for prompt in prompts]
        if batch.get("min_margin", 1.0) > ERROR and "same_as_single" in batch:
            assert together == [single["new_ids"] for single in batch["same_as_single"]]


@pytest.mark.parametrize("case", [c for c in CASES if c not in LENGTH_DEPENDENT], indirect=True)
def test_batches_equal_official_batches_where_padding_does_not_change_them(case):
    engine = engine_of(case.record.checkpoint, ROOMY)
    for batch in case.expected["batch_chat"]:
        answers = engine.generate(case.batch(batch), case.params())
        if "new_ids" in batch:
            padded = zip(answers, batch["new_ids"], strict=True)
            assert all(list(a.token_ids) == ids[: len(a.token_ids)] for a, ids in padded)
        else:
            texts = [official_text(case.processor.tokenizer, a.token_ids) for a in answers]
            assert texts == batch["responses"]
