"""Samples by number, and steps of packs: deterministic, resumable, and strict about faults."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from internvl2.config import DecoderConfig, InternVLConfig, RotaryConfig, VisionConfig
from internvl2.processing.conversation import Message, Picture, Video
from internvl2.processing.processor import Processor
from internvl2.train.data import loader as loader_module
from internvl2.train.data.dataset import Dataset, Fault, Sample
from internvl2.train.data.filling import Costs, Limits, Waiting, plan_in_order
from internvl2.train.data.formats import (
    DataSet,
    Joined,
    SampleError,
    SourceOptions,
    from_records,
    open_source,
)
from internvl2.train.data.loader import Loader, LoaderOptions, Position
from internvl2.train.data.mixture import training_loader, validation_loader
from internvl2.train.data.order import sample_at, shuffled
from internvl2.train.data.workers import Make, Workers
from internvl2.train.parallel import World
from internvl2.train.recipe import DataSource, Packing, Recipe, Validation

SIDE = 56
LIMITS = Limits(tokens=160, tiles=8, window=6)


@pytest.fixture(scope="module")
def processor(data) -> Processor:
    vision = VisionConfig(16, 1, 2, 32, image_size=SIDE)
    decoder = DecoderConfig("qwen2", 1000, 16, 1, 2, 2, 8, 32, 4096, RotaryConfig(1e4))
    config = InternVLConfig(vision, decoder, "Hermes-2", tile_size=SIDE, max_tiles=4)
    return Processor.from_directory(data("official", "B_qwen2", "checkpoint"), config)


def record(number: int, **fields) -> dict:
    tag = "<image>\n" if "image" in fields else ""
    question = {"from": "human", "value": f"{tag}{'a b c ' * (number % 5)}{number}?"}
    return {"conversations": [question, {"from": "gpt", "value": str(number)}]} | fields


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """30 records, every third with a picture of its own shape."""
    folder = tmp_path_factory.mktemp("set")
    records = []
    for number in range(30):
        fields = {} if number % 3 else {"image": f"{number}.png"}
        if fields:
            size = (SIDE * (1 + number % 3), SIDE * (1 + number % 2))
            Image.new("RGB", size, (number, 0, 0)).save(folder / f"{number}.png")
        records.append(json.dumps(record(number, **fields)))
    (folder / "set.jsonl").write_text("\n".join(records))
    return folder


@pytest.fixture
def dataset(folder, processor) -> Dataset:
    return Dataset(open_source(folder / "set.jsonl"), processor, LIMITS, seed=3)


def loader(dataset: Dataset, position: Position | None = None, **options) -> Loader:
    costs = Costs.of(dataset.processor.config)
    return Loader(dataset, costs, LoaderOptions(**options), position)


def seen(steps) -> list[tuple[str, ...]]:
    """The samples of each pack, in the order of the packs."""
    return [batch.where for step in steps for batch in step.batches]


@pytest.mark.parametrize("count", [1, 2, 3, 10, 64, 1000])
def test_an_epoch_sees_every_sample_once_in_an_order_of_its_own(count):
    epochs = [[shuffled(place, count, seed) for place in range(count)] for seed in (1, 2)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert epochs[0] != epochs[1] or count < 10
    assert epochs[0] != list(range(count)) or count < 10


def test_epochs_follow_each_other_and_may_keep_the_order_of_the_file():
    assert [sample_at(n, 3, 0, shuffle=False) for n in range(5)] == [0, 1, 2, 0, 1]
    two = [sample_at(n, 10, 5) for n in range(20)]
    assert sorted(two[:10]) == sorted(two[10:]) == list(range(10))
    assert two[:10] != two[10:]


def test_measuring_gives_the_size_of_what_is_encoded(dataset):
    for ordinal in range(len(dataset)):
        size, sample = dataset.measure(ordinal), dataset.encode(ordinal)
        assert size.tokens == len(sample.prompt.token_ids)
        assert size.tiles == len(sample.prompt.tiles)


def test_a_video_is_measured_without_being_read(processor):
    frames = tuple(Image.new("RGB", (30, 20)) for _ in range(3))
    conversation = (Message.user(Video(frames), "Why?"), Message.assistant("So."))
    data = Dataset(from_records([conversation]), processor, LIMITS)
    assert data.measure(0).tiles == len(data.encode(0).prompt.tiles) == 3


def test_pictures_of_a_record_share_its_tile_budget(processor):
    wide = Image.new("RGB", (4 * SIDE, SIDE))
    parts = [Picture(wide), Picture(wide), Picture(wide, max_tiles=1)]
    conversation = (Message.user(*parts, "Why?"), Message.assistant("So."))
    source = from_records([conversation], SourceOptions(max_tiles=6))
    tiles = Dataset(source, processor, Limits(400, 12)).encode(0).prompt.media
    assert [(span.columns, span.rows) for span in tiles] == [(2, 1), (2, 1), (1, 1)]


def test_augmented_tiles_are_jpegs_of_one_of_the_official_qualities(processor):
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    conversation = (Message.user(Picture(Image.fromarray(noise)), "?"), Message.assistant("So."))
    plain, changed = (
        Dataset(from_records([conversation] * 40, SourceOptions(augment=on)), processor, LIMITS)
        for on in (False, True)
    )
    possible = {quality: _jpeg(noise, quality) for quality in range(75, 101)}
    assert (plain.encode(0).prompt.tiles[0] == noise).all()
    tiles = [changed.encode(number).prompt.tiles[0] for number in range(40)]
    found = [q for tile in tiles for q, jpeg in possible.items() if (tile == jpeg).all()]
    assert len(found) >= 40
    assert len(set(found)) > 10
    assert (changed.encode(7).prompt.tiles[0] == tiles[7]).all()


def test_an_epoch_of_packs_holds_every_sample_once(dataset, folder):
    packs = seen(loader(dataset))
    assert sorted(where for pack in packs for where in pack) == sorted(
        f"{folder / 'set.jsonl'}:{line}" for line in range(1, 31)
    )
    assert len(packs) < 20


def test_tokens_have_one_length_and_tiles_few(dataset):
    dataset = replace(dataset, limits=replace(LIMITS, tiles=40))
    batches = [batch for step in loader(dataset) for batch in step.batches]
    assert {len(batch.tokens) for batch in batches} == {LIMITS.tokens}
    assert {len(batch.tiles) for batch in batches} <= set(range(0, 41, 4))
    assert any(len(batch.tiles) > batch.num_tiles for batch in batches)
    assert all(len(batch.tiles) >= batch.num_tiles for batch in batches)


def test_seeds_and_epochs_have_orders_of_their_own(dataset):
    once = seen(loader(dataset))
    assert seen(loader(dataset)) == once
    assert seen(loader(replace(dataset, seed=4))) != once
    twice = seen(loader(dataset, epochs=2.0))
    assert len({where for pack in twice for where in pack}) == 30
    assert sum(map(len, twice)) == 60
    assert sum(map(len, seen(loader(dataset, epochs=0.5)))) == 15


def test_ranks_share_the_packs_of_one_process(dataset):
    alone = list(loader(dataset, packs_per_step=4))
    shared = [list(loader(dataset, packs_per_step=4, rank=rank, world=2)) for rank in (0, 1)]
    assert len(alone) == len(shared[0]) == len(shared[1])
    for whole, *parts in zip(alone, *shared, strict=True):
        rows = zip(*(part.batches for part in parts), strict=True)
        assert [b.where for row in rows for b in row] == [b.where for b in whole.batches]
        assert whole.position == parts[0].position == parts[1].position


def test_worker_processes_change_nothing(dataset):
    wanted = list(loader(dataset, packs_per_step=2))
    several = loader(dataset, packs_per_step=2, workers=2)
    found = list(several)
    several.close()
    assert seen(found) == seen(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.position == theirs.position
        assert all(
            (a.tiles == b.tiles).all() and (a.tokens == b.tokens).all()
            for a, b in zip(ours.batches, theirs.batches, strict=True)
        )


@pytest.mark.parametrize("fill", ["evenly", "in_order"])
@pytest.mark.parametrize("world", [1, 2])
def test_a_run_resumes_at_any_step_on_any_number_of_ranks(dataset, world, fill):
    options = {"packs_per_step": 2, "epochs": 2.0, "fill": fill}
    whole = list(loader(dataset, **options))
    for number in (0, 2, len(whole) - 2):
        position = Position.of(json.loads(json.dumps(whole[number].position.state())))
        rests = [
            list(loader(dataset, position, rank=r, world=world, **options)) for r in range(world)
        ]
        found = [b.where for steps in zip(*rests, strict=True) for s in steps for b in s.batches]
        assert found == seen(whole[number + 1 :])


def test_resuming_decodes_nothing_that_was_seen(dataset, monkeypatch):
    late = list(loader(dataset, epochs=2.0))[-3].position
    asked = []
    monkeypatch.setattr(Dataset, "measure", lambda self, n: asked.append(n) or Fault("x", "y"))
    list(loader(dataset, late, epochs=2.0, skip_bad_samples=99))
    assert asked == list(range(late.next_sample, 60))


@pytest.mark.parametrize("fill", ["evenly", "in_order"])
def test_a_run_goes_on_with_a_mended_sample_but_not_with_more_or_fewer(
    folder, processor, tmp_path, fill
):
    def changed(lines: list[str]) -> Dataset:
        path = tmp_path / "set.jsonl"
        path.write_text("\n".join(lines))
        source = open_source(path, SourceOptions(root=folder))
        return Dataset(source, processor, LIMITS, seed=3)

    lines = (folder / "set.jsonl").read_text().splitlines()
    begun = list(loader(changed(lines), fill=fill))
    position = Position.of(json.loads(json.dumps(begun[0].position.state())))
    mended = changed([json.dumps(record(99)), *lines[1:]])
    assert len(list(loader(mended, position, fill=fill))) == len(begun) - 1
    for others, count in ((lines[1:], 29), ([*lines, lines[0]], 31)):
        fault = rf"{count} samples, and had 30 when the run was begun.*another --output"
        with pytest.raises(ValueError, match=fault):
            loader(changed(others), position, fill=fill)
    old = Position.of({k: v for k, v in position.state().items() if k != "epoch"})
    assert loader(changed(lines[1:]), old, fill=fill).position.epoch == 29


def test_the_number_of_steps_is_known_before_the_run(dataset):
    steps = loader(dataset, packs_per_step=2, epochs=3.0)
    assert steps.count_steps() == len(list(steps))
    estimated = loader(dataset, packs_per_step=2, epochs=12.0)
    assert estimated.count_steps(samples=36) == pytest.approx(len(list(estimated)), rel=0.15)


def test_a_pack_in_order_takes_what_fits_of_a_window_of_its_own(dataset):
    made = loader(dataset, packs_per_step=2, fill="in_order")
    steps = list(made)
    assert len(steps) == made.count_steps() == 3
    order = [dataset.encode(ordinal).where for ordinal in range(30)]
    sizes = [dataset.measure(ordinal) for ordinal in range(30)]
    planned = [Waiting(n, size.tokens, size.tiles) for n, size in enumerate(sizes)]
    plans = plan_in_order(planned, LIMITS)
    assert seen(steps)[:5] == [tuple(order[n] for n in plan.samples) for plan in plans]
    for number, pack in enumerate(seen(steps)):
        window = order[6 * number : 6 * number + 6]
        assert pack == tuple(where for where in window if where in pack)
        assert pack[:1] == tuple(window[:1])
    assert any(len(pack) < 6 for pack in seen(steps))


def test_a_pack_in_order_makes_each_sample_once_and_measures_none(dataset, monkeypatch):
    encode, made = Dataset.encode, []
    monkeypatch.setattr(Dataset, "measure", None)
    monkeypatch.setattr(Dataset, "encode", lambda self, n: made.append(n) or encode(self, n))
    list(loader(dataset, fill="in_order"))
    assert made == sorted(set(made))


def test_a_sample_with_too_many_tiles_for_any_pack_is_a_fault_in_order_too(dataset):
    dataset = replace(dataset, limits=replace(LIMITS, tiles=1))
    with pytest.raises(SampleError, match="a pack holds 1"):
        list(loader(dataset, fill="in_order"))


def test_every_worker_has_a_pack_to_make_while_a_step_is_waited_for(dataset, monkeypatch):
    class Recorder(Workers):
        submitted = 0

        def submit(self, task):
            Recorder.submitted += isinstance(task, Make)
            return super().submit(task)

    monkeypatch.setattr(loader_module, "Workers", Recorder)
    several = loader(dataset, packs_per_step=2, world=2, workers=3, fill="in_order", epochs=20.0)
    next(iter(several))
    several.close()
    assert Recorder.submitted >= 2 * 3


@pytest.mark.parametrize("fill", ["evenly", "in_order"])
def test_idle_tiles_are_given_where_another_rank_has_tiles(dataset, fill):
    options = {"packs_per_step": 2, "world": 2, "idle_tiles": True, "fill": fill}
    ranks = [list(loader(dataset, rank=rank, **options)) for rank in (0, 1)]
    for steps in zip(*ranks, strict=True):
        tiles = [len(step.batches[0].tiles) for step in steps]
        assert all(tiles) or not any(tiles)


def test_records_of_a_program_join_those_that_the_recipe_names(folder, processor):
    recipe = Recipe(
        "m",
        data=(DataSource(str(folder / "set.jsonl"), repeat=0.1),),
        packing=Packing(LIMITS.tokens, LIMITS.tiles, LIMITS.window),
        packs_per_step=1,
        workers=0,
    )
    world = World(0, 1, torch.device("cpu"))
    for records in ([record(number) for number in range(4)], []):
        made = training_loader(recipe, processor, world, None, iter(records))
        found = sorted(where for pack in seen(made) for where in pack)
        named = [f"{folder / 'set.jsonl'}:{line}" for line in (1, 2, 3)]
        assert found == named + [f"records:{number + 1}" for number in range(len(records))]
    with pytest.raises(ValueError, match="the recipe names no data"):
        training_loader(replace(recipe, data=()), processor, world, None)


def test_validation_data_is_never_augmented_and_takes_the_recipe_s_frames(folder, processor):
    source = DataSource(str(folder / "set.jsonl"), augment=True, num_frames=3)
    recipe = Recipe("m", data=(source,), validation=Validation((source,)), workers=0)
    world = World(0, 1, torch.device("cpu"))
    trained = training_loader(recipe, processor, world, None).dataset.source
    measured = validation_loader(recipe, processor, world).dataset.source
    assert (trained[0].augment, measured[0].augment) == (True, False)
    assert isinstance(trained, Joined)
    assert isinstance(trained.sources[0], DataSet)
    assert trained.sources[0].reading.num_frames == 3


def said(question: str, answer: str, **fields) -> dict:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"conversations": turns} | fields


FAULTS = {
    "missing picture": (record(1, image="gone.png"), r"gone\.png does not exist"),
    "truncated picture": (record(1, image="cut.jpg"), r"cut\.jpg is damaged"),
    "truncated video": (
        {"conversations": record(1)["conversations"], "video": "cut.mp4"},
        r"video .*cut\.mp4",
    ),
    "bad line": ("{", "not JSON"),
    "too long": (record(1, system="word " * 300), "the context has room for 160"),
    "too many tiles": (record(1, image=["wide.png"] * 2, budget=12), "tiles; a pack holds 8"),
    "picture that is a page": (record(1, image="page.jpg"), r"page\.jpg is not a picture; .*HTML"),
    "empty picture": (record(1, image="empty.jpg"), r"empty\.jpg is empty \(0 bytes\)"),
    "picture that is a folder": (record(1, image="folder.jpg"), r"folder\.jpg is a directory"),
    "tags without pictures": (said("<image><image>?", "a", image="wide.png"), "1 pictures, but 2"),
    "box outside": (said("?", "<box>[[0, 0, 1001, 5]]</box>"), r"turn 2 has the box \[0, 0, 1001"),
    "unknown role": (
        {"conversations": [{"from": "robot", "value": "?"}]},
        r"conversations\[0\]\.from is 'robot'; known: system, human",
    ),
    "empty answer": (said("?", ""), "turn 2 is an empty answer"),
}


def faulty(folder: Path, name: str, processor: Processor) -> Dataset:
    """Ten good records around a bad one on line 6."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    file = io.BytesIO()
    noise.save(file, "JPEG")
    (folder / "cut.jpg").write_bytes(file.getvalue()[:900])
    (folder / "page.jpg").write_text("<!DOCTYPE html><html>Not found</html>")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "folder.jpg").mkdir()
    (folder / "cut.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42" + bytes(500))
    Image.new("RGB", (SIDE * 4, SIDE)).save(folder / "wide.png")
    broken, _ = FAULTS[name]
    if name == "too many tiles":
        question = {"from": "human", "value": "<image><image>?"}
        broken = broken | {"conversations": [question, {"from": "gpt", "value": "a"}]}
    lines = [json.dumps(record(number)) for number in range(10)]
    lines.insert(5, broken if isinstance(broken, str) else json.dumps(broken))
    (folder / "set.jsonl").write_text("\n".join(lines))
    source = open_source(folder / "set.jsonl")
    return Dataset(source, processor, replace(LIMITS, tiles=8), max_tiles=12, seed=1)


@pytest.mark.parametrize("name", FAULTS)
def test_a_sample_that_cannot_be_used_stops_the_run(tmp_path, processor, name):
    data = faulty(tmp_path, name, processor)
    with pytest.raises(SampleError, match=rf"set\.jsonl:6: .*{FAULTS[name][1]}"):
        list(loader(data))


@pytest.mark.parametrize("name", FAULTS)
def test_a_budget_turns_faults_into_counted_skips(tmp_path, processor, name):
    data, file = faulty(tmp_path, name, processor), tmp_path / "bad_samples.jsonl"
    steps = loader(data, skip_bad_samples=1, bad_samples=file)
    packs = seen(steps)
    assert sum(map(len, packs)) == 10
    assert steps.left_out == 1
    (left_out,) = [json.loads(line) for line in file.read_text().splitlines()]
    assert left_out["where"].endswith("set.jsonl:6")
    with pytest.raises(SampleError, match=r"set\.jsonl:6"):
        list(loader(data, skip_bad_samples=1, epochs=2.0))


def test_a_fault_is_written_once_for_all_ranks(tmp_path, processor):
    data, file = faulty(tmp_path, "bad line", processor), tmp_path / "bad_samples.jsonl"
    for rank in (0, 1):
        options = {"packs_per_step": 2, "rank": rank, "world": 2}
        list(loader(data, skip_bad_samples=1, bad_samples=file, **options))
    assert len(file.read_text().splitlines()) == 1


def test_data_without_a_usable_sample_end_with_one_message(processor):
    data = Dataset(from_records([{}] * 3), processor, LIMITS)
    with pytest.raises(ValueError, match="none of the 3 samples can be used"):
        list(loader(data, skip_bad_samples=9))
    with pytest.raises(ValueError, match="hold no sample"):
        Dataset(from_records([]), processor, LIMITS)


def test_packs_must_be_shared_evenly():
    with pytest.raises(ValueError, match="packs_per_step is 3; a multiple of the 2 processes"):
        LoaderOptions(packs_per_step=3, world=2)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        LoaderOptions(packs_per_step=2, rank=2, world=2)


def test_a_sample_knows_where_it_stands(dataset, folder):
    found = [dataset.encode(n) for n in range(3)]
    assert all(isinstance(one, Sample) and str(folder) in one.where for one in found)


def _jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))
