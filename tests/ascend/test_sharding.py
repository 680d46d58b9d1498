"""Two processes with an NPU each: weights divided, a checkpoint, and a run that goes on from it."""

import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from internvl2.checkpoint.store import load_model
from internvl2.train.recipe import Freeze, Lora, Recipe, Schedule
from internvl2.train.run_folder import ENDS
from internvl2.train.trainer import Trainer

sys.path.append(str(Path(__file__).parent))
from test_training import recipe_of, records, samples

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def in_two_processes(recipe: Recipe, start_on_npu) -> None:
    """As torchrun starts them."""
    file = Path(f"{recipe.output}.toml")
    recipe.write(file)
    world = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "FAKE_NPU_COUNT": "2",
    }
    processes = [
        start_on_npu(
            *("-m", "internvl2", "train", file),
            environment=world | {"RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in ("0", "1")
    ]
    messages = [process.communicate(timeout=600)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(messages)


def of_steps(recipe: Recipe, steps: int) -> Recipe:
    """The recipe of so many steps, in a folder that can go on."""
    for end in ENDS:
        (Path(recipe.output) / end).unlink(missing_ok=True)
    return replace(recipe, schedule=Schedule("constant", 0.0, max_steps=steps))


def difference(first: Recipe, second: Recipe) -> float:
    """Largest difference of any weight of two trained models."""
    ours, theirs = (load_model(recipe.output).state_dict() for recipe in (first, second))
    return max((ours[name] - theirs[name]).abs().max().item() for name in theirs)


@pytest.fixture(scope="module")
def base(data, tmp_path_factory) -> Recipe:
    folder = tmp_path_factory.mktemp("sharded")
    model = data("official", "A_internlm2", "checkpoint")
    recipe = recipe_of(model, samples(folder), folder / "run")
    return replace(recipe, freeze=Freeze(vision=False))


@pytest.fixture(scope="module")
def alone(base) -> Recipe:
    """One process on the CPU, without a break."""
    recipe = replace(base, output=f"{base.output}-cpu")
    Trainer(recipe).run()
    return recipe


@pytest.fixture(scope="module")
def divided(base, start_on_npu) -> Recipe:
    """Two processes on two NPUs, with a break after half of the steps."""
    recipe = replace(base, output=f"{base.output}-npu", device="npu", shard=True)
    for steps in (2, 4):
        in_two_processes(of_steps(recipe, steps), start_on_npu)
    return recipe


def losses(recipe: Recipe) -> Sequence[float]:
    return [record.loss for record in records(recipe)]


def test_two_npus_that_go_on_from_a_checkpoint_have_the_losses_of_one_cpu(alone, divided):
    assert [record.step for record in records(divided)] == [1, 2, 3, 4]
    assert losses(divided) == pytest.approx(losses(alone), rel=1e-4)


def test_two_npus_end_with_the_weights_of_one_cpu(alone, divided):
    assert difference(alone, divided) < 1e-3
    untrained = load_model(alone.model).state_dict()
    trained = load_model(divided.output).state_dict()
    moved = max((t - untrained[n]).abs().max().item() for n, t in trained.items())
    assert moved > 2e-3


def test_replicated_adapters_on_two_npus_have_the_losses_of_one_cpu(base, start_on_npu):
    lora = replace(base, freeze=Freeze(), lora=Lora(decoder_rank=4, dropout=0.0))
    on_cpu, on_npu = (replace(lora, output=f"{base.output}-lora-{d}") for d in ("cpu", "npu"))
    Trainer(on_cpu).run()
    in_two_processes(replace(on_npu, device=None), start_on_npu)
    assert losses(on_npu) == pytest.approx(losses(on_cpu), rel=1e-4)
