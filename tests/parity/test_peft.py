"""Adapters that we write are PEFT's, and PEFT's are read; the peer is only an oracle."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

from internvl2.checkpoint.config_files import read_config
from internvl2.checkpoint.convert import convert
from internvl2.checkpoint.lora_writing import Base, Parts, write_adapter
from internvl2.checkpoint.source import open_checkpoint
from internvl2.checkpoint.store import load_model
from internvl2.model.attention import PackedAttention
from internvl2.model.internvl import InternVL
from internvl2.model.lora import LoraSettings, add_lora, is_adapter, plain_name
from internvl2.model.rotary import Positions

if TYPE_CHECKING:
    from transformers import InternVLForConditionalGeneration

pytestmark = [pytest.mark.parity, pytest.mark.slow]

CASES = ["A_internlm2", "B_qwen2", "C_phi3", "D_llama3_vit6b", "F_qwen3"]
MEAN, DEVIATION = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@pytest.fixture(params=CASES)
def base(request, data, tmp_path) -> Path:
    """A checkpoint in transformers' layout."""
    convert(data("official", request.param, "checkpoint"), tmp_path / "hf", "hf", "float32")
    return tmp_path / "hf"


def theirs(base: Path) -> "InternVLForConditionalGeneration":
    from transformers import InternVLForConditionalGeneration  # takes seconds

    return InternVLForConditionalGeneration.from_pretrained(
        base, dtype=torch.float32, attn_implementation="eager"
    )


def logits_of_both(
    ours: InternVL, other: "InternVLForConditionalGeneration"
) -> tuple[Tensor, Tensor]:
    config, random = ours.config, np.random.default_rng(0)
    words = torch.from_numpy(random.integers(5, 800, 13))
    pictures = torch.full((config.tokens_per_tile,), config.image_token_id)
    tokens = torch.cat([words[:4], pictures, words[4:]])
    shape = (1, config.tile_size, config.tile_size, 3)
    tiles = torch.from_numpy(random.integers(0, 256, shape, dtype=np.uint8))
    pixels = ((tiles / 255 - MEAN) / DEVIATION).permute(0, 3, 1, 2)
    lengths = [len(tokens)]
    with torch.no_grad():
        wanted = other.eval()(input_ids=tokens[None], pixel_values=pixels).logits[0]
        hidden = ours(tokens, Positions.packed(lengths), tiles, PackedAttention.of(lengths))
        return ours.logits(hidden), wanted


@pytest.mark.parametrize(("dora", "rslora"), [(False, False), (True, False), (True, True)])
def test_peft_computes_from_our_adapter_what_we_compute(base, dora, rslora, tmp_path):
    from peft import PeftModel

    model, config = load_model(base), read_config(base)
    parts = Parts(LoraSettings(4, 8.0, 0.0, dora, rslora), LoraSettings(3, 5.0, 0.0, dora, rslora))
    add_lora(model, parts.decoder, parts.vision)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_adapter(name) or name.startswith("projector."):
                parameter += torch.randn(parameter.shape, generator=noise) * 0.05
    trained = {plain_name(n): p for n, p in model.named_parameters() if p.requires_grad}
    stamp = open_checkpoint(base, config).fingerprint(config)
    write_adapter(trained, config, parts, Base(str(base), stamp), tmp_path / "adapter")
    wrapped = PeftModel.from_pretrained(theirs(base), tmp_path / "adapter")
    before, unchanged = logits_of_both(load_model(base), theirs(base))
    for ours in (model.eval(), load_model(base, adapter=tmp_path / "adapter")):
        found, wanted = logits_of_both(ours, wrapped)
        assert (found - wanted).abs().max() <= 2e-4
        assert (found - before).abs().max() > 0.1
    assert (before - unchanged).abs().max() <= 2e-4


@pytest.mark.parametrize(("dora", "rslora"), [(False, False), (True, True)])
@pytest.mark.parametrize(
    "targets", ["all-linear", r".*\.layers\.1\..*(q_proj|qkv_proj|down_proj)|.*vision.*\.v_proj"]
)
def test_an_adapter_that_peft_saved_computes_what_peft_computes(
    base, targets, dora, rslora, tmp_path
):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=targets,
        rank_pattern={r"down_proj": 2, r".*vision_tower.*v_proj": 3},
        alpha_pattern={r"down_proj": 7},
        modules_to_save=["multi_modal_projector"],
        use_dora=dora,
        use_rslora=rslora,
    )
    wrapped = get_peft_model(theirs(base), config)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if re.search("lora_|modules_to_save", name):
                parameter += torch.randn(parameter.shape, generator=noise) * 0.05
    wrapped.save_pretrained(tmp_path / "adapter")
    ours = load_model(base, adapter=tmp_path / "adapter")
    found, wanted = logits_of_both(ours, wrapped)
    assert (found - wanted).abs().max() <= 2e-4
    assert (found - logits_of_both(load_model(base), wrapped)[0]).abs().max() > 0.1
