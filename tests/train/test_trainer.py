"""Runs learn, go on bit by bit where they ended, and end clearly whatever stops them."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from internvl2.checkpoint.store import load, load_model
from internvl2.engine.engine import Engine
from internvl2.engine.sequence import SamplingParams
from internvl2.processing.conversation import Message, Picture
from internvl2.train import step_loss
from internvl2.train.monitoring.log import StepRecord, read_records
from internvl2.train.recipe import (
    DataSource,
    Freeze,
    Optimizer,
    Packing,
    Recipe,
    Recompute,
    Schedule,
    Validation,
)
from internvl2.train.trainer import Ending, Trainer

SOURCE = Path(__file__).parents[2] / "src"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255,) * 3}


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> Path:
    """Plain pictures with their colour's name, and some text alone."""
    folder = tmp_path_factory.mktemp("samples")
    records = []
    for number in range(24):
        name = list(COLOURS)[number % 4]
        Image.new("RGB", (112, 112), COLOURS[name]).save(folder / f"{number}.png")
        turns = [("human", "<image>\nWhat colour?"), ("gpt", name)]
        records.append({"image": f"{number}.png", "conversations": conversation(turns)})
    for number in range(8):
        turns = [("human", f"Say {number}"), ("gpt", str(number))]
        records.append({"conversations": conversation(turns)})
    (folder / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder / "train.jsonl"


def conversation(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"from": who, "value": text} for who, text in turns]


@pytest.fixture
def recipe(data, samples, tmp_path) -> Recipe:
    return Recipe(
        model=str(data("official", "A_internlm2", "checkpoint")),
        output=str(tmp_path / "run"),
        data=(DataSource(str(samples)),),
        optimizer=Optimizer(learning_rate=1e-2),
        schedule=Schedule(max_steps=8),
        packing=Packing(tokens=256, tiles=8, window=8),
        packs_per_step=2,
        max_tiles=1,
        workers=0,
        dtype="float32",
        device="cpu",
        save_every=3,
    )


def train(recipe: Recipe) -> Ending:
    return Trainer(recipe).run()


def records(recipe: Recipe) -> list[StepRecord]:
    return read_records(Path(recipe.output) / "metrics.jsonl")[0]


def losses(recipe: Recipe) -> list[float]:
    return [record.loss for record in records(recipe)]


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_model(folder).state_dict()


def command(recipe: Recipe, *launcher: str) -> subprocess.Popen[str]:
    file = Path(recipe.output).with_suffix(".toml")
    recipe.write(file)
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "internvl2", "train", str(file)],
        env=os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.01)


def wait_for_step(recipe: Recipe, step: int, process: subprocess.Popen[str]) -> None:
    metrics = Path(recipe.output) / "metrics.jsonl"
    wait_for(metrics, process)
    while metrics.read_text().count("\n") < step:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.01)


def test_a_run_learns_and_its_folder_is_a_model(recipe):
    recipe = replace(recipe, schedule=Schedule(max_steps=25))
    ending = train(recipe)
    assert (ending.reason, ending.step) == ("finished", 25)
    assert losses(recipe)[-1] < 0.5 < 5 < losses(recipe)[0]
    loaded = load(recipe.output, device="cpu")
    before = weights(recipe.model)
    changed = {n.split(".")[0] for n, t in weights(recipe.output).items() if (t != before[n]).any()}
    assert changed == {"projector", "decoder"}
    assert loaded.config.decoder.kind == "internlm2"


def test_what_was_learned_under_the_mask_is_answered_token_by_token(recipe):
    """A mask that shows answers to whom they are asked of also gives low losses, but no answers."""
    train(replace(recipe, schedule=Schedule(max_steps=25)))
    pictures = [Picture(Image.new("RGB", (112, 112), colour)) for colour in COLOURS.values()]
    asked = [(Message.user(picture, "What colour?"),) for picture in pictures]
    with Engine.load(recipe.output, device="cpu") as engine:
        answers = engine.generate(asked, SamplingParams(max_tokens=8))
    assert [answer.text for answer in answers] == list(COLOURS)


@pytest.mark.slow
def test_an_epoch_sees_every_sample_once(recipe):
    train(replace(recipe, schedule=Schedule(epochs=2.0)))
    assert sum(step.samples for step in records(recipe)) == 2 * 32


def test_a_run_learns_from_records_of_a_program(recipe):
    picture = Picture(Image.new("RGB", (56, 56), "red"))
    own = [(Message.user(picture, f"{n}?"), Message.assistant(str(n))) for n in range(6)]
    Trainer(replace(recipe, data=(), schedule=Schedule(epochs=1.0)), records=iter(own)).run()
    assert sum(step.samples for step in records(recipe)) == 6


def test_only_the_last_vision_layers_are_trained_where_the_recipe_says_so(recipe):
    frozen = Freeze(vision=True, projector=True, decoder=True, head=True, vision_last=1)
    train(replace(recipe, freeze=frozen, drop_path=0.1, schedule=Schedule(max_steps=3)))
    before, after = weights(recipe.model), weights(recipe.output)
    changed = {name for name in before if (before[name] != after[name]).any()}
    last = max(int(n.split(".")[2]) for n in before if n.startswith("vision.layers."))
    assert changed
    assert all(name.startswith(f"vision.layers.{last}.") for name in changed)


def test_a_run_from_scratch_does_not_use_the_checkpoint(recipe):
    assert recipe.freeze.vision  # so that the step itself leaves these weights alone
    train(replace(recipe, from_scratch=True, schedule=Schedule(max_steps=1)))
    before, after = weights(recipe.model), weights(recipe.output)
    assert not any(torch.equal(before[n], after[n]) for n in before if n.endswith("qkv.weight"))


@pytest.mark.slow
def test_recomputed_activations_change_nothing(recipe, tmp_path):
    results = []
    for share in (0.0, 0.5, 1.0):
        own = replace(
            recipe,
            output=str(tmp_path / str(share)),
            recompute=Recompute(share, share),
            drop_path=0.2,
            freeze=Freeze(vision=False),
            schedule=Schedule(max_steps=3),
        )
        train(own)
        results.append(losses(own))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize(
    ("dtype", "optimizer"),
    [
        pytest.param("float32", Optimizer(learning_rate=1e-3), marks=pytest.mark.slow),
        pytest.param("bfloat16", Optimizer(learning_rate=1e-3), marks=pytest.mark.slow),
        pytest.param(
            "bfloat16", Optimizer(learning_rate=1e-3, moments="8bit"), marks=pytest.mark.slow
        ),
        pytest.param(
            "bfloat16", Optimizer(name="muon", learning_rate=1e-3), marks=pytest.mark.slow
        ),
    ],
)
def test_an_interrupted_run_goes_on_bit_by_bit(recipe, tmp_path, dtype, optimizer):
    def interrupt(model, processor, step):
        raise KeyboardInterrupt

    recipe = replace(recipe, dtype=dtype, optimizer=optimizer, freeze=Freeze(vision=False))
    recipe = replace(recipe, drop_path=0.2, schedule=Schedule(max_steps=4), save_every=2)
    whole = replace(recipe, output=str(tmp_path / "whole"))
    train(whole)
    with pytest.raises(KeyboardInterrupt):
        Trainer(replace(recipe, validation=Validation(every=3)), interrupt).run()
    begun = records(recipe)[:2]
    train(recipe)
    assert records(recipe)[:2] == begun  # with their times: they were not done again
    assert losses(recipe) == losses(whole)
    expected = weights(whole.output)
    assert all(torch.equal(t, expected[n]) for n, t in weights(recipe.output).items())


@pytest.mark.slow
def test_a_run_killed_at_a_random_step_goes_on_bit_by_bit(recipe, tmp_path):
    recipe = replace(
        recipe, schedule=Schedule(max_steps=12), drop_path=0.2, freeze=Freeze(vision=False)
    )
    whole = replace(recipe, output=str(tmp_path / "whole"))
    train(whole)
    recipe = replace(recipe, save_every=2)
    step = random.randint(1, 11)
    with command(recipe) as process:
        wait_for_step(recipe, step, process)
        process.send_signal(signal.SIGKILL)
    train(recipe)
    assert losses(recipe) == losses(whole), f"killed after step {step}"
    expected = weights(whole.output)
    assert all(torch.equal(t, expected[n]) for n, t in weights(recipe.output).items())


@pytest.mark.slow
def test_sigterm_saves_and_ends_well(recipe):
    recipe = replace(recipe, schedule=Schedule(max_steps=400), save_every=1000)
    with command(recipe) as process:
        wait_for(Path(recipe.output) / "metrics.jsonl", process)
        process.send_signal(signal.SIGTERM)
        message = process.communicate()[1]
    assert process.returncode == 0
    saved = list((Path(recipe.output) / "checkpoints").glob("step-*"))
    step = int(saved[0].name.removeprefix("step-"))
    assert f"stopped after step {step}" in message
    assert step == len(losses(recipe)) < 400


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_in_one(recipe, tmp_path):
    recipe = replace(recipe, schedule=Schedule(max_steps=60), save_every=5)
    alone = replace(recipe, output=str(tmp_path / "alone"))
    train(alone)
    with command(recipe, *TORCHRUN) as process:
        wait_for(Path(recipe.output) / "checkpoints" / "step-00000005", process)
        process.send_signal(signal.SIGTERM)
        message = process.communicate()[1]
    assert "stopped after step" in message
    train(recipe)
    assert losses(recipe) == pytest.approx(losses(alone), rel=1e-3)


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(recipe, tmp_path):
    recipe = replace(recipe, drop_path=0.2, freeze=Freeze(vision=False))
    alone = replace(recipe, output=str(tmp_path / "alone"))
    train(alone)
    with command(recipe, *TORCHRUN) as process:
        message = process.communicate()[1]
    assert process.returncode == 0, message
    assert losses(recipe) == pytest.approx(losses(alone), rel=1e-4)
    expected = weights(alone.output)
    for name, tensor in weights(recipe.output).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-2, atol=1e-3)


def test_the_lowest_validation_loss_is_kept_as_a_model(recipe, samples):
    validation = Validation((DataSource(str(samples)),), every=3)
    train(replace(recipe, validation=validation))
    _, measured = read_records(Path(recipe.output) / "metrics.jsonl")
    assert [record.step for record in measured] == [3, 6, 8]
    assert measured[-1].scores["loss"] < measured[0].scores["loss"]
    assert load(Path(recipe.output) / "best", device="cpu").config.decoder.num_layers > 0


def test_absent_validation_data_are_told_before_the_first_step(recipe):
    absent = Validation((DataSource("gone.jsonl"),), every=3)
    with pytest.raises(FileNotFoundError, match=r"gone\.jsonl is absent"):
        train(replace(recipe, validation=absent))
    assert not (Path(recipe.output) / "metrics.jsonl").exists()


def test_scores_of_answers_are_asked_for_and_written_down(recipe):
    seen = []

    def validate(model, processor, step):
        seen.append(step)
        return {"exact_match": 0.5}

    Trainer(replace(recipe, validation=Validation(every=4)), validate).run()
    _, measured = read_records(Path(recipe.output) / "metrics.jsonl")
    assert seen == [4, 8]
    assert [record.scores for record in measured] == [{"exact_match": 0.5}] * 2


def test_a_loss_that_is_no_number_ends_the_run_with_its_checkpoint_as_it_was(recipe):
    wild = replace(recipe, optimizer=Optimizer(learning_rate=1e30), save_every=1)
    with pytest.raises(ValueError, match=r"loss of step \d+ is (nan|inf).*train\.jsonl:\d+"):
        train(wild)
    assert list((Path(recipe.output) / "checkpoints").glob("step-*"))


def test_gradients_that_are_no_numbers_end_the_run_before_a_checkpoint_has_their_weights(
    recipe, monkeypatch
):
    whole, losses = step_loss.pack_loss, []

    def spoiled(*inputs):
        losses.append(whole(*inputs))
        if len(losses) > 4:
            losses[-1].register_hook(lambda grad: grad * float("nan"))
        return losses[-1]

    saving = replace(recipe, save_every=1)
    with monkeypatch.context() as patched:
        patched.setattr(step_loss, "pack_loss", spoiled)
        with pytest.raises(ValueError, match=r"gradient's length of step \d+ is nan.*as it was"):
            train(saving)
    assert losses[-1].isfinite()
    assert train(saving).step == 8


def test_a_device_without_memory_left_is_told_in_one_line(recipe, monkeypatch):
    def fail(*inputs):
        raise torch.OutOfMemoryError("tried to allocate 20 GiB. And more")

    monkeypatch.setattr(step_loss, "pack_loss", fail)
    with pytest.raises(MemoryError, match=r"out of memory in step 1 .*packing\.tokens below 256"):
        train(recipe)


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_the_last_checkpoint_stays(recipe, monkeypatch):
    from internvl2.train import checkpointer

    write = checkpointer.save

    def quota(tensors, *, storage_writer, **options):
        if storage_writer.path.name.endswith("6"):
            raise OSError(28, "No space left on device")
        return write(tensors, storage_writer=storage_writer, **options)

    monkeypatch.setattr(checkpointer, "save", quota)
    with pytest.raises(OSError, match=r"step-00000006 was not written.*No space left"):
        train(recipe)
    folder = Path(recipe.output) / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["step-00000003"]


def test_a_sample_that_cannot_be_read_stops_the_run_with_file_and_line(recipe, samples, tmp_path):
    broken = tmp_path / "broken.jsonl"
    turns = conversation([("human", "<image>a"), ("gpt", "b")])
    line = json.dumps({"image": "no.png", "conversations": turns})
    broken.write_text(line + "\n" + samples.read_text())
    bad = replace(recipe, data=(DataSource(str(broken), root=str(samples.parent)),))
    with pytest.raises(ValueError, match=r"broken\.jsonl:1.*no\.png"):
        train(bad)
    train(replace(bad, skip_bad_samples=20, output=str(tmp_path / "skipping")))
    skipped = (tmp_path / "skipping" / "bad_samples.jsonl").read_text().splitlines()
    assert "broken.jsonl:1" in json.loads(skipped[0])["where"]


def test_another_seed_cannot_go_on_with_a_run(recipe):
    train(replace(recipe, schedule=Schedule(max_steps=1)))
    (Path(recipe.output) / "config.json").unlink()
    with pytest.raises(ValueError, match="was begun with seed = 0, now it is 1"):
        train(replace(recipe, seed=1))


def test_a_finished_run_is_not_written_over(recipe):
    train(replace(recipe, schedule=Schedule(max_steps=1)))
    with pytest.raises(ValueError, match="holds a finished model"):
        train(recipe)


def test_a_folder_with_something_else_is_left_alone(recipe):
    Path(recipe.output).mkdir()
    (Path(recipe.output) / "thesis.txt").touch()
    with pytest.raises(ValueError, match="is not empty and no run"):
        train(recipe)


def test_freezing_everything_is_an_error(recipe):
    frozen = Freeze(vision=True, projector=True, decoder=True, head=True)
    with pytest.raises(ValueError, match="frozen"):
        train(replace(recipe, freeze=frozen))
