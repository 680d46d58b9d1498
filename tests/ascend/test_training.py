"""Training on the (fake) NPU has the losses that it has on a CPU."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from PIL import Image

from internvl2.train.monitoring.log import StepRecord, read_records
from internvl2.train.recipe import (
    DataSource,
    Freeze,
    Guard,
    Lora,
    Optimizer,
    Packing,
    Recipe,
    Recompute,
    Schedule,
    Validation,
)
from internvl2.train.trainer import Trainer

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Twins:
    """The same run on both devices."""

    cpu: Recipe
    npu: Recipe


def samples(folder: Path) -> Path:
    """Pictures that share packs, and texts."""
    lines = []
    for number in range(8):
        colour = (30 * number, 255 - 30 * number, 128)
        Image.new("RGB", (112, 112), colour).save(folder / f"{number}.png")
        lines.append(_line("<image>\nWhat?", f"colour {number}", {"image": f"{number}.png"}))
        lines.append(_line(f"Say {number}", f"well {number}", {}))
    (folder / "train.jsonl").write_text("".join(lines))
    return folder / "train.jsonl"


def _line(question: str, answer: str, picture: dict) -> str:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return json.dumps(picture | {"conversations": turns}) + "\n"


def recipe_of(model: Path, data: Path, output: Path) -> Recipe:
    return Recipe(
        model=str(model),
        output=str(output),
        data=(DataSource(str(data)),),
        optimizer=Optimizer(learning_rate=1e-3),
        schedule=Schedule("constant", 0.0, max_steps=4),
        packing=Packing(tokens=192, tiles=4, window=4),
        packs_per_step=2,
        max_tiles=1,
        drop_path=0.0,
        workers=0,
        dtype="float32",
        device="cpu",
        save_every=100,
    )


def changed(recipe: Recipe) -> dict[str, Recipe]:
    """A run of each kind."""
    lora = replace(recipe, lora=Lora(decoder_rank=4, vision_rank=4, dropout=0.0))
    return {
        "full": replace(
            recipe,
            freeze=Freeze(vision=False),
            recompute=Recompute(1.0, 1.0),
            validation=Validation(recipe.data, every=2),
            guard=Guard(recipe.data, every=3, top_k=8),
        ),
        "lora": lora,
        "dora": replace(lora, lora=replace(lora.lora, dora=True)),
        "qlora": replace(lora, quantize="nf4", lora=replace(lora.lora, vision_rank=0)),
        "muon": replace(recipe, optimizer=Optimizer("muon", learning_rate=1e-3, moments="8bit")),
        "cached": replace(recipe, feature_cache=f"{recipe.output}-features"),
    }


KINDS = ("full", "lora", "dora", "qlora", "muon", "cached")


@pytest.fixture(scope="module")
def twins(data, tmp_path_factory) -> dict[str, Twins]:
    folder = tmp_path_factory.mktemp("npu")
    model = data("official", "A_internlm2", "checkpoint")
    base = recipe_of(model, samples(folder), folder / "run")
    found = {}
    for kind, recipe in changed(base).items():
        on_cpu, on_npu = (replace(recipe, output=str(folder / f"{kind}-{d}")) for d in ("c", "n"))
        found[kind] = Twins(on_cpu, replace(on_npu, device=None))
    return found


@pytest.fixture(scope="module")
def told(twins, run_on_npu) -> dict:
    """What was seen on the NPU, when both devices have done everything."""
    files = []
    for pair in twins.values():
        Trainer(pair.cpu).run()
        files.append(Path(f"{pair.npu.output}.toml"))
        pair.npu.write(files[-1])
    return run_on_npu("train.py", *files)


def records(recipe: Recipe) -> list[StepRecord]:
    return read_records(Path(recipe.output) / "metrics.jsonl")[0]


@pytest.mark.parametrize("kind", KINDS)
def test_losses_on_an_npu_are_those_on_a_cpu(told, twins, kind):
    on_cpu, on_npu = records(twins[kind].cpu), records(twins[kind].npu)
    assert len(on_cpu) == 4
    assert on_cpu[-1].loss != on_cpu[0].loss
    assert [r.loss for r in on_npu] == pytest.approx([r.loss for r in on_cpu], rel=1e-4)
    for one, two in zip(on_cpu, on_npu, strict=True):
        assert two.grad_norm == pytest.approx(one.grad_norm, rel=1e-3)


def test_what_validation_and_guard_measure_on_an_npu_is_what_they_measure_on_a_cpu(told, twins):
    measured = [
        [r.scores for r in read_records(Path(recipe.output) / "metrics.jsonl")[1]]
        for recipe in (twins["full"].cpu, twins["full"].npu)
    ]
    assert len(measured[0]) > 2
    for theirs, ours in zip(*measured, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-6)


def test_no_layer_waits_for_the_device_while_it_learns(told):
    assert told["layers"] > 100
    assert told["waits"] == 0


def test_training_uses_the_fused_kernels(told):
    names = ("fusion_attention", "rms_norm", "rotary_mul", "swiglu")
    assert {f"npu::npu_{name}" for name in names} <= set(told["kernels"])


def test_memory_of_the_npu_is_recorded(told, twins):
    assert all(0 < record.memory_gib < 1 for record in records(twins["full"].npu))


def test_a_step_that_does_not_fit_ends_the_run_with_one_line(twins, tmp_path, start_on_npu):
    recipe = replace(twins["full"].npu, output=str(tmp_path / "run"), recompute=Recompute(0, 0))
    recipe = replace(recipe, validation=Validation(), guard=Guard(), dtype="float32")
    recipe.write(tmp_path / "recipe.toml")
    process = start_on_npu(
        *("-m", "internvl2", "train", tmp_path / "recipe.toml"),
        environment={"FAKE_NPU_BYTES": str(18 * 2**20)},
    )
    _, messages = process.communicate(timeout=300)
    assert process.returncode == 2, messages
    errors = [line for line in messages.splitlines() if "error" in line or "Traceback" in line]
    assert len(errors) == 1, messages
    assert "internvl2: error: out of memory in step 1 (NPU out of memory" in errors[0]
    assert "try packing.tokens below 192, recompute.vision and recompute.decoder = 1.0" in errors[0]
