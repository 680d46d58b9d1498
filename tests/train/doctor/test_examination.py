"""The doctor: counts every fault with its place, stops at none, shows what a run would learn."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from internvl2.config import DecoderConfig, InternVLConfig, RotaryConfig, VisionConfig
from internvl2.processing.processor import Processor
from internvl2.train.data.filling import Costs
from internvl2.train.data.loader import Loader, LoaderOptions
from internvl2.train.doctor.examination import Examination
from internvl2.train.doctor.findings import Kind
from internvl2.train.doctor.page import page
from internvl2.train.doctor.report import Report, SetReport, lines
from internvl2.train.doctor.sets import open_sets
from internvl2.train.recipe import DataSource, Packing, Recipe, Synthetic, Validation

SIDE = 56
Write = Callable[..., str]


@pytest.fixture(scope="module")
def processor(data) -> Processor:
    vision = VisionConfig(16, 1, 2, 32, image_size=SIDE)
    decoder = DecoderConfig("qwen2", 1000, 16, 1, 2, 2, 8, 32, 4096, RotaryConfig(1e4))
    config = InternVLConfig(vision, decoder, "Hermes-2", tile_size=SIDE, max_tiles=4)
    return Processor.from_directory(data("official", "B_qwen2", "checkpoint"), config)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes records, or broken lines, beside a sound picture."""
    Image.linear_gradient("L").resize((SIDE * 2, SIDE)).save(tmp_path / "sound.png")

    def written(*records: dict | str, name: str = "set.jsonl") -> str:
        lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(tmp_path / name)

    return written


def record(answer: str, question: str = "What?", image: str | None = "sound.png") -> dict:
    tag = "" if image is None else "<image>\n"
    turns = [{"from": "human", "value": tag + question}, {"from": "gpt", "value": answer}]
    return {"conversations": turns} | ({} if image is None else {"image": image})


def recipe_of(*paths: str, tokens: int = 400, tiles: int = 8, **fields) -> Recipe:
    data = tuple(DataSource(path) for path in paths)
    packing = Packing(tokens=tokens, tiles=tiles, window=4)
    return Recipe(model="tiny", data=data, packing=packing, packs_per_step=2, **fields)


def examine(recipe: Recipe, processor: Processor, limit: int | None = None) -> Examination:
    sets = open_sets(recipe, processor.template.name, limit)
    examination = Examination(recipe, processor, sets)
    examination.run(0, lambda done: None)
    return examination


def examined(recipe: Recipe, processor: Processor, limit: int | None = None) -> Report:
    return examine(recipe, processor, limit).report("recipe", 3)


def kinds(report: SetReport) -> dict[Kind, int]:
    return {found.kind: found.count for found in report.found}


FAULTY = {
    "not JSON": ('{"conversations": [', "unreadable record"),
    "an unknown form": ({"image": "sound.png", "text": "a"}, "unusable record"),
    "a placeholder too many": (record("a", "<image> Both?"), "unusable record"),
    "a missing picture": (record("a", image="gone.png"), "unreadable media"),
    "an empty answer": (record(""), "empty answer"),
    "an answer of blanks": (record(" \n"), "empty answer"),
    "no answer": ({"conversations": [{"from": "human", "value": "What?"}]}, "no answer"),
    "a box outside": (record("<box>[[1, 2, 3, 1004]]</box>"), "box"),
    "a box of words": (record("<box>[[left]]</box>"), "box"),
    "a box without brackets": (record("<box>1, 2, 3, 4</box>"), "box"),
    "a box that is not closed": (record("<box>[[1, 2, 3, 4]]"), "box"),
    "a box upside down": (record("<box>[[1, 9, 3, 4]]</box>"), "reversed box"),
    "too many words": (record("word " * 500, image=None), "too long"),
    "too many tiles": (record("a", "<image>" * 8) | {"image": ["sound.png"] * 9}, "too many tiles"),
}


def test_every_fault_is_told_with_its_line(write: Write, processor: Processor):
    path = write(record("fine"), *(stored for stored, _ in FAULTY.values()), record("also fine"))
    (report,) = examined(recipe_of(path, tokens=500), processor).sets
    told = {p.where: found.kind for found in report.found if found.is_fault for p in found.first}
    expected = {f"{path}:{line}": kind for line, (_, kind) in enumerate(FAULTY.values(), 2)}
    assert told == expected
    assert report.has_faults
    assert (report.stored, report.inspected) == (len(FAULTY) + 2,) * 2
    assert report.usable == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty (0 bytes)"),
        (b"<html></html>", "is not a picture"),
        (b"half", "damaged"),
    ],
)
def test_pictures_that_cannot_be_read_are_named(
    content: bytes, reason: str, write: Write, processor: Processor, tmp_path: Path
):
    whole = (tmp_path / "sound.png").read_bytes()
    content = whole[: len(whole) // 2] if content == b"half" else content
    (tmp_path / "broken.png").write_bytes(content)
    (report,) = examined(recipe_of(write(record("a", image="broken.png"))), processor).sets
    (place,) = report.found[0].first
    assert "broken.png" in place.reason
    assert reason in place.reason


@pytest.mark.parametrize(
    ("stored", "kind"),
    [
        (record("It ends with <|im_end|>"), "control token"),
        (record("There are no <image> here"), "control token"),
        (record("<ref>a cat</ref><box>[[5, 5, 5, 9]]</box>"), "flat box"),
        (record("<ref>a cat</ref> sleeps"), "ref without box"),
        (record("a dot", image="tiny.png"), "tiny picture"),
        (record("a line", image="wide.png"), "extreme shape"),
    ],
)
def test_what_may_be_meant_is_a_warning(
    stored: dict, kind: Kind, write: Write, processor: Processor, tmp_path: Path
):
    Image.new("RGB", (9, 9)).save(tmp_path / "tiny.png")
    Image.new("RGB", (900, 60)).save(tmp_path / "wide.png")
    (report,) = examined(recipe_of(write(record("fine"), stored)), processor).sets
    assert kinds(report) == {kind: 1}
    assert report.usable == 2
    assert not report.has_faults


def test_grounded_answers_are_sound(write: Write, processor: Processor):
    answer = "<ref>a cat</ref><box>[[1, 2, 30, 40], [0, 0, 1000, 1000]]</box>"
    path = write(record(answer, "Where is <ref>a cat</ref>?"))
    assert examined(recipe_of(path), processor).sets[0].found == ()


def test_one_sample_may_have_several_faults(write: Write, processor: Processor):
    path = write(record("<box>[[9, 9, 1, 1]]</box> <box>[[0, 0, 9, 1001]]</box>", "<|im_end|>"))
    (report,) = examined(recipe_of(path), processor).sets
    assert kinds(report) == {"box": 1, "reversed box": 1, "control token": 1}


def test_ten_places_of_a_kind_are_told_and_all_are_counted(write: Write, processor: Processor):
    path = write(*(record("", image=None) | {"id": number} for number in range(12)))
    report = examined(recipe_of(path), processor)
    (found,) = [found for found in report.sets[0].found if found.is_fault]
    assert (found.count, len(found.first)) == (12, 10)
    assert "    and 2 more" in list(lines(report, colour=False))


def test_a_picture_that_is_gone_since_ends_no_check(
    write: Write, processor: Processor, tmp_path: Path
):
    examination = examine(recipe_of(write(record("a"), record("b", image=None))), processor)
    (tmp_path / "sound.png").unlink()
    (report,) = examination.report("recipe", 2).sets
    assert (report.usable, len(report.shown)) == (2, 1)
    assert [len(cards) for cards in examination.examples(2)] == [1]


def test_findings_stay_on_their_line_and_steer_no_terminal(write: Write, processor: Processor):
    report = examined(recipe_of(write(record("<ref>a\n\x1b[2J</ref> cat"))), processor)
    (told,) = [line for line in lines(report, colour=False) if ":1: turn 2 has" in line]
    assert r"<ref>a\n\x1b[2J</ref>" in told


def test_numbers_are_those_of_the_prompts(write: Write, processor: Processor):
    path = write(record("short", image=None), record("a much longer answer, with a picture"))
    examination = examine(recipe_of(path), processor)
    report = examination.report("recipe", 3).sets[0]
    samples = [examination.dataset.encode(number).prompt for number in range(2)]  # pyright: ignore
    tokens = sum(len(sample.token_ids) for sample in samples)
    assert report.totals is not None
    assert report.totals.tokens.mean == tokens / 2
    assert report.totals.tokens.max == len(samples[1].token_ids)
    assert report.totals.tiles.max == len(samples[1].tiles)
    assert report.totals.label_share == sum(sum(s.is_target) for s in samples) / tokens
    assert report.totals.visual_share == samples[1].num_image_tokens / tokens


def test_steps_are_those_of_a_run(write: Write, processor: Processor):
    path = write(*(record("word " * (7 * number % 40), image=None) for number in range(1, 30)))
    recipe = recipe_of(path, tokens=160)
    examination = examine(recipe, processor)
    dataset = examination.dataset
    options = LoaderOptions(packs_per_step=recipe.packs_per_step)
    run = type(dataset)(dataset.source, processor, dataset.limits, recipe.max_tiles, recipe.seed)
    loader = Loader(run, Costs.of(processor.config), options)
    report = examination.report("recipe", 0)
    assert report.steps == loader.count_steps()
    assert report.epoch is not None
    assert not report.epoch.is_estimate


def test_repeats_count_for_the_epoch_and_are_looked_at_once(write: Write, processor: Processor):
    recipe = Recipe(model="tiny", data=(DataSource(write(record("a"), record("b")), repeat=2.5),))
    report = examined(recipe, processor).sets[0]
    assert (report.stored, report.inspected) == (2, 2)
    assert report.epoch is not None
    assert report.epoch.samples == 5
    assert report.found == ()


def test_equal_samples_are_found_across_sets_and_file_names(
    write: Write, processor: Processor, tmp_path: Path
):
    Image.open(tmp_path / "sound.png").save(tmp_path / "copy.bmp")
    first = write(record("a"), record("b"), name="first.jsonl")
    second = write(record("a", image="copy.bmp"), record("c"), name="second.jsonl")
    held_out = write(record("b"), record("d"), name="held_out.jsonl")
    recipe = recipe_of(first, second, validation=Validation(data=(DataSource(held_out),)))
    reports = examined(recipe, processor).sets
    assert [kinds(report) for report in reports] == [{}, {"duplicate": 1}, {"also trained on": 1}]
    assert reports[1].found[0].first[0].where == f"{second}:1"
    assert f"{first}:2" in reports[2].found[0].first[0].reason
    assert not any(report.has_faults for report in reports)


def test_a_set_that_cannot_be_opened_does_not_hide_the_others(write: Write, processor: Processor):
    meta = {"a": {"annotation": "set.jsonl"}, "b": {"annotation": "gone.jsonl"}}
    write(record("a"))
    path = write(json.dumps(meta), name="meta.json")
    report = examined(recipe_of(path), processor)
    assert [one.inspected for one in report.sets] == [1, 0]
    assert "gone.jsonl is absent" in str(report.sets[1].closed)
    assert report.has_faults
    assert page(report, [[], []]).count("cannot be opened") == 2


def test_a_limit_holds_for_each_set(write: Write, processor: Processor):
    path = write(*(record(str(number)) for number in range(5)))
    recipe = recipe_of(path, synthetic=(Synthetic(("arithmetic",), samples=10**9, pictures=False),))
    report = examined(recipe, processor, limit=2)
    assert [(one.stored, one.inspected) for one in report.sets] == [(5, 2), (10**9, 2)]
    assert all(one.epoch is not None and one.epoch.is_estimate for one in report.sets)


def test_an_interrupt_leaves_what_was_found(write: Write, processor: Processor):
    path = write(*(record(str(number), image=None) for number in range(9)))
    recipe = recipe_of(path, write(record("never seen"), name="later.jsonl"))
    examination = Examination(recipe, processor, open_sets(recipe, "Hermes-2", None))
    done = []

    def advance(count: int) -> None:
        done.append(count)
        if len(done) == 4:
            raise KeyboardInterrupt

    examination.run(0, advance)
    report = examination.report("recipe", 1)
    assert [(one.stored, one.inspected) for one in report.sets] == [(9, 4), (1, 0)]
    assert list(lines(report, colour=False))[-1].startswith("interrupted")


@pytest.mark.slow
def test_processes_find_what_one_finds(write: Write, processor: Processor):
    path = write(*(record(str(n % 70) if n % 9 else "") for n in range(100)))
    recipe = recipe_of(path)
    alone = examined(recipe, processor)
    shared = Examination(recipe, processor, open_sets(recipe, "Hermes-2", None))
    shared.run(2, lambda done: None)
    assert shared.report("recipe", 3) == alone


def test_no_data_is_an_error(processor: Processor):
    with pytest.raises(ValueError, match="names no data"):
        open_sets(recipe_of(), "Hermes-2", None)
