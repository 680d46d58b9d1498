"""Runs with adapters learn, change nothing else, go on bit by bit, and leave adapters."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader

from internvl2 import family
from internvl2.checkpoint.store import load_model
from internvl2.cli import main
from internvl2.model.attention import PackedAttention
from internvl2.model.internvl import InternVL
from internvl2.model.rotary import Positions
from internvl2.train.monitoring.log import read_records
from internvl2.train.parallel import World
from internvl2.train.preparation import prepare, training, without_memory
from internvl2.train.recipe import (
    DataSource,
    Freeze,
    Lora,
    Optimizer,
    Packing,
    Recipe,
    Recompute,
    Schedule,
    Validation,
)
from internvl2.train.trainer import Trainer

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> Path:
    """Questions whose answers stand in them."""
    lines = []
    for number in range(12):
        turns = [("human", f"Say {number}"), ("gpt", str(number))]
        said = [{"from": who, "value": text} for who, text in turns]
        lines.append(json.dumps({"conversations": said}) + "\n")
    path = tmp_path_factory.mktemp("samples") / "train.jsonl"
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def base(data, samples, tmp_path_factory) -> Recipe:
    """A recipe whose runs take half a second."""
    return Recipe(
        model=str(data("official", "A_internlm2", "checkpoint")),
        output=str(tmp_path_factory.mktemp("finished") / "run"),
        data=(DataSource(str(samples)),),
        freeze=Freeze(projector=True),
        lora=Lora(decoder_rank=8),
        optimizer=Optimizer(learning_rate=1e-2),
        schedule=Schedule("constant", 0.0, max_steps=6),
        packing=Packing(tokens=256, tiles=8, window=8),
        packs_per_step=1,
        max_tiles=1,
        workers=0,
        dtype="float32",
        device="cpu",
    )


@pytest.fixture
def recipe(base, tmp_path) -> Recipe:
    return replace(base, output=str(tmp_path / "run"))


@dataclass(frozen=True)
class Finished:
    recipe: Recipe
    logits: Tensor
    """What the trained model said in the end, its adapters beside the matrices."""


@pytest.fixture(scope="module")
def finished(base) -> Finished:
    said = []
    recipe = replace(base, freeze=Freeze(projector=True, head=False))
    Trainer(recipe, lambda model, processor, step: said.append(logits(model)) or {}).run()
    return Finished(recipe, said[-1])


@torch.no_grad()
def logits(model: InternVL) -> Tensor:
    """What a model makes of some tokens."""
    tokens = torch.arange(20)
    hidden = model(tokens, Positions.packed([20]), None, PackedAttention.of([20]))
    return model.logits(hidden)


def merged(recipe: Recipe) -> InternVL:
    """A run's base with the adapter that the run has left."""
    return load_model(recipe.model, adapter=Path(recipe.output), dtype=torch.float32)


def train(recipe: Recipe) -> list[float]:
    """The losses of a run."""
    Trainer(recipe).run()
    return losses(recipe)


def losses(recipe: Recipe) -> list[float]:
    return [step.loss for step in read_records(Path(recipe.output) / "metrics.jsonl")[0]]


def interrupt(model: InternVL, processor: object, step: int) -> dict[str, float]:
    raise KeyboardInterrupt


def stop_after(recipe: Recipe, step: int) -> None:
    """Runs a recipe until the validation after a step, with a checkpoint after each before it."""
    validation = Validation(every=step)
    with pytest.raises(KeyboardInterrupt):
        Trainer(replace(recipe, validation=validation, save_every=1), interrupt).run()


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    return {name for name, tensor in before.items() if (tensor != after[name]).any()}


def test_a_run_with_adapters_learns(finished):
    found = losses(finished.recipe)
    assert found[-1] < 0.5 * found[0]


def test_adapted_matrices_and_trained_parts_change_and_nothing_else(finished):
    before = load_model(finished.recipe.model, dtype=torch.float32).state_dict()
    found = changed(before, merged(finished.recipe).state_dict())
    assert "decoder.head.weight" in found
    layers = {name for name in before if name.startswith("decoder.layers.")}
    assert found - {"decoder.head.weight"} == {
        name for name in layers if name.split(".")[-2] in MATRICES
    }


def test_the_adapter_that_a_run_leaves_gives_the_logits_of_the_run(finished):
    torch.testing.assert_close(
        logits(merged(finished.recipe)), finished.logits, rtol=1e-4, atol=1e-4
    )


def test_a_checkpoint_holds_what_is_trained_and_nothing_else(finished):
    (newest,) = (Path(finished.recipe.output) / "checkpoints").iterdir()
    names = FileSystemReader(newest).read_metadata().state_dict_metadata
    weights = {name.removeprefix("model.") for name in names if name.startswith("model.")}
    assert "decoder.head.weight" in weights
    assert all(name.endswith((".down", ".up")) for name in weights - {"decoder.head.weight"})
    assert len(weights) == 1 + 2 * len(MATRICES) * 2


def test_a_finished_run_of_adapters_is_not_written_over(finished):
    with pytest.raises(ValueError, match="holds a finished model"):
        train(finished.recipe)


def test_inputs_are_left_out_by_chance_in_the_same_way_when_layers_run_again(recipe):
    gradients = []
    for share, dropout in ((0.0, 0.5), (1.0, 0.5), (1.0, 0.0)):
        one = replace(recipe, lora=Lora(8, dropout=dropout), recompute=Recompute(0.0, share))
        model = prepare(one, World.join("cpu")).model
        training(model)
        torch.manual_seed(0)
        model(
            torch.arange(20), Positions.packed([20]), None, PackedAttention.of([20])
        ).sum().backward()
        gradients.append(model.decoder.layers[0].get_parameter("attention.o.up").grad)
    assert torch.equal(gradients[0], gradients[1])
    assert not torch.equal(gradients[1], gradients[2])


@pytest.mark.slow
def test_adapters_learn_beside_matrices_in_four_bits(recipe):
    found = train(replace(recipe, quantize="nf4", dtype="bfloat16"))
    assert found[-1] < 0.5 * found[0]


@pytest.mark.slow
def test_text_alone_changes_no_adapters_of_the_tower_and_the_run_says_so(recipe, caplog):
    frozen = Freeze(projector=True, decoder=True)
    recipe = replace(recipe, lora=Lora(vision_rank=4), freeze=frozen, quantize="nf4")
    train(replace(recipe, schedule=Schedule(max_steps=2)))
    assert caplog.text.count("steps without pictures") == 1
    before = load_model(recipe.model, dtype=torch.float32).state_dict()
    assert not changed(before, merged(recipe).state_dict())


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "bfloat16", "lora": Lora(8, vision_rank=4, dora=True), "freeze": Freeze()},
        {"dtype": "bfloat16", "quantize": "nf4"},
        {"optimizer": Optimizer("muon", learning_rate=1e-3)},
    ],
)
def test_an_interrupted_run_goes_on_bit_by_bit(recipe, tmp_path, changes):
    recipe = replace(recipe, **changes)
    whole = replace(recipe, output=str(tmp_path / "whole"))
    train(whole)
    stop_after(recipe, 3)
    assert train(recipe) == losses(whole)
    assert not changed(merged(recipe).state_dict(), merged(whole).state_dict())


@pytest.mark.slow
def test_a_run_does_not_go_on_with_another_base(recipe, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(recipe.model, model)
    recipe = replace(recipe, model=str(model))
    stop_after(recipe, 2)
    for file in model.glob("*.safetensors"):
        save_file({name: 2 * tensor for name, tensor in load_file(file).items()}, file)
    with pytest.raises(ValueError, match=r"begun with other weights than those that .*model has"):
        train(recipe)


def test_what_adapters_are_is_fixed_when_a_run_goes_on(recipe):
    stop_after(recipe, 2)
    for name, other in (
        ("lora", Lora(4)),
        ("quantize", "nf4"),
        ("freeze", Freeze()),
        ("dtype", "bfloat16"),
    ):
        with pytest.raises(ValueError, match=f"was begun with {name}"):
            train(replace(recipe, **{name: other}))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("1b-lora", 8798208), ("8b-lora", 41943040)])
def test_adapters_of_released_sizes_are_counted(name, count):
    """Of 8B: 37,748,736 of the official code, and 131,072 a layer for q, k, v by themselves."""
    recipe = replace(Recipe.read(name), quantize="nf4")
    model = without_memory(recipe, family.find(recipe.model).config, torch.bfloat16)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count


def test_nothing_below_the_lowest_adapter_keeps_activations(recipe):
    model = prepare(recipe, World.join("cpu")).model
    tiles = torch.zeros(1, model.config.tile_size, model.config.tile_size, 3, dtype=torch.uint8)
    assert not model.encode_tiles(tiles).requires_grad


@pytest.mark.slow
def test_a_quantised_run_of_a_packaged_recipe_answers_at_once(recipe, samples, tmp_path, capsys):
    out = str(tmp_path / "run")
    given = ["--model", recipe.model, "--data", str(samples), "--output", out, "--quantize", "nf4"]
    given += ["--packs-per-step", "1", "--workers", "0", "--packing.tokens", "256"]
    given += ["--packing.tiles", "8", "--schedule.max-steps", "4", "--device", "cpu"]
    given += ["--validation.questions", str(samples), "--validation.every", "2"]
    assert main(["train", "2b-lora", *given]) == 0
    assert f"internvl2 chat --model {out}" in capsys.readouterr().err
    asked = ["--device", "cpu", "--max-tokens", "2", "Say 3"]
    assert main(["chat", "--model", out, *asked]) == 0
    answer = capsys.readouterr().out
    assert main(["chat", "--model", recipe.model, "--adapter", out, *asked]) == 0
    assert capsys.readouterr().out == answer
