"""Options of pictures reach the engine that a command loads."""

import pytest

from internvl2.cli.loading import load_engine
from internvl2.cli.options import LoadOptions, MediaOptions


@pytest.mark.parametrize(
    ("media", "arithmetic"),
    [(MediaOptions(), "exact"), (MediaOptions(preprocess="fast"), "fast")],
)
def test_pictures_are_resized_exactly_unless_asked_otherwise(recording, media, arithmetic):
    directory = recording("A_internlm2").checkpoint
    loaded = load_engine(str(directory), LoadOptions(device="cpu"), media)
    with loaded.engine as engine:
        assert engine.processor.pictures.arithmetic == arithmetic
        assert engine.processor.pictures.official is False
