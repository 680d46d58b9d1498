"""What killed runs leave in their folders is cleared away when they go on."""

from pathlib import Path

import pytest

from internvl2.train.recipe import Recipe, Synthetic
from internvl2.train.run_folder import RunFolder


@pytest.mark.parametrize("was_moved", [False, True])
def test_a_best_model_whose_replacement_was_cut_short_is_kept(tmp_path: Path, was_moved: bool):
    folder = RunFolder(tmp_path / "run", Recipe("model"))
    folder.open()
    scratch = folder.path / ".best.abcd"
    (scratch / "best").mkdir(parents=True)
    before = scratch / "old" if was_moved else folder.best
    before.mkdir()
    (before / "config.json").touch()
    folder.open()
    assert [path.name for path in folder.best.iterdir()] == ["config.json"]
    assert not scratch.exists()


def test_what_a_killed_run_wrote_of_its_trained_model_goes_away(tmp_path: Path):
    folder = RunFolder(tmp_path / "run", Recipe("model"))
    folder.open()
    for name in (".model", "..model.abcd.partial"):
        (folder.path / name).mkdir()
    folder.open()
    assert [path.name for path in folder.path.iterdir()] == ["recipe.toml"]


def test_a_run_does_not_go_on_with_other_drawn_samples(tmp_path: Path):
    folder = RunFolder(tmp_path / "run", Recipe("model"))
    folder.open()
    (folder.checkpoints / "step-00000001").mkdir(parents=True)
    with pytest.raises(ValueError, match="was begun with synthetic"):
        RunFolder(folder.path, Recipe("model", synthetic=(Synthetic(),))).open()
