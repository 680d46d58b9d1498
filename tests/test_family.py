import math
import subprocess
import sys

import pytest
import torch

from internvl2.checkpoint.config_files import read_config, write_config
from internvl2.family import MEMBERS, find, parameters
from internvl2.model.internvl import InternVL

NAMES = tuple(MEMBERS)


def built_counts(name: str) -> tuple[int, int, int]:
    with torch.device("meta"):
        model = InternVL(MEMBERS[name].config)
    parts = (model.vision, model.projector, model.decoder)
    vision, projector, decoder = (sum(p.numel() for p in part.parameters()) for part in parts)
    return vision, projector, decoder


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_formula_counts_what_is_built(name):
    counted = parameters(MEMBERS[name].config)
    assert (counted.vision, counted.projector, counted.decoder) == built_counts(name)


@pytest.mark.parametrize("name", NAMES)
def test_size_is_the_published_one(name):
    published = MEMBERS[name].published_size
    total = parameters(MEMBERS[name].config).total / 1e9
    decimals = len(published.partition(".")[2])
    digits = len(published.replace(".", "").lstrip("0"))
    allowed = 0.001 * total if digits >= 4 else 0.5001 * 10**-decimals
    assert abs(total - float(published)) <= allowed


def test_vision_towers_have_their_published_sizes():
    small = parameters(MEMBERS["internvl2-8b"].config).vision
    large = parameters(MEMBERS["internvl2-26b"].config).vision
    assert round(small / 1e6, 1) == 304.0
    assert round(large / 1e9, 3) == 5.536


def test_the_2b_file_has_its_published_size():
    assert round(2 * parameters(MEMBERS["internvl2-2b"].config).total / 1e9, 2) == 4.41


def test_the_table_has_every_dense_member():
    sizes = {"2": "1 2 4 8 26 40", "2_5": "1 2 4 8 26 38 78", "3": "1 2 8 9 14 38 78"}
    sizes["3_5"] = "1 2 4 8 14 38"
    wanted = {f"internvl{v}-{n}b" for v, listed in sizes.items() for n in listed.split()}
    assert set(MEMBERS) == wanted | {"internvl2-llama3-76b"}


@pytest.mark.parametrize("layout", ["opengvlab", "hf", "paddlemix"])
@pytest.mark.parametrize("name", NAMES)
def test_table_and_config_file_agree(name, layout, tmp_path):
    config = MEMBERS[name].config
    write_config(config, tmp_path, layout)
    read = read_config(tmp_path)
    assert read.decoder.rotary.scale == pytest.approx(config.decoder.rotary.scale, rel=1e-12)
    assert read == config


def test_long_rope_scale_follows_from_the_lengths():
    decoder = MEMBERS["internvl2-4b"].config.decoder
    ratio = decoder.max_positions / decoder.rotary.limit
    scale = math.sqrt(1 + math.log(ratio) / math.log(decoder.rotary.limit))
    assert decoder.rotary.scale == pytest.approx(scale, rel=1e-12)
    assert len(decoder.rotary.short_factors) == len(decoder.rotary.long_factors) == 48


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("internvl2-8b", "internvl2-8b"),
        ("InternVL2-8B", "internvl2-8b"),
        ("OpenGVLab/InternVL2_5-4B", "internvl2_5-4b"),
        ("internvl2.5-4b", "internvl2_5-4b"),
        ("internvl2-76b", "internvl2-llama3-76b"),
    ],
)
def test_names_are_found_in_any_spelling(name, found):
    assert find(name).name == found


def test_unknown_name_is_an_error_with_near_misses():
    with pytest.raises(ValueError, match=r"unknown model 'internvl2-7b'; did you mean internvl2-"):
        find("internvl2-7b")


def test_family_needs_no_torch():
    code = "import sys, internvl2.family; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": "src"}).returncode == 0


def test_vocabulary_holds_the_special_tokens():
    for member in MEMBERS.values():
        assert member.tokens.image_start < member.config.decoder.vocab_size
        assert member.config.image_token_id == member.tokens.image
