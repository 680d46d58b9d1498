"""Records of a run are written once each, and drawn."""

from pathlib import Path

from PIL import Image

from internvl2.train.log import RunLog, StepRecord, ValidationRecord, draw, read_records


def record(step: int) -> StepRecord:
    return StepRecord(
        step=step,
        loss=5.0 / step,
        learning_rate=1e-3,
        grad_norm={"total": 1.0, "decoder": 1.0},
        tokens=10,
        tiles=1,
        samples=2,
        seconds=0.5,
        tokens_per_second=20.0,
        tiles_per_second=2.0,
        data_wait=0.0,
        memory_gib=0.1,
        tflops_vision=0.1,
        tflops_decoder=0.2,
    )


def write(folder: Path, done: int, *steps: int) -> None:
    with RunLog(folder, done, 10) as log:
        for step in steps:
            log.step(record(step))
        log.validation(ValidationRecord(steps[-1], {"loss": 1.0}))


def test_steps_that_are_done_again_have_one_record(tmp_path):
    write(tmp_path, 0, 1, 2, 3)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    write(tmp_path, 2, 3, 4)
    steps, validations = read_records(tmp_path / "metrics.jsonl")
    assert [r.step for r in steps] == [1, 2, 3, 4]
    assert [r.step for r in validations] == [4]


def test_the_losses_are_drawn(tmp_path):
    write(tmp_path, 0, 1, 2, 3)
    picture = draw(tmp_path)
    assert picture == tmp_path / "loss.png"
    with Image.open(picture) as image:
        assert image.size == (800, 550)


def test_the_line_of_a_step_says_what_people_look_for():
    line = record(5).line(10)
    assert line.startswith("step 5/10  loss 1.0000  rate 0.001  gradient 1 (decoder 1)")
    assert "20 tokens/s  2.0 tiles/s  0.1 GiB  waited 0.00 s" in line
